/** The gateway's OpenAPI document → the form's fields, in the model's own order and words. */

/** An input for one text, and the input for several: the form has one box for both. */
export const SIDES = [
  ["query", "queries"],
  ["document", "documents"],
];
/** An input for a file of texts, which goes without other texts. The answer is a file, too. */
export const TEXTS_FILE = "file";
const RERANK = "/v2/rerank";
const RERANK_FIELDS = ["top_n"]; // besides those of a prediction that it has, too

/** A schema with what it refers to (`$ref`, or Cog's `allOf` with one `$ref` and a default). */
export function resolve(schema, whole) {
  if (schema.allOf) return { ...resolve(schema.allOf[0], whole), ...schema, allOf: undefined };
  if (!schema.$ref) return schema;
  return resolve(
    schema.$ref
      .split("/")
      .slice(1)
      .reduce((node, name) => node[name], whole),
    whole,
  );
}

/**
 * The fields of the form. `kind` is texts, text, file, flag, choice, number or json; `modes` are those of the requests
 * that take the field; `one` is the input's name for a single text. Inputs that the model ignores are left out.
 */
export function fieldsOf(whole) {
  const { Input } = whole.components.schemas;
  const names = Object.keys(Input.properties).sort((a, b) => order(Input, a) - order(Input, b));
  const rerank = rerankProperties(whole);
  const fields = [];
  for (const name of names.filter((each) => !isIgnored(each, whole))) {
    const [one, many] =
      SIDES.find((side) => side.includes(name) && side.every((each) => each in Input.properties)) ?? [];
    if (many && fields.some((field) => field.name === many)) continue;
    const field = describe(many ?? name, one, Input, whole);
    const inRerank = rerank && (field.name === "queries" || Object.hasOwn(rerank, field.name));
    fields.push({ ...field, modes: inRerank ? ["prediction", "rerank"] : ["prediction"] });
  }
  for (const name of RERANK_FIELDS.filter((each) => rerank && each in rerank)) {
    fields.push({ ...describe(name, undefined, { properties: rerank }, whole), modes: ["rerank"] });
  }
  return fields;
}

/** The kinds of requests: predictions, and reranking where the gateway has it and the model has queries and documents. */
export function modesOf(whole) {
  return rerankProperties(whole) ? ["prediction", "rerank"] : ["prediction"];
}

/** The model as the document describes it, and whether requests need a key. */
export function modelOf(whole) {
  return { ...whole.info["x-model"], keyRequired: whole.security.some((scheme) => "key" in scheme) };
}

function rerankProperties(whole) {
  const route = whole.paths[RERANK];
  const texts = SIDES.flat().every((name) => name in whole.components.schemas.Input.properties);
  if (!route || !texts) return null;
  return resolve(route.post.requestBody.content["application/json"].schema, whole).properties;
}

const order = (schema, name) => schema.properties[name]["x-order"] ?? Infinity;

/** Prefix models embed every query with the same prompt. */
const isIgnored = (name, whole) => name === "task" && whole.info["x-model"].prompt === "prefix";

function describe(name, one, parent, whole) {
  const schema = resolve(parent.properties[name], whole);
  const single = one && resolve(parent.properties[one], whole);
  const required = (parent.required ?? []).includes(name);
  const isUnset = !required && (schema.default ?? null) === null; // a choice or flag that may be left out
  const choices = schema.enum ?? (isUnset && schema.type === "boolean" ? [true, false] : []);
  return {
    name,
    one,
    kind: choices.length ? "choice" : kindOf(schema),
    label: label(schema.title ?? name),
    help: (single ?? schema).description ?? "",
    default: schema.default ?? null,
    choices: choices.length && isUnset ? [null, ...choices] : choices,
    required,
    minimum: schema.minimum ?? null,
    maximum: schema.maximum ?? null,
    integer: schema.type === "integer",
  };
}

function kindOf(schema) {
  if (schema.type === "array" && schema.items?.type === "string") return "texts";
  if (schema.type === "string" && schema.format === "uri") return "file";
  const kinds = { string: "text", boolean: "flag", integer: "number", number: "number" };
  return kinds[schema.type] ?? "json";
}

function label(title) {
  const words = title.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}
