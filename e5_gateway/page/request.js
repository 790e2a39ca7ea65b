/** What a person typed → the request. The model checks its inputs itself: here is only what cannot be sent. */

import { SIDES, TEXTS_FILE } from "./schema.js";

const MAX_FILE_BYTES = 23 * 2 ** 20; // in base64 a third more, and the gateway takes 32 MiB

/** The form cannot be sent: the reason, and the field to mend ("" for the whole form). */
export class FormError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

// A surrogate without its other half: half of a character, which UTF-8 cannot carry. (In pairs, `u` reads characters.)
const HALF = /[\ud800-\udfff]/u;

/** The texts of one box: a JSON list of strings if it begins with `[`, else one a line without the empty ones. */
export function parseTexts(field, box) {
  const texts = box.trimStart().startsWith("[")
    ? parseList(field, box)
    : box
        .split("\n")
        .map((line) => line.trim())
        .filter(Boolean);
  texts.forEach((text, index) => checkCharacters(field, `Text ${index + 1}`, text));
  return texts;
}

/** Texts → what a box has to hold for them: a line each if parseTexts() reads that as the same texts, else JSON. */
export function boxOf(texts) {
  const lines = texts.join("\n");
  const isPlain = texts.every((text) => text === text.trim() && text && !/[\r\n]/.test(text)) && !lines.startsWith("[");
  return isPlain ? lines : JSON.stringify(texts, null, 1);
}

function parseList(field, box) {
  let list;
  try {
    list = JSON.parse(box);
  } catch (error) {
    throw new FormError(
      field,
      `This begins with [, so it is read as a JSON list, which it is not: ${error.message}. Correct the JSON; a text ` +
        'that begins with [ goes into a list of one: ["[like this]"].',
    );
  }
  const wrong = list.findIndex((text) => typeof text !== "string");
  if (wrong >= 0) {
    const cure = 'a list of strings is needed, ["like", "this"].';
    throw new FormError(
      field,
      `Item ${wrong + 1} of the JSON list is ${JSON.stringify(list[wrong]).slice(0, 40)}: ${cure}`,
    );
  }
  return list;
}

function checkCharacters(field, subject, text) {
  const position = text.search(HALF);
  if (position >= 0)
    throw new FormError(field, `${subject} has half of a character at position ${position}: remove it.`);
}

/** Refuse a file that cannot be sent. Throws FormError. */
export function checkFile(field, file) {
  if (!file.size) throw new FormError(field, `${file.name} is empty.`);
  if (file.size > MAX_FILE_BYTES) {
    throw new FormError(
      field,
      `${file.name} is larger than ${MAX_FILE_BYTES / 2 ** 20} MiB: upload it with Replicate’s client ` +
        "(POST /v1/files), or run scripts/corpus.py on it.",
    );
  }
}

/**
 * The form's values → { path, body }. `values` has a string for each box and choice, a boolean for each flag, and a File
 * or null for each file. Files are in the body as they are: withData() encodes them.
 *
 * Defaults and empty fields are left out; the task goes along where there is a query or a file. Throws FormError.
 */
export function requestOf(mode, fields, values, model) {
  const input = {};
  const shown = fields.filter((each) => each.modes.includes(mode));
  for (const field of shown) {
    const value = parse(field, values[field.name]);
    const isDefault = value === null || JSON.stringify(value) === JSON.stringify(field.default);
    if (value === null && field.required) throw new FormError(field.name, `${field.label} is needed.`);
    if (field.one && value?.length === 1) input[field.one] = value[0];
    else if (!isDefault || field.name === "task") input[field.name] = value;
  }
  const [queries, documents] = sides(input);
  const names = shown.map((field) => field.name);
  const hasTexts = queries.length > 0 || documents.length > 0;
  const hasFile = hasTextsFile(input); // its texts may be queries
  if (hasFile && hasTexts) {
    throw new FormError(
      TEXTS_FILE,
      "A file cannot be combined with texts: clear the queries and documents, or remove the file.",
    );
  }
  if ("task" in input && !queries.length && !hasFile && names.includes("queries")) delete input.task;
  if (names.includes("queries") && !hasTexts && !hasFile) {
    const cure = `write at least one query or one document${names.includes(TEXTS_FILE) ? ", or choose a file" : ""}`;
    throw new FormError("", `There is no text yet: ${cure}.`);
  }
  return mode === "rerank" ? rerank(input, queries, documents, model) : { path: "predictions", body: { input } };
}

/** Whether a prediction is about a file of texts. */
export const hasTextsFile = (input) => input[TEXTS_FILE] instanceof File;

/** A prediction's queries and documents, in the order of the answer's vectors. */
export function sides(input) {
  return SIDES.map(([one, many]) => [...(one in input ? [input[one]] : []), ...(input[many] ?? [])]);
}

function rerank(input, queries, documents, model) {
  if (queries.length !== 1) throw new FormError("queries", `Rerank takes one query: this has ${queries.length}.`);
  if (!documents.length) throw new FormError("documents", "Rerank needs at least one document.");
  const { document: _, ...rest } = input;
  return { path: "v2/rerank", body: { model, ...rest, documents } };
}

function parse(field, value) {
  if (field.kind === "texts") {
    const texts = parseTexts(field.name, value);
    return texts.length || field.default !== null ? texts : null;
  }
  if (field.kind === "flag" || field.kind === "choice") return value;
  if (field.kind === "file") {
    if (value) checkFile(field.name, value);
    return value;
  }
  if (field.kind === "text") {
    checkCharacters(field.name, field.label, value);
    return value === "" && field.default === null ? null : value;
  }
  if (value.trim() === "") {
    if (field.default === null) return null;
    throw new FormError(field.name, `${field.label} is empty: the default is ${JSON.stringify(field.default)}.`);
  }
  return field.kind === "number" ? parseNumber(field, value) : parseJson(field, value);
}

function parseNumber(field, value) {
  const parsed = Number(value);
  const { minimum, maximum, integer, label } = field;
  const fits = Number.isFinite(parsed) && (!integer || Number.isSafeInteger(parsed));
  if (fits && parsed >= (minimum ?? -Infinity) && parsed <= (maximum ?? Infinity)) return parsed;
  const bounds = [minimum === null ? "" : `, at least ${minimum}`, maximum === null ? "" : `, at most ${maximum}`].join(
    "",
  );
  throw new FormError(field.name, `${label} must be a ${integer ? "whole " : ""}number${bounds}.`);
}

function parseJson(field, value) {
  try {
    return JSON.parse(value);
  } catch (error) {
    throw new FormError(field.name, `${field.label} must be JSON: ${error.message}.`);
  }
}
