/** The form: a control for each field of the schema, with its help, its error and, for texts, files to open or drop. */

import { KEY } from "./api.js";
import { element, plural } from "./dom.js";
import { acceptDrops, addClear, fileBox } from "./filebox.js";
import { ACCEPT, FileError, columnsOf } from "./files.js";
import { FormError, boxOf, parseTexts } from "./request.js";
import { SIDES, TEXTS_FILE } from "./schema.js";

const HELP_OF_TEXTS = "One text a line, or a JSON list of strings.";
const CUSTOM = ""; // the preset of a task that is none of the trained ones
const MODE = {
  name: "request-kind", // no input of predict() can have a hyphen in its name
  kind: "choice",
  label: "Request",
  help: "prediction: vectors and scores. rerank: the order of the documents, without vectors.",
};

/**
 * Controls for `fields`, in `container`. `modes`: kinds of requests. `tasks`: trained instructions by name.
 *
 * Returns { values, fill, mode, key, fail, clear }. `onChange` is called after each change.
 */
export function createForm(container, { fields, modes, tasks, keyRequired, onChange }) {
  const all = modes.length > 1 ? [...fields, { ...MODE, choices: modes, default: modes[0], modes }] : fields;
  const changed = () => {
    show();
    onChange();
  };
  const judge = (name, message) => (message ? fail(name, message) : pardon(controls.get(name)));
  const controls = new Map(all.map((field) => [field.name, control(field, { changed, judge })]));
  const wide = all.filter((field) => isWide(field)).map((field) => controls.get(field.name).block);
  const narrow = all.filter((field) => !isWide(field)).map((field) => controls.get(field.name).block);
  const keyControl = keyRequired ? keyField() : null;
  const follow = controls.has("task") ? addPresets(controls.get("task"), tasks) : () => {};
  const boxes = SIDES.flat().flatMap((name) => controls.get(name) ?? []);
  const hasTextsFile = fields.some(({ name, kind }) => name === TEXTS_FILE && kind === "file");
  const offerToClear = hasTextsFile ? addClear(controls.get(TEXTS_FILE), boxes) : () => {};
  container.append(...(keyControl ? [keyControl.block] : []), ...wide, element("div", { class: "options" }, narrow));

  const values = () => Object.fromEntries([...controls].map(([name, { read }]) => [name, read()]));
  const mode = () => controls.get(MODE.name)?.read() ?? modes[0];
  const show = () => {
    for (const field of all) controls.get(field.name).block.hidden = !field.modes.includes(mode());
    offerToClear();
  };
  const errors = new Map([...controls, ...(keyControl ? [[KEY, keyControl]] : [])]);
  const pardon = ({ error, input }) => {
    error.hidden = true;
    input.removeAttribute("aria-invalid");
  };
  const clear = () => errors.forEach(pardon);
  const fill = (given) => {
    clear();
    for (const [name, { write }] of controls) if (name in given) write(given[name]);
    follow();
    changed();
  };
  container.addEventListener("input", changed);
  /** Show an error at its field and move the focus there; false if the form does not show the field. */
  const fail = (name, message) => {
    const found = errors.get(name);
    if (!found || found.block.hidden) return false;
    found.error.textContent = message;
    found.error.hidden = false;
    found.input.setAttribute("aria-invalid", "true");
    found.input.focus();
    found.error.scrollIntoView({ block: "nearest" }); // the buttons at the bottom would hide it on a phone
    return true;
  };
  show();
  return { values, mode, fill, fail, clear, key: () => keyControl?.input.value.trim() ?? "" };
}

const isWide = ({ kind }) => ["texts", "text", "json", "file"].includes(kind);

/** A field's block, with { input, error, read, write }. */
function control(field, hooks) {
  const makers = { texts: textsBox, text: box, json: box, flag: checkbox, choice: select, number: numberBox };
  const make = { ...makers, file: fileBox }[field.kind];
  const { input, read, write, extra } = make(field, hooks);
  const help = [field.help, field.kind === "texts" ? HELP_OF_TEXTS : ""].filter(Boolean).join(" ");
  return labelled(field.name, field.label, help, input, { read, write, extra });
}

function labelled(name, words, help, input, { read, write, extra = [] } = {}) {
  const error = element("p", { class: "error", id: `error-${name}`, hidden: true });
  input.id = `field-${name}`;
  input.setAttribute("aria-describedby", `help-${name} error-${name}`);
  const label = element("label", { for: input.id }, words);
  const isCheckbox = input.type === "checkbox";
  const heading = isCheckbox ? element("div", { class: "check" }, input, label) : label;
  const below = isCheckbox ? [] : [input];
  const block = element(
    "div",
    { class: "field" },
    heading,
    element("p", { class: "help", id: `help-${name}` }, help),
    below,
    extra,
    error,
  );
  return { block, input, error, read, write };
}

function box(field) {
  const input = element("textarea", { rows: 2, spellcheck: "false" });
  const write = (value) => (input.value = value);
  write(field.default === null ? "" : field.kind === "json" ? JSON.stringify(field.default) : field.default);
  return { input, read: () => input.value, write };
}

