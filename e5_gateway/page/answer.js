/** A response → texts, vectors and scores that belong together, in whichever format they came. Throws FormError. */

import { isDataUrl } from "./dataurl.js";
import { FormError, hasTextsFile, sides } from "./request.js";
import { TEXTS_FILE } from "./schema.js";

const WARNING = "Warning: "; // how predict.py marks the lines of its log that are for the caller
const NOTHING = {
  vectors: null,
  scores: null,
  ranking: null,
  tokens: null,
  pieces: null,
  tokenIds: null,
  truncated: new Set(),
  file: null,
};
const WIDTHS = { base64: 4, float16: 2, int8: 1, ubinary: 1 };

/**
 * The answer to a request of requestOf(). `vectors`: Float32Array of each text, or null; `scores`: a row for each
 * query, or null; `ranking`: the results of a rerank, or null; `tokens`, `pieces`, `tokenIds`: of each text, or null;
 * `file`: the data URL with the vectors of a file of texts, or null.
 */
export function answerOf(request, response) {
  return request.path === "predictions" ? prediction(request.body.input, response) : reranked(request.body, response);
}

function prediction(input, response) {
  const [queries, documents] = sides(input);
  const { output, metrics, logs } = response;
  if (!output || typeof output !== "object") throw new FormError("", "The answer has no output.");
  const counts = { metrics: metrics ?? {}, warnings: warningsOf(logs ?? "") };
  if (hasTextsFile(input)) return ofFile(output[TEXTS_FILE], counts);
  const count = queries.length + documents.length;
  const vectors = vectorsOf(output, input.encoding_format ?? "float");
  if (vectors && vectors.length !== count) {
    throw new FormError("", `The answer has ${vectors.length} vectors for ${count} texts.`);
  }
  if (vectors?.some((vector) => !vector.length || vector.length !== vectors[0].length)) {
    throw new FormError("", "The answer has vectors of different lengths.");
  }
  if (vectors?.some((vector) => !vector.every(Number.isFinite)))
    throw new FormError("", "The answer has vectors with NaN.");
  const scores = output.scores ?? null;
  if (scores && (scores.length !== queries.length || scores.some((row) => row.length !== documents.length))) {
    throw new FormError("", "The answer has scores of another shape than queries × documents.");
  }
  if (scores?.some((row) => !row.every(Number.isFinite)))
    throw new FormError("", "The answer has scores that are no numbers.");
  return {
    ...texts(queries, documents),
    ...NOTHING,
    vectors,
    scores,
    tokens: output.tokens ?? null,
    pieces: output.pieces ?? null,
    tokenIds: output.token_ids ?? null,
    truncated: new Set(output.truncated ?? []),
    ...counts,
  };
}

function ofFile(file, counts) {
  if (typeof file !== "string" || !isDataUrl(file)) throw new FormError("", "The answer has no file of vectors.");
  return { ...texts([], []), ...NOTHING, file, ...counts };
}

function reranked(body, response) {
  const { results, usage = {}, truncated = [], query_truncated: isQueryCut = false } = response;
  if (!Array.isArray(results)) throw new FormError("", "The answer has no results.");
  const documents = body.documents;
  if (results.some(({ index, relevance_score: score }) => !(index in documents) || typeof score !== "number")) {
    throw new FormError("", "The answer ranks documents that were not sent.");
  }
  return {
    ...texts([body.query], documents),
    ...NOTHING,
    ranking: results.map(({ index, relevance_score: score }) => ({ index, score })),
    truncated: new Set([...(isQueryCut ? [0] : []), ...truncated.map((index) => index + 1)]),
    metrics: { input_tokens: usage.total_tokens },
    warnings: [],
  };
}

function texts(queries, documents) {
  return { queries, documents, texts: [...queries, ...documents] };
}

/** What a person calls the text of that index. */
export function nameOf(answer, index) {
  const { length } = answer.queries;
  return index < length ? `query ${index + 1}` : `document ${index - length + 1}`;
}

function vectorsOf(output, format) {
  if (output.embeddings) return output.embeddings.map((row) => Float32Array.from(row ?? [], (value) => value ?? NaN));
  if (!output.embeddings_base64) {
    if (output.pieces) return null;
    throw new FormError("", "The answer has neither vectors nor tokens.");
  }
  try {
    return output.embeddings_base64.map((text, index) => decode(text, format, output.scales?.[index]));
  } catch (error) {
    throw new FormError("", `The answer has vectors that cannot be read: ${error.message}.`);
  }
}

/** One vector. int8 is multiplied by its scale; bits become -1 and 1. */
export function decode(text, format, scale) {
  const width = WIDTHS[format];
  if (!width) throw new Error(`this page does not know the format ${format}`);
  const binary = atob(text);
  const view = new DataView(Uint8Array.from(binary, (character) => character.charCodeAt(0)).buffer);
  if (binary.length % width) throw new Error(`${binary.length} bytes are no whole number of values`);
  const read = {
    base64: (index) => view.getFloat32(4 * index, true),
    float16: (index) => half(view.getUint16(2 * index, true)),
    int8: (index) => view.getInt8(index) * scale,
    ubinary: (index) => ((view.getUint8(index >> 3) >> (7 - (index & 7))) & 1 ? 1 : -1),
  }[format];
  return Float32Array.from({ length: format === "ubinary" ? 8 * binary.length : binary.length / width }, (_, i) =>
    read(i),
  );
}

/** IEEE 754 binary16 → number. */
function half(bits) {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

function warningsOf(logs) {
  const lines = logs.split("\n").map((line) => line.trim());
  return lines.filter((line) => line.startsWith(WARNING)).map((line) => line.slice(WARNING.length));
}

/** The vectors with length 1, in float64; a zero vector stays one. */
export function unit(vectors) {
  return vectors.map((vector) => {
    const norm = length(vector);
    return Float64Array.from(vector, (value) => value / (norm || 1));
  });
}

/** A vector's length (L2 norm). */
export function length(vector) {
  let sum = 0;
  for (const value of vector) sum += value * value;
  return Math.sqrt(sum);
}

/** 100 × cosine of each vector with each: what the API leaves to its clients if all texts are of one side. */
export function similarities(vectors) {
  const rows = unit(vectors);
  return rows.map((a) =>
    rows.map((b) => {
      let product = 0;
      for (let index = 0; index < a.length; index++) product += a[index] * b[index];
      return 100 * product;
    }),
  );
}
