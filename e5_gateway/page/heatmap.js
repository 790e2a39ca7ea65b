/** Scores as a heat map: a table where a person can read it, a picture with one pixel a score where it is large. */

import { element, number, plainKey, plural, shorten } from "./dom.js";

const MAX_TABLE = 24; // rows, and columns
const MAX_HEADING = 60; // characters
const MAX_TEXT = 200;
const [MIN_CELL, MAX_CELL, MAX_SIDE] = [2, 24, 1000]; // CSS pixels of a cell, and of the picture if that fits
const NARROW = 60;
const PICTURES = new WeakMap(); // the scores of each canvas

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  document.querySelectorAll(".canvas canvas").forEach(paint);
});

/**
 * The scores between which bars and colours run. Where none is below 60, they begin there: the scores of prefix models
 * lie between 70 and 100, because of the low temperature of their training (model card of intfloat/e5-small).
 */
export function scaleOf(rows) {
  let lowest = Infinity;
  for (const row of rows) for (const score of row) lowest = Math.min(lowest, score);
  const low = lowest >= NARROW ? NARROW : 0;
  return { low, high: 100, share: (score) => Math.min(1, Math.max(0, (score - low) / (100 - low))) };
}

/** `rowTexts` and `columnTexts` name the rows and columns of `scores`; `kinds` says what they are, in singular. */
export function heatMap(scores, rowTexts, columnTexts, caption, kinds) {
  const isTable = scores.length <= MAX_TABLE && columnTexts.length <= MAX_TABLE;
  return isTable
    ? table(scores, rowTexts, columnTexts, caption)
    : picture(scores, rowTexts, columnTexts, caption, kinds);
}

function table(scores, rowTexts, columnTexts, caption) {
  const { share } = scaleOf(scores);
  const heading = (text, scope, index) =>
    element(
      "th",
      { scope, title: shorten(text, MAX_TEXT * 5) },
      element("span", {}, element("small", {}, `${index + 1} `), shorten(text, MAX_HEADING)),
    );
  const head = element(
    "tr",
    {},
    element("td"),
    columnTexts.map((text, index) => heading(text, "col", index)),
  );
  const rows = scores.map((row, index) =>
    element(
      "tr",
      {},
      heading(rowTexts[index], "row", index),
      row.map((score) => element("td", { "--share": `${Math.round(100 * share(score))}%` }, score.toFixed(1))),
    ),
  );
  const all = element("table", { class: "heat" }, element("caption", {}, caption), element("thead", {}, head));
  all.append(element("tbody", {}, rows));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Heat map" }, all);
}

function picture(scores, rowTexts, columnTexts, caption, [rowKind, columnKind]) {
  const [height, width] = [scores.length, columnTexts.length];
  const [cellHeight, cellWidth] = [height, width].map((count) => {
    return Math.max(MIN_CELL, Math.min(MAX_CELL, Math.floor(MAX_SIDE / count)));
  });
  const canvas = element("canvas", {
    width,
    height,
    tabindex: 0,
    role: "img",
    "aria-label": `Heat map of ${number(height)} × ${number(width)} scores. Arrow keys read them.`,
  });
  [canvas.style.width, canvas.style.height] = [`${width * cellWidth}px`, `${height * cellHeight}px`];
  PICTURES.set(canvas, scores);
  paint(canvas);
  const frame = element("div", { class: "frame", hidden: true });
  const readout = element(
    "p",
    { class: "readout", "aria-live": "polite" },
    "Point at a score, or step with the arrow keys.",
  );
  let [row, column] = [0, 0];
  const show = (nextRow, nextColumn) => {
    row = Math.min(Math.max(nextRow, 0), height - 1);
    column = Math.min(Math.max(nextColumn, 0), width - 1);
    frame.hidden = false;
    [frame.style.left, frame.style.top] = [`${column * cellWidth}px`, `${row * cellHeight}px`];
    [frame.style.width, frame.style.height] = [`${cellWidth}px`, `${cellHeight}px`];
    const names = [`${rowKind} ${row + 1}`, `${columnKind} ${column + 1}`];
    readout.replaceChildren(
      element("strong", {}, `${scores[row][column].toFixed(2)}: `),
      `${names[0]} “${shorten(rowTexts[row], MAX_TEXT)}” × ${names[1]} “${shorten(columnTexts[column], MAX_TEXT)}”`,
    );
  };
  canvas.addEventListener("pointermove", (event) => {
    show(Math.floor(event.offsetY / cellHeight), Math.floor(event.offsetX / cellWidth));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[plainKey(event)];
    if (!step) return;
    event.preventDefault();
    show(row + step[0], column + step[1]);
    frame.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  const words = `${caption}: ${plural(height, "row", "rows")} × ${plural(width, "column", "columns")}`;
  return element(
    "div",
    {},
    element("p", { class: "note" }, words),
    element("div", { class: "scroll picture" }, element("div", { class: "canvas" }, canvas, frame)),
    readout,
  );
}

/** One pixel a score, in the colours of the table's cells. */
function paint(canvas) {
  const scores = PICTURES.get(canvas);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const style = getComputedStyle(document.documentElement);
  const [low, high] = ["--cell", "--heat"].map((name) => {
    context.fillStyle = style.getPropertyValue(name);
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  });
  const { share } = scaleOf(scores);
  const image = context.createImageData(canvas.width, canvas.height);
  let place = 0;
  for (const row of scores) {
    for (const score of row) {
      const part = share(score);
      for (let channel = 0; channel < 3; channel++) {
        image.data[place++] = low[channel] + part * (high[channel] - low[channel]);
      }
      image.data[place++] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}
