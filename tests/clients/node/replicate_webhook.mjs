// A webhook that is delivered to a server of ours, and what validateWebhook says of it and of a changed one.

import { once } from "node:events";
import { createServer } from "node:http";
import { text } from "node:stream/consumers";
import Replicate, { validateWebhook } from "replicate";

const { model, input } = JSON.parse(await text(process.stdin));
const replicate = new Replicate({ auth: process.env.GATEWAY_KEY, baseUrl: `${process.env.GATEWAY_URL}/v1` });

const server = createServer().listen(0, "127.0.0.1");
await once(server, "listening");
const delivery = once(server, "request");
const { id } = await replicate.predictions.create({
  model,
  input,
  webhook: `http://127.0.0.1:${server.address().port}/hook`,
  webhook_events_filter: ["completed"],
});

const [request, response] = await delivery;
const body = await text(request);
response.end();
server.close();

const { key } = await replicate.webhooks.default.secret.get();
const told = JSON.parse(body);
const forged = body.replace("succeeded", "canceled");
console.log(
  JSON.stringify({
    same: told.id === id,
    status: told.status,
    embeddings: told.output.embeddings,
    valid: await validateWebhook({ headers: request.headers, body }, key),
    forged: await validateWebhook({ headers: request.headers, body: forged }, key),
  }),
);
