// One input from stdin ({ model, input, failing }) → its output by each way to run a model with Replicate's client.

import { text } from "node:stream/consumers";
import Replicate from "replicate";

const { model, input, failing } = JSON.parse(await text(process.stdin));
const replicate = new Replicate({ auth: process.env.GATEWAY_KEY, baseUrl: `${process.env.GATEWAY_URL}/v1` });
const stranger = new Replicate({ auth: "r8_wrong", baseUrl: replicate.baseUrl });

async function refused(call) {
  try {
    return { output: await call() };
  } catch (error) {
    return { message: error.message, status: error.response?.status };
  }
}

const [owner, name] = model.split("/");
const described = await replicate.models.get(owner, name);
const versions = await replicate.models.versions.list(owner, name);
const version = versions.results[0].id;
const poll = { mode: "poll", interval: 20 };
const statuses = [];

console.log(
  JSON.stringify({
    block: await replicate.run(model, { input }),
    block_for_seconds: await replicate.run(model, { input, wait: { mode: "block", timeout: 5 } }),
    poll: await replicate.run(model, { input, wait: poll }, (prediction) => statuses.push(prediction.status)),
    version: await replicate.run(`${model}:${version}`, { input }),
    base64: await replicate.run(model, { input: { ...input, encoding_format: "base64" } }),
    statuses,
    failing: await refused(() => replicate.run(model, { input: failing })),
    failing_poll: await refused(() => replicate.run(model, { input: failing, wait: poll })),
    invalid: await refused(() => replicate.run(model, { input: { query: 5 } })),
    unknown: await refused(() => replicate.run(`${owner}/no-such-model`, { input })),
    stranger: await refused(() => stranger.run(model, { input })),
    described: [described.owner, described.name, described.latest_version.id],
    versions: versions.results.map((one) => one.id),
    inputs: Object.keys(
      (await replicate.models.versions.get(owner, name, version)).openapi_schema.components.schemas.Input.properties,
    ),
  }),
);
