/** An answer → what the results show: scores, map, vectors, JSON, counts and times. */

import { length, nameOf, similarities } from "./answer.js";
import { duration, element, inParts, number, plural, sentence, shorten, tabs } from "./dom.js";
import { fileView } from "./fileview.js";
import { heatMap, scaleOf } from "./heatmap.js";
import { download, listing, readable } from "./listing.js";
import { map } from "./map.js";

const [RANKED, RANKED_OF_SEVERAL, QUERIES, OPEN_QUERIES, VECTORS] = [100, 10, 20, 4, 50]; // shown at first
const MAX_COMPARED = 200; // texts of one side
const FIRST_NUMBERS = 4;
const MAX_TEXT = 300;
const MAX_PIECES = 200;

/** One line that says what has come; screen readers read it out. */
export function summary(answer, milliseconds) {
  const sides = [
    answer.queries.length ? plural(answer.queries.length, "query", "queries") : "",
    answer.documents.length ? plural(answer.documents.length, "document", "documents") : "",
    answer.file ? countOf(answer.metrics) : "",
  ];
  const tokens = answer.metrics.input_tokens;
  const read = tokens === undefined ? "" : `, ${plural(tokens, "token", "tokens")}`;
  return `Done: ${sides.filter(Boolean).join(" × ")}${read}, in ${duration(milliseconds)}.`;
}

const countOf = ({ texts }) => (texts === undefined ? "one file" : plural(texts, "text", "texts"));

/** Everything about an answer, in tabs whose contents are made when they are first shown. */
export function results(answer, response, model) {
  const panels = answer.file ? [["File", () => fileView(answer, model)]] : [["Scores", () => scores(answer, model)]];
  if (answer.vectors?.length > 1) panels.push(["Map", () => map(answer)]);
  if (answer.vectors) panels.push(["Vectors", () => vectors(answer)]);
  if (answer.pieces) panels.unshift(["Tokens", () => tokens(answer)]);
  panels.push(["JSON", () => json(response)]);
  const shown = answer.pieces && !answer.scores ? panels.filter(([title]) => title !== "Scores") : panels;
  return element("div", {}, warnings(answer), tabs("answer", "Results", shown), facts(answer, response.milliseconds));
}

function scores(answer, model) {
  if (answer.ranking) return rerankedList(answer);
  if (!answer.scores) return ofOneSide(answer, model);
  const { queries, documents } = answer;
  if (queries.length === 1) {
    const title = element("h2", { title: queries[0] }, shorten(queries[0], MAX_TEXT));
    return element("div", {}, title, ranking(answer.scores[0], documents, RANKED), legend(answer.scores, model));
  }
  const each = element("div", { class: "each" });
  const rest = inParts(each, queries.length, QUERIES, (index) => ofQuery(answer, index), "queries");
  const caption = "Queries (rows) × documents (columns)";
  const whole = heatMap(answer.scores, queries, documents, caption, ["query", "document"]);
  return element("div", {}, whole, legend(answer.scores, model), each, rest);
}

/** One query among several: its ranking is made when it is opened. */
function ofQuery(answer, index) {
  const query = answer.queries[index];
  const summary = element("summary", { title: query }, element("small", {}, `${index + 1} `), shorten(query, MAX_TEXT));
  const details = element("details", { open: index < OPEN_QUERIES }, summary);
  const fill = () => {
    if (!details.open || details.children.length > 1) return;
    details.append(ranking(answer.scores[index], answer.documents, RANKED_OF_SEVERAL, answer.scores));
  };
  details.addEventListener("toggle", fill);
  fill();
  return details;
}

/** Documents by their score with one query, the best first; equal scores keep the documents' order. */
function ranking(row, documents, shown, all = [row]) {
  const { share } = scaleOf(all);
  const order = row.map((_, index) => index).sort((a, b) => row[b] - row[a] || a - b);
  return rankedList(order, shown, documents, (index) => [row[index].toFixed(2), share(row[index])]);
}

function rerankedList(answer) {
  const byIndex = new Map(answer.ranking.map(({ index, score }) => [index, score]));
  const list = rankedList([...byIndex.keys()], RANKED, answer.documents, (index) => {
    return [byIndex.get(index).toFixed(4), Math.max(0, byIndex.get(index))];
  });
  const left = answer.documents.length - byIndex.size;
  const note = `relevance_score is the cosine of query and document${left ? `; ${number(left)} are not in the answer` : ""}.`;
  const query = element("h2", { title: answer.queries[0] }, shorten(answer.queries[0], MAX_TEXT));
  return element("div", {}, query, list, element("p", { class: "note" }, note));
}

/** `score(index)` returns the words and the share of the bar. */
function rankedList(order, shown, documents, score) {
  const list = element("ol", { class: "ranking", role: "list" });
  const rest = inParts(
    list,
    order.length,
    shown,
    (place) => {
      const [words, share] = score(order[place]);
      const text = documents[order[place]];
      return element(
        "li",
        { tabindex: -1 },
        element("span", { class: "score" }, words),
        element("div", { class: "bar", "--share": `${Math.round(100 * share)}%` }),
        element("p", { title: text }, element("small", {}, `#${order[place] + 1} `), shorten(text, MAX_TEXT)),
      );
    },
    "documents",
  );
  return element("div", {}, list, rest);
}

