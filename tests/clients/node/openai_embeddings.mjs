// Texts from stdin ({ model, queries, documents }) → their vectors, in each way that OpenAI's client has.

import { text } from "node:stream/consumers";
import OpenAI from "openai";

const { model, queries, documents } = JSON.parse(await text(process.stdin));
const client = new OpenAI({ baseURL: `${process.env.GATEWAY_URL}/v1`, apiKey: process.env.GATEWAY_KEY });

const vectors = (answer) => answer.data.map((one) => one.embedding);
const embed = async (options) => vectors(await client.embeddings.create({ model, ...options }));

// The client asks for base64 and unpacks it, unless it is told otherwise.
const batch = await client.embeddings.create({ model, input: documents });
const models = [];
for await (const one of client.models.list()) models.push(one.id);
const { data, response, request_id } = await client.embeddings.create({ model, input: documents[0] }).withResponse();

console.log(
  JSON.stringify({
    batch: vectors(batch),
    indices: batch.data.map((one) => one.index),
    usage: batch.usage,
    single: vectors(data),
    request_ids: [request_id, response.headers.get("x-request-id"), data._request_id],
    float: await embed({ input: documents, encoding_format: "float" }),
    base64: await embed({ input: documents, encoding_format: "base64" }),
    suffix: await embed({ input: queries, model: `${model}:query` }),
    field: await embed({ input: queries, input_type: "query" }),
    task: await embed({ input: queries, model: `${model}:query:NQ` }),
    environment: vectors(await new OpenAI().embeddings.create({ model, input: documents[0] })),
    models,
    retrieved: await client.models.retrieve(model),
  }),
);
