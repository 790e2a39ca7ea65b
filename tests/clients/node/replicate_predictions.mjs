// The life of predictions through Replicate's client: created, fetched, waited for, canceled, aborted, listed.

import { text } from "node:stream/consumers";
import Replicate from "replicate";

const { model, input, long } = JSON.parse(await text(process.stdin));
const replicate = new Replicate({ auth: process.env.GATEWAY_KEY, baseUrl: `${process.env.GATEWAY_URL}/v1` });

const created = await replicate.predictions.create({ model, input });
const waited = await replicate.wait(created, { interval: 20 });
const fetched = await replicate.predictions.get(created.id);
const blocking = await replicate.predictions.create({ version: created.version, input, wait: true });

const running = await replicate.predictions.create({ model, input: long });
const canceled = await replicate.predictions.cancel(running.id);

// An AbortSignal ends run() and cancels the prediction.
const abort = new AbortController();
const seen = [];
const aborted = await replicate.run(
  model,
  { input: long, signal: abort.signal, wait: { mode: "poll", interval: 20 } },
  (prediction) => {
    seen.push({ id: prediction.id, status: prediction.status });
    abort.abort();
  },
);
const after_abort = (await replicate.predictions.get(seen.at(-1).id)).status;

// More than a page, newest first.
const many = [];
for (let index = 0; index < 55; index++) many.push((await replicate.predictions.create({ model, input })).id);
const listed = [];
for await (const page of replicate.paginate(replicate.predictions.list)) {
  listed.push(...page.map((one) => one.id));
  if (listed.length >= many.length) break;
}

console.log(
  JSON.stringify({
    created, waited, fetched, blocking, canceled,
    aborted: { output: aborted, statuses: seen.map((one) => one.status), after_abort },
    many, listed,
  }),
);