/** Texts of one side have no scores from the API: they are compared by their vectors. */
function ofOneSide(answer, model) {
  const { texts } = answer;
  const [one, many, other] = answer.queries.length
    ? ["query", "queries", "document"]
    : ["document", "documents", "query"];
  if (texts.length === 1) {
    return element("p", { class: "note" }, `One vector: see Vectors. Add a ${other} to get a score.`);
  }
  const near = similarities(answer.vectors.slice(0, MAX_COMPARED));
  let best = [0, 1];
  near.forEach((row, a) => {
    for (let b = a + 1; b < row.length; b++) if (row[b] > near[best[0]][best[1]]) best = [a, b];
  });
  const [a, b] = best;
  const few = near.length < texts.length ? ` of the first ${number(near.length)}` : "";
  const closest = element(
    "p",
    { class: "note closest" },
    `Closest${few}: `,
    element("strong", {}, near[a][b].toFixed(2)),
    ` for “${shorten(texts[a], 100)}” and “${shorten(texts[b], 100)}”.`,
  );
  const compared = texts.slice(0, near.length);
  const caption = `The ${many} with each other, by their vectors`;
  return element("div", {}, closest, heatMap(near, compared, compared, caption, [one, one]), legend(near, model));
}

function legend(rows, model) {
  const { low, high } = scaleOf(rows);
  const lines = [`Scores are 100 × cosine. Bars and colours run from ${low} to ${high}.`];
  if (model.prompt === "prefix") {
    lines.push(
      " Scores of this model lie between 70 and 100 even for unrelated texts, because it was trained with a low " +
        "temperature: compare them with each other, not with a fixed threshold.",
    );
  }
  return element("p", { class: "note legend-of-scores" }, lines);
}

function vectors(answer) {
  const [body, { texts }] = [element("tbody"), answer];
  const size = answer.vectors[0].length;
  const row = (index) => {
    const vector = answer.vectors[index];
    const first = Array.from(vector.slice(0, FIRST_NUMBERS), (value) => element("span", {}, value.toFixed(4)));
    return element(
      "tr",
      { tabindex: -1 },
      textCell(answer, index),
      tokenCell(answer, index),
      element("td", { class: "number" }, length(vector).toFixed(4)),
      element("td", { class: "numbers" }, first, " …"),
    );
  };
  const rest = inParts(body, texts.length, VECTORS, row, "vectors");
  const heads = ["Text", "Tokens", "Length", `First ${Math.min(FIRST_NUMBERS, size)} numbers`];
  const words = `${plural(texts.length, "vector", "vectors")} of ${number(size)} numbers each.`;
  return element("div", {}, element("p", { class: "note" }, words), scrollTable("Vectors", heads, body), rest);
}

/** What the model reads of each text. */
function tokens(answer) {
  const body = element("tbody");
  const row = (index) => {
    const pieces = answer.pieces[index];
    const marks = pieces.slice(0, MAX_PIECES).map((piece, place) => {
      return element("span", { title: `id ${answer.tokenIds?.[index]?.[place]}` }, piece);
    });
    const left = pieces.length - marks.length;
    return element(
      "tr",
      { tabindex: -1 },
      textCell(answer, index),
      tokenCell(answer, index),
      element("td", { class: "pieces" }, marks, left ? ` … ${number(left)} more` : null),
    );
  };
  const rest = inParts(body, answer.texts.length, VECTORS, row, "texts");
  return element("div", {}, scrollTable("Tokens", ["Text", "Tokens", "What the model reads"], body), rest);
}

function textCell(answer, index) {
  const text = answer.texts[index];
  return element("th", { scope: "row" }, nameOf(answer, index), element("small", { title: text }, shorten(text, 60)));
}

function tokenCell(answer, index) {
  const count = answer.tokens ? number(answer.tokens[index]) : "";
  const cut = answer.truncated.has(index) ? element("small", { class: "cut" }, "cut") : null;
  return element("td", { class: "number" }, count, cut);
}

function scrollTable(label, heads, body) {
  const head = element(
    "thead",
    {},
    element(
      "tr",
      {},
      heads.map((words) => element("th", { scope: "col" }, words)),
    ),
  );
  return element(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    element("table", {}, head, body),
  );
}

function json({ json: value, text }) {
  const { text: shown, isWhole } = readable(value, text.length);
  const save = element(
    "button",
    { type: "button", id: "download", onclick: () => download("answer.json", text) },
    "Download",
  );
  const note = isWhole ? null : element("p", { class: "note" }, "Shortened here. Copy and Download have all of it.");
  return element("div", {}, note, listing(shown, "The API’s answer", { content: text }), save);
}

function warnings(answer) {
  const found = [...answer.warnings];
  const cut = answer.truncated.size;
  if (cut && !found.some((warning) => warning.includes(" cut "))) {
    found.push(
      `${number(cut)} of ${plural(answer.texts.length, "text", "texts")} exceeded the model’s limit and were cut`,
    );
  }
  return found.map((warning) => element("p", { class: "warning" }, sentence(warning)));
}

const FACTS = [
  ["texts", "Texts", number],
  ["input_tokens", "Tokens", number],
  ["truncated", "Cut texts", number],
  ["batch_texts", "Texts in the shared batch", number],
  ["tokenize_ms", "Tokenizing", duration],
  ["queued_ms", "Waiting", duration],
  ["model_ms", "Model", duration],
  ["encode_ms", "Encoding", duration],
  ["predict_time", "Prediction", (seconds) => duration(1000 * seconds)],
];

/** The server's metrics, and the round trip that this page measured. */
function facts(answer, milliseconds) {
  const entries = FACTS.filter(([name]) => typeof answer.metrics[name] === "number").map(([name, label, words]) => {
    return [label, words(answer.metrics[name])];
  });
  entries.push(["Round trip", duration(milliseconds)]);
  const shown = entries.map(([label, words]) => element("div", {}, element("dt", {}, label), element("dd", {}, words)));
  return element("dl", { class: "facts" }, shown);
}