function textsBox(field, { changed }) {
  const input = element("textarea", { rows: field.name === "documents" ? 8 : 4, spellcheck: "false" });
  input.value = (field.default ?? []).length ? boxOf(field.default) : "";
  const notice = element("p", { class: "note", role: "status" });
  const picker = element("input", { type: "file", accept: ACCEPT, hidden: true, "aria-hidden": "true", tabindex: -1 });
  const put = (texts) => {
    input.value = boxOf(texts);
    recount();
    changed();
  };
  const open = fileOpener(notice, put);
  picker.addEventListener("change", () => {
    if (picker.files.length) open([...picker.files]);
    picker.value = ""; // the same file again is a change, too
  });
  const button = element("button", { type: "button", class: "open", onclick: () => picker.click() }, "Open a file");
  const count = element("span", { class: "note" });
  const recount = () => (count.textContent = countOf(field.name, input.value));
  input.addEventListener("input", () => {
    notice.replaceChildren();
    recount();
  });
  acceptDrops(input, open);
  const extra = [
    element(
      "div",
      { class: "files" },
      button,
      element("span", { class: "note drop" }, "or drop one here: txt, csv, jsonl"),
      count,
      picker,
    ),
    notice,
  ];
  const write = (value) => {
    input.value = value;
    notice.replaceChildren();
    recount();
  };
  return { input, extra, read: () => input.value, write };
}

function countOf(name, value) {
  try {
    const count = parseTexts(name, value).length;
    return count ? plural(count, "text", "texts") : "";
  } catch (error) {
    if (!(error instanceof FormError)) throw error;
    return "";
  }
}

/** A function that puts a file's texts into the box. With several columns the notice has a choice among them. */
function fileOpener(notice, put) {
  let latest = null; // of two files that are read at the same time, the later one wins
  return async (files) => {
    const [file] = files;
    latest = file;
    try {
      if (files.length > 1) throw new FileError(`These are ${files.length} files: drop one.`);
      const columns = await columnsOf(file);
      if (latest === file) choose(file, columns);
    } catch (error) {
      if (!(error instanceof FileError)) throw error;
      if (latest === file) notice.replaceChildren(element("span", { class: "error" }, error.message));
    }
  };

  function choose(file, { names, count, texts }) {
    const words = element("span");
    const use = (name) => {
      const found = texts(name);
      const left = count - found.length;
      words.textContent = `${plural(found.length, "text", "texts")} of ${file.name}${left ? ` (${left} without text)` : ""}`;
      put(found);
    };
    const choice = element("select", { "aria-label": "Column", onchange: () => use(choice.value) }, options(names));
    notice.replaceChildren(words, ...(names.length > 1 ? [", column ", choice] : []));
    use(names[0]);
  }
}

function checkbox(field) {
  const input = element("input", { type: "checkbox" });
  const write = (value) => (input.checked = value);
  write(field.default === true);
  return { input, read: () => input.checked, write };
}

function select(field) {
  const names = field.choices.map((choice) => (choice === null ? "not set" : String(choice)));
  const input = element("select", {}, options(names));
  const write = (value) => {
    const index = field.choices.findIndex((choice) => String(choice) === String(value));
    if (index >= 0) input.selectedIndex = index;
  };
  write(field.default);
  return { input, read: () => field.choices[input.selectedIndex], write };
}

const options = (names) => names.map((name) => element("option", { value: name }, name));

function numberBox(field) {
  const bounds = { min: field.minimum, max: field.maximum, step: field.integer ? 1 : "any" };
  const input = element("input", { type: "number", inputmode: "decimal", ...bounds });
  const write = (value) => (input.value = value ?? "");
  write(field.default);
  // The value of a number field is "" for anything that is not a number.
  return { input, read: () => (input.validity.badInput ? "?" : input.value), write };
}

function keyField() {
  const input = element("input", { type: "password", autocomplete: "off" });
  return labelled(KEY, "API key", "Sent with each request and kept nowhere.", input);
}

/** A choice of the trained tasks above the task, which follows the task and fills it. */
function addPresets({ block, input }, tasks) {
  const kinds = new Set(Object.values(tasks).map((task) => task.kind));
  const groups = [...kinds].map((kind) => {
    return element(
      "optgroup",
      { label: kind },
      options(Object.keys(tasks).filter((name) => tasks[name].kind === kind)),
    );
  });
  const preset = element(
    "select",
    { id: "preset" },
    element("option", { value: CUSTOM }, "Custom: as written below"),
    groups,
  );
  const follow = () => {
    if (tasks[preset.value]?.instruction === input.value) return; // some share one instruction
    preset.value = Object.keys(tasks).find((name) => tasks[name].instruction === input.value) ?? CUSTOM;
  };
  preset.addEventListener("change", () => {
    if (preset.value === CUSTOM) return;
    input.value = tasks[preset.value].instruction;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  input.addEventListener("input", follow);
  const label = element("label", { for: "preset" }, "Trained task");
  block.querySelector("p.help").after(element("div", { class: "preset" }, label, preset));
  follow();
  return follow;
}
