/** Code and JSON to read, copy and download. */

import { isDataUrl } from "./dataurl.js";
import { beginning, element, number } from "./dom.js";

const MAX_WHOLE = 12_000; // characters of JSON that a page shows without becoming slow to scroll
const [MAX_ITEMS, MAX_NUMBERS, MAX_CHARACTERS] = [8, 6, 120];
const COPIED_MILLISECONDS = 1500;

// Of Python, JavaScript and JSON together.
const TOKENS =
  /(?<string>"(?:[^"\\\n]|\\.)*")|(?<comment>(?:#|\/\/) .*)|(?<keyword>\b(?:import|from|for|in|as|const|await|new|True|False|None|true|false|null)\b)/g;

/** A listing with a button that copies `content`, by default what is shown. `isPlain`: without colours. */
export function listing(text, label, { content = text, isPlain = false } = {}) {
  const pre = element("pre", { tabindex: 0, role: "region", "aria-label": label }, isPlain ? text : highlighted(text));
  return element(
    "div",
    { class: "listing" },
    pre,
    copyButton("Copy", () => content),
  );
}

/** A button that copies the text that `content` returns; for null it says that this is too long. */
export function copyButton(label, content) {
  const button = element("button", { type: "button", class: "copy", "aria-live": "polite" }, label);
  button.addEventListener("click", async () => {
    const text = content();
    button.textContent = text === null ? "Too long: share request.json" : (await copy(text)) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = label), COPIED_MILLISECONDS);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // On plain HTTP beyond this machine browsers have no clipboard, but they copy what is selected.
    const [area, focused] = [element("textarea", { class: "unseen", readonly: true }, text), document.activeElement];
    document.body.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return isCopied;
  }
}

/** Save a text or a Blob as a file. */
export function download(name, content) {
  const blob = content instanceof Blob ? content : new Blob([content], { type: "application/json" });
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function highlighted(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(TOKENS)) {
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    parts.push(text.slice(end, match.index), element("span", { class: kind }, match[0]));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

/**
 * JSON as the page shows it: whole if it is small, else shortened with counts of what is left out. Of files the beginning
 * is enough.
 */
export function readable(value, length) {
  const files = Object.values(value.output ?? {}).filter(isLongFile);
  if (files.reduce((left, file) => left - file.length, length) <= MAX_WHOLE) {
    const whole = write(value, 0, false);
    if (whole.length <= MAX_WHOLE) return { text: whole, isWhole: !files.length };
  }
  return { text: write(value, 0, true), isWhole: false };
}

const isLongFile = (value) => typeof value === "string" && value.length > MAX_CHARACTERS && isDataUrl(value);

/** JSON with each list of numbers on one line. */
function write(value, depth, isShort) {
  const [inner, outer] = ["  ".repeat(depth + 1), "  ".repeat(depth)];
  const left = (items, limit) => (items.length > limit ? [`… ${number(items.length - limit)} more`] : []);
  if (Array.isArray(value) && value.length) {
    const isFlat = typeof value[0] !== "object" && typeof value[0] !== "string";
    const limit = !isShort ? Infinity : isFlat ? MAX_NUMBERS : MAX_ITEMS;
    const items = value.slice(0, limit).map((item) => write(item, depth + 1, isShort));
    items.push(...left(value, limit));
    return isFlat ? `[${items.join(", ")}]` : `[\n${items.map((item) => inner + item).join(",\n")}\n${outer}]`;
  }
  if (value && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) {
    const entries = Object.entries(value).map(
      ([name, item]) => `${JSON.stringify(name)}: ${write(item, depth + 1, isShort)}`,
    );
    return `{\n${entries.map((entry) => inner + entry).join(",\n")}\n${outer}}`;
  }
  if (isLongFile(value) || (isShort && typeof value === "string" && value.length > MAX_CHARACTERS)) {
    return JSON.stringify(beginning(value, MAX_CHARACTERS) + left(value, MAX_CHARACTERS)[0]);
  }
  return JSON.stringify(value);
}
