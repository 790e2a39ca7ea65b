/** A file of texts → its columns: .txt has one text a line, .csv and .tsv a header or a single column, .jsonl and .json
 * strings or objects. Throws FileError. */

import { plural } from "./dom.js";

export const MAX_BYTES = 8 * 2 ** 20; // longer boxes make a page slow; the API takes four times as much
export const ACCEPT = ".txt,.csv,.tsv,.jsonl,.json";
const NAMES = ["text", "document", "passage", "query", "question", "content", "sentence", "body"]; // likely columns

/** The file cannot be used: says why. */
export class FileError extends Error {}

/** A File → { names, count, texts(name) }: its columns, the likeliest first, its records, and the texts of a column. */
export async function columnsOf(file) {
  if (file.size > MAX_BYTES)
    throw new FileError(`${file.name} is larger than ${MAX_BYTES / 2 ** 20} MiB: send it to the API.`);
  const ending = file.name.toLowerCase().match(/\.(\w+)$/)?.[1] ?? "txt";
  const read = { txt, csv, tsv: csv, jsonl, json }[ending];
  if (!read) throw new FileError(`${file.name}: the page reads ${ACCEPT.replaceAll(",", ", ")}.`);
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch (error) {
    throw new FileError(`${file.name} cannot be read: ${error.message}`); // a folder, say
  }
  const columns = read(decode(bytes, file.name));
  const count = Math.max(0, ...[...columns.values()].map((texts) => texts.length));
  for (const [name, texts] of columns) if (!texts.some(Boolean)) columns.delete(name);
  if (!columns.size) throw new FileError(`${file.name} has no texts.`);
  const names = [...columns.keys()].sort((a, b) => rank(a) - rank(b));
  return { names, count, texts: (name) => columns.get(name).filter(Boolean) };
}

function rank(name) {
  const place = NAMES.indexOf(name.toLowerCase());
  return place < 0 ? NAMES.length : place;
}

function decode(bytes, name) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new FileError(`${name} is not UTF-8: save it in that encoding.`);
  }
}

const txt = (text) =>
  new Map([
    [
      "text",
      text
        .split(/\r\n|\n|\r/)
        .map((line) => line.trim())
        .filter(Boolean),
    ],
  ]);

/** RFC 4180. Several columns need a header; a single one has it if its first cell is a likely name. */
function csv(text) {
  const first = text.slice(0, text.search(/\r|\n|$/)).replace(/"(?:[^"]|"")*"/g, "");
  const separator = [",", ";", "\t"].reduce((a, b) => (first.split(b).length > first.split(a).length ? b : a));
  const rows = csvRows(text, separator).filter((row) => row.length > 1 || row[0].trim());
  if (!rows.length) return new Map();
  const width = rows[0].length;
  const wrong = rows.findIndex((row) => row.length !== width);
  if (wrong >= 0) {
    const counts = `${plural(rows[wrong].length, "cell", "cells")}, the first row ${width}`;
    throw new FileError(
      `Row ${wrong + 1} has ${counts}: put cells that contain ${separator === "\t" ? "tabs" : separator} in quotes.`,
    );
  }
  const hasHeader = width > 1 || NAMES.includes(rows[0][0].trim().toLowerCase());
  const names = hasHeader ? distinct(rows[0]) : ["text"];
  const body = hasHeader ? rows.slice(1) : rows;
  return new Map(names.map((name, index) => [name, body.map((row) => row[index].trim())]));
}

/** Names of columns; empty and repeated ones get their number. */
function distinct(names) {
  const trimmed = names.map((name) => name.trim());
  return trimmed.map((name, index) =>
    name && trimmed.indexOf(name) === index ? name : `${name || "column"} ${index + 1}`,
  );
}

/** The cells of each row; quoted cells may hold separators, quotes and lines. */
export function csvRows(text, separator) {
  const rows = [];
  let [row, start] = [[], 0];
  while (start < text.length) {
    let [cell, end] = ["", start];
    if (text[start] === '"') {
      const quoted = /"((?:[^"]|"")*)"/y;
      quoted.lastIndex = start;
      const match = quoted.exec(text);
      if (!match) throw new FileError(`Row ${rows.length + 1} has a quote that is not closed.`);
      [cell, end] = [match[1].replaceAll('""', '"'), quoted.lastIndex];
    }
    while (end < text.length && text[end] !== separator && text[end] !== "\n" && text[end] !== "\r")
      cell += text[end++];
    row.push(cell);
    if (text[end] === separator) {
      start = end + 1;
      if (start === text.length) row.push("");
      continue;
    }
    rows.push(row);
    row = [];
    start = end + (text[end] === "\r" && text[end + 1] === "\n" ? 2 : 1);
  }
  if (row.length) rows.push(row);
  return rows;
}

function jsonl(text) {
  const lines = text.split("\n").map((line) => line.trim());
  return records(lines.flatMap((line, index) => (line ? [parse(line, `Line ${index + 1}`)] : [])));
}

function json(text) {
  const list = parse(text, "The file");
  if (!Array.isArray(list)) throw new FileError("The file is not a JSON list.");
  return records(list);
}

/** Strings, or objects whose strings are columns; a record without a column's string has "" there. */
function records(values) {
  const columns = new Map();
  values.forEach((value, index) => {
    const record = typeof value === "string" ? { text: value } : value;
    if (typeof record !== "object" || Array.isArray(record) || record === null) {
      throw new FileError(`Record ${index + 1} is neither a string nor an object.`);
    }
    for (const [name, text] of Object.entries(record)) {
      if (typeof text !== "string") continue;
      if (!columns.has(name)) columns.set(name, Array(values.length).fill(""));
      columns.get(name)[index] = text;
    }
  });
  return columns;
}

function parse(text, subject) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FileError(`${subject} is not JSON: ${error.message}.`);
  }
}
