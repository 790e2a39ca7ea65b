/** A map of all texts: their vectors in two dimensions, to hover, to step through by keyboard and to zoom. */

import { nameOf, unit } from "./answer.js";
import { element, number, plainKey, shorten, svg } from "./dom.js";
import { pca } from "./pca.js";

const [MAX_TEXTS, MAX_NUMBERS] = [1000, 2 ** 21]; // in the vectors of all texts
const MAX_LABEL = 600;
const [WIDTH, HEIGHT, MARGIN] = [640, 420, 24];
const MAX_ZOOM = 40;
const STEP = 1.5; // of one press of + or -

/** The map of an answer that has vectors; it fills its place when it is computed. */
export function map(answer) {
  const place = element("div", {}, element("p", { class: "note" }, "Computing the map …"));
  const count = Math.min(answer.texts.length, MAX_TEXTS, Math.floor(MAX_NUMBERS / answer.vectors[0].length));
  pca(unit(answer.vectors.slice(0, count))).then((components) =>
    place.replaceChildren(...draw(answer, count, components)),
  );
  return place;
}

function draw(answer, count, { points, shares }) {
  const places = fit(points);
  const readout = element(
    "p",
    { class: "readout", "aria-live": "polite" },
    "Point at a text, or step with the arrow keys.",
  );
  const marks = places.map(([x, y], index) => mark(answer, index, x, y, count));
  const picture = svg(
    "svg",
    { class: "map", role: "group", "aria-label": `Map of ${number(count)} texts`, viewBox: `0 0 ${WIDTH} ${HEIGHT}` },
    [...marks.slice(answer.queries.length), ...marks.slice(0, answer.queries.length)], // queries are few: on top
  );
  const show = (node) => {
    const index = marks.indexOf(node);
    if (index < 0) return;
    picture.querySelector(".chosen")?.classList.remove("chosen");
    node.classList.add("chosen");
    const name = element("strong", {}, `${nameOf(answer, index)}: `);
    readout.replaceChildren(name, shorten(answer.texts[index], MAX_LABEL));
  };
  const view = zoomable(picture, marks);
  picture.addEventListener("pointerover", (event) => show(event.target));
  picture.addEventListener("focusin", (event) => {
    show(event.target);
    if (marks.includes(event.target)) view.reveal(placeOf(event.target));
  });
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[plainKey(event)];
    const factor = { "+": STEP, "=": STEP, "-": 1 / STEP }[plainKey(event)];
    if (factor) view.zoom(factor, placeOf(event.target));
    if (step) {
      event.preventDefault();
      const next = marks[(marks.indexOf(event.target) + step + count) % count];
      marks.forEach((each) => each.setAttribute("tabindex", each === next ? 0 : -1));
      next.focus();
    }
  });
  const button = (label, words, action) =>
    element("button", { type: "button", "aria-label": words, onclick: action }, label);
  const share = Math.round(100 * (shares[0] + shares[1]));
  const left = answer.texts.length - count;
  return [
    element(
      "div",
      { class: "bar-of-map" },
      element("span", { class: "legend" }, key("query"), "queries", key("document"), "documents"),
      button("+", "Zoom in", () => view.zoom(STEP)),
      button("−", "Zoom out", () => view.zoom(1 / STEP)),
      button("Reset", "Show the whole map", view.reset),
    ),
    picture,
    readout,
    element(
      "p",
      { class: "note" },
      `The two main directions of the vectors (PCA) hold ${share} % of their variance: near points may still differ in the rest.`,
      left ? ` The map shows the first ${number(count)} texts and leaves out ${number(left)}.` : null,
    ),
  ];
}

/** Queries are diamonds, documents circles. */
function mark(answer, index, x, y, count) {
  const isQuery = index < answer.queries.length;
  const label = `${nameOf(answer, index)}: ${shorten(answer.texts[index], 120)}`;
  const attributes = {
    role: "img",
    "aria-label": label,
    tabindex: index ? -1 : 0,
    class: isQuery ? "query" : "document",
  };
  const size = count > 300 ? 3 : 5;
  const shape = isQuery
    ? svg("path", { ...attributes, d: diamond(size * 1.5) })
    : svg("circle", { ...attributes, r: size });
  shape.dataset.x = x;
  shape.dataset.y = y;
  return shape;
}

const diamond = (size) => `M 0 ${-size} L ${size} 0 L 0 ${size} L ${-size} 0 Z`;

function key(kind) {
  const shape = kind === "query" ? svg("path", { class: kind, d: diamond(7) }) : svg("circle", { class: kind, r: 5 });
  return svg("svg", { viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true" }, shape);
}

const placeOf = (node) => [Number(node.dataset.x), Number(node.dataset.y)];

/** Coordinates → places in the picture, with the same scale on both axes. */
function fit(points) {
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const middle = (values) => (Math.max(...values) + Math.min(...values)) / 2;
  const spread = (values) => Math.max(...values) - Math.min(...values);
  const scale = Math.min((WIDTH - 2 * MARGIN) / (spread(xs) || 1), (HEIGHT - 2 * MARGIN) / (spread(ys) || 1));
  const [x0, y0] = [middle(xs), middle(ys)];
  return points.map(([x, y]) => [WIDTH / 2 + scale * (x - x0), HEIGHT / 2 - scale * (y - y0)]);
}

/** Zooming with buttons and pinch, moving by dragging. Marks keep their size. */
function zoomable(picture, marks) {
  let [factor, left, top] = [1, 0, 0];
  const update = () => {
    left = Math.min(Math.max(left, 0), WIDTH - WIDTH / factor);
    top = Math.min(Math.max(top, 0), HEIGHT - HEIGHT / factor);
    picture.setAttribute("viewBox", `${left} ${top} ${WIDTH / factor} ${HEIGHT / factor}`);
    for (const node of marks) {
      node.setAttribute("transform", `translate(${node.dataset.x} ${node.dataset.y}) scale(${1 / factor})`);
    }
    picture.dataset.zoom = factor.toFixed(2);
    picture.classList.toggle("zoomed", factor > 1);
  };
  const zoom = (times, [x, y] = [left + WIDTH / factor / 2, top + HEIGHT / factor / 2]) => {
    const next = Math.min(Math.max(factor * times, 1), MAX_ZOOM);
    [left, top] = [x - ((x - left) * factor) / next, y - ((y - top) * factor) / next];
    factor = next;
    update();
  };
  const reset = () => {
    [factor, left, top] = [1, 0, 0];
    update();
  };
  const reveal = ([x, y]) => {
    const isInside = x >= left && x <= left + WIDTH / factor && y >= top && y <= top + HEIGHT / factor;
    if (isInside) return;
    [left, top] = [x - WIDTH / factor / 2, y - HEIGHT / factor / 2];
    update();
  };
  const place = (event) => {
    const box = picture.getBoundingClientRect();
    return [
      left + ((event.clientX - box.left) / box.width) * (WIDTH / factor),
      top + ((event.clientY - box.top) / box.height) * (HEIGHT / factor),
    ];
  };
  picture.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return; // the page scrolls; pinching on a touchpad comes with ctrlKey
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 100), place(event));
    },
    { passive: false },
  );
  let held = null;
  picture.addEventListener("pointerdown", (event) => {
    held = factor > 1 ? place(event) : null;
  });
  picture.addEventListener("pointermove", (event) => {
    if (!held || !event.buttons) return;
    const [x, y] = place(event);
    [left, top] = [left + held[0] - x, top + held[1] - y];
    update();
  });
  update();
  return { zoom, reset, reveal };
}
