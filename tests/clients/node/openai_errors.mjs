// Requests that are refused → what OpenAI's client throws for each.

import { text } from "node:stream/consumers";
import OpenAI from "openai";

const { model } = JSON.parse(await text(process.stdin));
const baseURL = `${process.env.GATEWAY_URL}/v1`;
const client = new OpenAI({ baseURL, apiKey: process.env.GATEWAY_KEY });
const stranger = new OpenAI({ baseURL, apiKey: "sk-wrong" });

const thrown = {};

async function refused(name, call) {
  try {
    await call();
  } catch (error) {
    const { status, code, param, type, message, requestID } = error;
    thrown[name] = { kind: error.constructor.name, status, code, param, type, message, requestID };
  }
}

await refused("empty", () => client.embeddings.create({ model, input: "" }));
await refused("empty in a list", () => client.embeddings.create({ model, input: ["a", ""] }));
await refused("token ids", () => client.embeddings.create({ model, input: [1, 2, 3] }));
await refused("dimensions", () => client.embeddings.create({ model, input: "a", dimensions: 64 }));
await refused("model", () => client.embeddings.create({ model: "text-embedding-3-small", input: "a" }));
await refused("retrieve", () => client.models.retrieve("text-embedding-3-small"));
await refused("key", () => stranger.embeddings.create({ model, input: "a" }));

console.log(JSON.stringify(thrown));
