/** The answer to a file of texts: a Parquet file to download. */

import { VECTORS, blobOf, sizeOf } from "./dataurl.js";
import { bytes, element, number, plural, sentence } from "./dom.js";
import { download } from "./listing.js";

export function fileView({ file, metrics }, model) {
  const vectors = metrics.texts === undefined ? "Vectors" : plural(metrics.texts, "vector", "vectors");
  const title = `${vectors} of ${number(model.dimensions)} dimensions, ${bytes(sizeOf(file))}`;
  const error = element("p", { class: "error", role: "alert", hidden: true });
  const save = async () => {
    try {
      download(VECTORS, await blobOf(file));
    } catch (problem) {
      error.textContent = `The file cannot be saved: ${problem.message}`;
      error.hidden = false;
    }
  };
  const columns = "A row has a text’s `id`, `vector`, `tokens`, `truncated` and `row`, its place in the file.";
  return element(
    "div",
    {},
    element("h2", {}, title),
    element("p", { class: "note" }, sentence(`${columns} \`pandas.read_parquet("${VECTORS}")\` reads it.`)),
    element("button", { type: "button", id: "save-vectors", onclick: save }, `Download ${VECTORS}`),
    error,
  );
}
