/**
 * The request as code that runs when it is pasted: cURL and the official clients. Pure functions.
 *
 * The key is never in the code, which reads it from the environment. Texts that are too long to print are read from
 * request.json, which the page offers for download. Files are opened by their names.
 */

import { VECTORS, fileNames, typeOf } from "./dataurl.js";
import { hasTextsFile, sides } from "./request.js";
import { SIDES, TEXTS_FILE } from "./schema.js";

export const FILE = "request.json";
const MAX_PRINTED = 20_000; // characters; Linux takes no argument above 131,072 bytes, and no person reads that much
const KEY = "GATEWAY_API_KEY";
const NO_KEY = "no-key-needed"; // the clients insist on one
const OWNER = "e5";
const OPENAI_INPUTS = [...SIDES.flat(), "task", "long_texts", "normalize", "encoding_format"];

/** The tabs of code for a request: [label, code]. `target`: { base, model, keyRequired }. */
export function snippets(target, request) {
  if (fileNames(request.body.input).length) {
    // Long texts are in request.json, which cannot hold a file: then there is no code. A file of texts goes without texts.
    return isLong(request) ? [] : WITH_FILES.map(([label, write]) => [label, write(target, request)]);
  }
  const writers = request.path === "predictions" ? PREDICTION : RERANK;
  return writers.map(([label, write]) => [label, write(target, request)]);
}

/** Whether the code reads the request from a file. */
export const isLong = (request) => JSON.stringify(request.body).length > MAX_PRINTED;

/** The content of request.json: the request's body. */
export const fileOf = (request) => literal(request.body, 0, JAVASCRIPT);

function curl(target, request) {
  return curlCommand(target, request, isLong(request) ? `@${FILE}` : quote(fileOf(request)));
}

function curlCommand({ base, keyRequired }, request, data) {
  return `${[
    `curl -sS ${quote(`${base}/${request.path}`)}`,
    "-H 'Content-Type: application/json'",
    ...(keyRequired ? [`-H "Authorization: Bearer $${KEY}"`] : []),
    `--data-binary ${data}`,
  ].join(" \\\n  ")}\n`;
}

/**
 * The shell encodes the files where it expands $(…) in the body, which takes any length there. `base64 -w0` would do
 * without `tr`, but not on macOS.
 */
