/** Files ↔ data URLs, in which requests and answers carry them. */

import { FormError } from "./request.js";

/** The name under which the vectors of a file of texts are saved. */
export const VECTORS = "vectors.parquet";
const STEP = 4 * 2 ** 20; // characters to decode at a time; four are three bytes

/**
 * A file's media type. The server has no other sign that it is a CSV file than the type and the columns that it looks
 * for; on Windows, Excel makes it application/vnd.ms-excel.
 */
export function typeOf({ name, type }) {
  const ending = name.toLowerCase().match(/\.(\w+)$/)?.[1];
  const known = { csv: "text/csv", tsv: "text/tab-separated-values" }[ending] ?? type;
  return /^[\w.+-]+\/[\w.+-]+$/.test(known) ? known : "application/octet-stream";
}

/** Whether a string is a data URL of bytes. */
export const isDataUrl = (text) => /^data:[^,]*;base64,/.test(text.slice(0, 200));

/** The names of a prediction's inputs that are files. */
export const fileNames = (input) => Object.keys(input ?? {}).filter((name) => input[name] instanceof File);

/** A request's body with a data URL in the place of each file. Throws FormError. */
export async function withData(body) {
  const [input, names] = [{ ...body.input }, fileNames(body.input)];
  for (const name of names) input[name] = await encode(name, input[name]);
  return names.length ? { ...body, input } : body;
}

/** The browser encodes in the background: 23 MiB take 0.2 s. */
function encode(name, file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => {
      // It has changed or is gone, or it is a folder.
      reject(new FormError(name, `${file.name} cannot be read: choose it again. (${reader.error.message})`));
    };
    reader.readAsDataURL(file.slice(0, file.size, typeOf(file)));
  });
}

/** The number of bytes in a data URL. */
export function sizeOf(url) {
  const padding = url.endsWith("==") ? 2 : url.endsWith("=") ? 1 : 0;
  return ((url.length - url.indexOf(",") - 1) / 4) * 3 - padding;
}

/** A data URL → Blob. It pauses after each step, so that the page can react: 256 MiB take seconds. */
export async function blobOf(url) {
  const parts = [];
  for (let start = url.indexOf(",") + 1; start < url.length; start += STEP) {
    const binary = atob(url.slice(start, start + STEP));
    const part = new Uint8Array(binary.length);
    for (let index = 0; index < binary.length; index++) part[index] = binary.charCodeAt(index); // from() is 8 × as slow
    parts.push(part);
    await new Promise((resolve) => setTimeout(resolve));
  }
  return new Blob(parts);
}
