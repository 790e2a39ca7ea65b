/** Elements and wording. Texts become text nodes and attributes, never HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Attributes that are null or false are left out, functions become listeners (`onclick`). */
export function element(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--"))
      node.style.setProperty(name, value); // the policy forbids style attributes
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

/** A sentence with `code` as code elements. */
export function sentence(text) {
  const ended = /[.!?…]$/.test(text) ? text : `${text}.`;
  return ended.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

/** Tabs with panels as in the ARIA pattern. `panels`: [label, content]; a function makes its content when first shown. */
export function tabs(name, label, panels) {
  const list = element("div", { role: "tablist", "aria-label": label });
  const bodies = panels.map(([title, content], index) => {
    const [tab, panel] = [`${name}-tab-${index}`, `${name}-panel-${index}`];
    list.append(
      element(
        "button",
        { type: "button", role: "tab", id: tab, "aria-controls": panel, onclick: () => select(index) },
        title,
      ),
    );
    const filled = typeof content === "function" ? [] : [content];
    return element("div", { role: "tabpanel", id: panel, "aria-labelledby": tab, hidden: true }, filled);
  });
  const buttons = [...list.children];
  const select = (chosen) => {
    buttons.forEach((button, index) => {
      button.setAttribute("aria-selected", index === chosen);
      button.tabIndex = index === chosen ? 0 : -1;
      bodies[index].hidden = index !== chosen;
    });
    const content = panels[chosen][1];
    if (typeof content === "function" && !bodies[chosen].hasChildNodes()) bodies[chosen].append(content());
  };
  list.addEventListener("keydown", (event) => {
    const [now, last] = [buttons.indexOf(document.activeElement), buttons.length - 1];
    const places = {
      ArrowRight: now === last ? 0 : now + 1,
      ArrowLeft: now === 0 ? last : now - 1,
      Home: 0,
      End: last,
    };
    const next = places[plainKey(event)];
    if (next === undefined) return;
    event.preventDefault();
    select(next);
    buttons[next].focus();
  });
  select(0);
  return element("div", { class: "tabs" }, list, bodies);
}

/** A list that shows `step` items, and a button for the next ones. `make(index)` returns the item's element. */
export function inParts(list, count, step, make, noun) {
  let shown = 0;
  const rest = element("button", { type: "button", class: "more", onclick: () => add() });
  const add = () => {
    const end = Math.min(count, shown + step);
    const added = Array.from({ length: end - shown }, (_, offset) => make(shown + offset));
    list.append(...added);
    if (shown) (added[0].querySelector("summary") ?? added[0]).focus();
    shown = end;
    rest.hidden = shown === count;
    rest.textContent = `Show ${number(Math.min(step, count - shown))} more of ${number(count)} ${noun}`;
  };
  add();
  return rest;
}

export const number = (value) => value.toLocaleString("en-US");
export const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;
export const shorten = (text, length) => (text.length <= length ? text : `${beginning(text, length - 1).trimEnd()}…`);

/** The first `length` code units of a text, without half of a character at the end. */
export const beginning = (text, length) => text.slice(0, length).replace(/[\ud800-\udbff]$/, "");

/** A number of bytes, in words. */
export function bytes(count) {
  if (count < 1024) return plural(count, "byte", "bytes");
  const [size, unit] = count < 2 ** 20 ? [count / 1024, "KiB"] : [count / 2 ** 20, "MiB"];
  return `${number(Number(size.toFixed(size < 10 ? 1 : 0)))} ${unit}`;
}

/** The key of an event; "" with Alt, Ctrl or ⌘, which are the browser's. */
export const plainKey = (event) => (event.altKey || event.ctrlKey || event.metaKey ? "" : event.key);

/** A time in milliseconds, in words. */
export function duration(milliseconds) {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(milliseconds < 10_000 ? 2 : 1)} s`;
  return `${milliseconds.toFixed(milliseconds < 10 ? 2 : milliseconds < 100 ? 1 : 0)} ms`;
}