function curlWithFiles(target, request) {
  const files = [];
  const marked = literal(request.body, 0, {
    ...JAVASCRIPT,
    file: (file) => {
      files.push(file);
      return '"\0"'; // a string literal has no such character
    },
  });
  const [first, ...others] = marked.split("\0").map((part) => part.replace(/[\\$`]/g, "\\$&"));
  const body = others.reduce((before, part, index) => {
    const file = files[index];
    return `${before}data:${typeOf(file)};base64,$(base64 < ${quote(file.name)} | tr -d '\\n')${part}`;
  }, first);
  const save = `jq -r '.output.${TEXTS_FILE} // error(tostring)' | cut -d, -f2 | base64 -d > ${VECTORS}`;
  const data = hasTextsFile(request.body.input) ? `@- <<END | ${save}` : "@- <<END";
  return `${curlCommand(target, request, data)}${body}\nEND\n`;
}

/** Replicate's Python client adds /v1 to the address itself (replicate 1.0, models.predictions.create). */
function replicatePython(target, request) {
  const { input } = request.body;
  const value = isLong(request) ? `${pythonFile()}["input"]` : literal(input, 1, PYTHON);
  const printed = hasScores(input) ? "scores" : firstOutput(input);
  const end = [`print(output[${python(printed)}])`];
  const save = [`with open(${python(VECTORS)}, "wb") as file:`, `    file.write(output["${TEXTS_FILE}"].read())`];
  return lines(
    ...pythonImports(target, request),
    "import replicate  # pip install replicate",
    "",
    `client = replicate.Client(base_url=${python(target.base)}, api_token=${pythonKey(target)})`,
    "output = client.run(",
    `    ${python(`${OWNER}/${target.model}`)},`,
    `    input=${value},`,
    ")",
    ...(hasTextsFile(input) ? save : end),
  );
}

/** OpenAI's Python client: one call for each side, and the scores from the vectors. */
function openaiPython(target, request) {
  const { input } = request.body;
  const [queries, documents] = sides(input);
  if (input.encoding_format === "tokens") return "# OpenAI's API has no tokens: use another client.\n";
  const long = isLong(request);
  const code = [
    ...pythonImports(target, request),
    "from openai import OpenAI  # pip install openai",
    "",
    `client = OpenAI(base_url=${python(`${target.base}/v1`)}, api_key=${pythonKey(target)})`,
    ...(long ? [`request = ${pythonFile()}["input"]`] : []),
  ];
  for (const [name, texts] of Object.entries({ queries, documents })) {
    if (texts.length) code.push(`${name} = ${long ? pythonSide(input, name) : python(texts)}`);
  }
  code.push("", "# The client asks for base64 and decodes it itself. Vectors of this API have length 1.");
  const dropped = Object.keys(input).filter((name) => !OPENAI_INPUTS.includes(name));
  if (dropped.length) code.push(`# OpenAI's API does not have: ${dropped.join(", ")}.`);
  const options = "long_texts" in input ? { long_texts: input.long_texts } : {};
  if (queries.length) {
    const task = "task" in input ? { task: input.task } : {};
    code.push(...openaiCall("left", target, "queries", { input_type: "query", ...task, ...options }));
  }
  if (documents.length) code.push(...openaiCall("right", target, "documents", { input_type: "document", ...options }));
  if (queries.length && documents.length) {
    code.push(
      "for query, a in zip(queries, left.data):",
      "    for document, b in zip(documents, right.data):",
      "        score = 100 * sum(x * y for x, y in zip(a.embedding, b.embedding))",
      '        print(f"{score:6.2f}  {query[:40]!r}  {document[:40]!r}")',
    );
  } else {
    const name = queries.length ? "left" : "right";
    code.push(`print(len(${name}.data), ${name}.data[0].embedding[:4])`);
  }
  return lines(...code);
}

/** Replicate's client for Node: its baseUrl has the /v1. */
function replicateNode(target, request) {
  const { input } = request.body;
  const long = isLong(request);
  const key = target.keyRequired ? `process.env.${KEY}` : string(NO_KEY);
  const value = long ? `JSON.parse(await readFile("${FILE}", "utf8")).input` : literal(input, 1, JAVASCRIPT);
  const isOfFile = hasTextsFile(input);
  const used = [...(long || fileNames(input).length ? ["readFile"] : []), ...(isOfFile ? ["writeFile"] : [])];
  const printed = `console.log(output${hasScores(input) ? ".scores" : ""});`;
  return lines(
    "// npm install replicate, then: node request.mjs",
    ...(used.length ? [`import { ${used.join(", ")} } from "node:fs/promises";`] : []),
    'import Replicate from "replicate";',
    "",
    `const replicate = new Replicate({ auth: ${key}, baseUrl: ${string(`${target.base}/v1`)} });`,
    `const output = await replicate.run(${string(`${OWNER}/${target.model}`)}, {`,
    `  input: ${value},`,
    "});",
    isOfFile ? `await writeFile("${VECTORS}", output.${TEXTS_FILE});` : printed,
  );
}

function coherePython(target, request) {
  const long = isLong(request);
  const { model, query, documents, top_n: top, ...others } = request.body; // the client has no parameter for the others
  const extra = literal({ additional_body_parameters: others }, 1, PYTHON);
  return lines(
    ...pythonImports(target, request),
    "import cohere  # pip install cohere",
    "",
    `client = cohere.ClientV2(base_url=${python(target.base)}, api_key=${pythonKey(target)})`,
    ...(long ? [`request = ${pythonFile()}`] : []),
    `documents = ${long ? 'request["documents"]' : python(documents)}`,
    "answer = client.rerank(",
    `    model=${python(model)},`,
    `    query=${long ? 'request["query"]' : python(query)},`,
    "    documents=documents,",
    ...(top === undefined ? [] : [`    top_n=${top},`]),
    ...(Object.keys(others).length ? [`    request_options=${extra},`] : []),
    ")",
    "for result in answer.results:",
    '    print(f"{result.relevance_score:.4f}  {documents[result.index]!r}")',
  );
}

const PREDICTION = [
  ["cURL", curl],
  ["Replicate", replicatePython],
  ["OpenAI", openaiPython],
  ["Node.js", replicateNode],
];
// OpenAI's API has no files of texts.
const WITH_FILES = [
  ["cURL", curlWithFiles],
  ["Replicate", replicatePython],
  ["Node.js", replicateNode],
];
const RERANK = [
  ["cURL", curl],
  ["Cohere", coherePython],
];

function openaiCall(name, { model }, texts, body) {
  return [
    `${name} = client.embeddings.create(`,
    `    model=${python(model)},`,
    `    input=${texts},`,
    `    extra_body=${literal(body, 1, PYTHON)},`,
    ")",
  ];
}

const hasScores = (input) => sides(input).every((texts) => texts.length) && input.encoding_format !== "tokens";

function firstOutput(input) {
  const names = { float: "embeddings", tokens: "pieces" };
  return names[input.encoding_format ?? "float"] ?? "embeddings_base64";
}

function pythonImports({ keyRequired }, request) {
  const modules = [...(isLong(request) ? ["import json"] : []), ...(keyRequired ? ["import os"] : [])];
  return modules.length ? [...modules, ""] : [];
}

const pythonKey = ({ keyRequired }) => (keyRequired ? `os.environ["${KEY}"]` : python(NO_KEY));
const pythonFile = () => `json.load(open("${FILE}", encoding="utf-8"))`;
const pythonSide = (input, many) =>
  many in input ? `request["${many}"]` : `[request["${many === "queries" ? "query" : "document"}"]]`;
const lines = (...code) => `${code.join("\n")}\n`;

const PYTHON = {
  indent: "    ",
  trailing: ",",
  words: { true: "True", false: "False", null: "None" },
  file: ({ name }) => `open(${string(name)}, "rb")`,
};
const JAVASCRIPT = {
  indent: "  ",
  trailing: "",
  words: { true: "true", false: "false", null: "null" },
  file: ({ name }) => `await readFile(${string(name)})`,
};
const python = (value) => literal(value, 0, PYTHON);

/** A value as a literal of Python or JavaScript, one entry a line. A File is opened there. */
function literal(value, depth, language) {
  if (typeof value === "string") return string(value);
  if (value === null || typeof value === "boolean") return language.words[value];
  if (typeof value !== "object") return JSON.stringify(value);
  if (value instanceof File) return language.file(value);
  const isList = Array.isArray(value);
  const [open, close] = isList ? "[]" : "{}";
  const entries = isList
    ? value.map((item) => literal(item, depth + 1, language))
    : Object.entries(value).map(([name, item]) => `${string(name)}: ${literal(item, depth + 1, language)}`);
  if (!entries.length) return open + close;
  const [inner, outer] = [language.indent.repeat(depth + 1), language.indent.repeat(depth)];
  return `${open}\n${entries.map((entry) => inner + entry).join(",\n")}${language.trailing}\n${outer}${close}`;
}

// Characters that do not show or turn the direction of writing: pasted code must be what it looks like. Those beyond
// U+FFFF stay, because Python and JSON escape them differently.
const UNSEEN = /[\x7f-\xa0\u00ad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb]/g;

/** A string literal that JSON, JavaScript and Python read alike. */
export function string(text) {
  return JSON.stringify(text).replace(
    UNSEEN,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** A word of a POSIX shell. */
const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
