// { model, content } → the file of vectors for a file of texts that is uploaded first, or by run(), and the upload.

import { text } from "node:stream/consumers";
import Replicate from "replicate";

const { model, content } = JSON.parse(await text(process.stdin));
const replicate = new Replicate({ auth: process.env.GATEWAY_KEY, baseUrl: `${process.env.GATEWAY_URL}/v1` });
const file = () => new File([content], "texts.jsonl", { type: "application/jsonl" });

async function bytes(output) {
  const parts = [];
  for await (const part of output.file) parts.push(part);
  return Buffer.concat(parts).toString("base64");
}

const uploaded = await replicate.files.create(file(), { kind: "test" });
const input = { file: uploaded.urls.get };
const listed = (await replicate.files.list()).results.map((one) => one.id);
const again = await replicate.files.get(uploaded.id);
const fromUpload = await bytes(await replicate.run(model, { input }));

console.log(
  JSON.stringify({
    uploaded,
    again,
    listed: listed.includes(uploaded.id),
    deleted: await replicate.files.delete(uploaded.id),
    upload: fromUpload,
    blob: await bytes(await replicate.run(model, { input: { file: file() } })),
  }),
);
