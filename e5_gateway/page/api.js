/** Requests to the gateway, and their errors in words. Nothing is kept between requests. */

import { FormError } from "./request.js";
import { SIDES } from "./schema.js";

/** The field of the API key. No input of predict() can have a hyphen in its name. */
export const KEY = "api-key";
const SECONDS = 300; // a million tokens take minutes on a CPU
const MAX_MESSAGE = 1000;

/**
 * The gateway's JSON, with its text and the round trip in milliseconds. Throws FormError for everything else, also after
 * `seconds`, and AbortError if `signal` was aborted.
 */
export async function send(path, { body, key = "", signal, seconds = SECONDS } = {}) {
  if (!/^[\x21-\x7e]*$/.test(key)) throw new FormError(KEY, "The API key has characters that no key can have.");
  const started = performance.now();
  const control = new AbortController();
  const timer = setTimeout(() => control.abort(), seconds * 1000);
  if (signal?.aborted) control.abort();
  signal?.addEventListener("abort", () => control.abort());
  let response, text;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: body ? "POST" : "GET",
      headers: { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) },
      body: body && new Blob([JSON.stringify(body)]), // a string of 30 MB would block the page for half a second
      signal: control.signal,
      cache: "no-store",
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new FormError(
      "",
      control.signal.aborted ? `The server did not answer within ${seconds} seconds.` : UNREACHABLE,
    );
  } finally {
    clearTimeout(timer);
  }
  return { json: read(response.status, response.headers, text), text, milliseconds: performance.now() - started };
}

const UNREACHABLE = "The server cannot be reached: it is down or not up yet, or the connection broke.";

/** A response's JSON object if it succeeded; throws FormError with the reason if not. */
export function read(status, headers, text) {
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {}
  if (answer === null || typeof answer !== "object") answer = {};
  if (status < 300 && (answer.status ?? "succeeded") === "succeeded") {
    if (Object.keys(answer).length) return answer;
    throw new FormError("", "The server’s answer is not JSON.");
  }
  if (status < 300) throw failure(reasonOf(answer) || "the prediction failed, and the server did not say why");
  if (status === 422 && Array.isArray(answer.detail) && answer.detail.length) throw invalid(answer.detail);
  const reason = reasonOf(answer);
  if (status === 401)
    throw new FormError(
      KEY,
      "The API key is missing or wrong: enter this server’s key. (No field for it? Reload the page.)",
    );
  if (status === 429)
    throw new FormError("", `Too many requests are waiting: try again ${when(headers.get("Retry-After"))}.`);
  if (status === 409) throw new FormError("", "The model is busy: try again in a moment.");
  if (status === 413)
    throw new FormError(
      "",
      "The request is larger than the server accepts: send fewer or shorter texts, or a smaller file.",
    );
  if (status === 503 && /STARTING/.test(`${answer.status} ${reason}`)) {
    throw new FormError("", "The model is still starting: try again in a moment.");
  }
  throw failure(reason || `the server answered with status ${status}`);
}

/** An error's message without names of classes, and the field that it names. Lines are counted from one. */
export function failure(error) {
  const message = error.replace(/^(?:Prediction failed: |Async prediction failed: |\w+(?:Error|Exception): )+/, "");
  const name = message.match(/`(\w+)(?:\[\d+\])?`/)?.[1] ?? "";
  const counted = message.replace(/`(queries|documents)\[(\d+)\]`/g, (_, many, index) => {
    return `${SIDES.find((side) => side[1] === many)[0]} ${Number(index) + 1}`;
  });
  return new FormError(fieldOf(name), capitalize(counted.slice(0, MAX_MESSAGE)));
}

/** FastAPI's list of problems → one message, and the field of the first. */
function invalid(detail) {
  const problems = detail.slice(0, 3).map((entry) => {
    const path = (entry?.loc ?? []).filter((part) => part !== "body" && part !== "input");
    return { field: fieldOf(String(path[0] ?? "")), words: [path.join("."), entry?.msg].filter(Boolean).join(": ") };
  });
  const words = problems.map((problem) => problem.words).join("; ");
  return new FormError(problems[0].field, `The server does not accept this: ${words.slice(0, MAX_MESSAGE)}`);
}

/** What an error's body says, in the format of Cog, OpenAI or Cohere. */
function reasonOf(answer) {
  const reason = answer.error?.message ?? answer.error ?? answer.detail ?? answer.message;
  return typeof reason === "string" ? reason : "";
}

const fieldOf = (name) => SIDES.find((side) => side.includes(name))?.[1] ?? name;
const capitalize = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const when = (seconds) =>
  /^\d+$/.test(seconds ?? "") ? `in ${seconds} second${seconds === "1" ? "" : "s"}` : "in a moment";
