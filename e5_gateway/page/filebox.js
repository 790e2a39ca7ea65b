/** The control for a file that is sent as it is, and dropped files. */

import { bytes, element } from "./dom.js";
import { FormError, checkFile } from "./request.js";

/** Whether something that is dragged is a file; a dragged text is the browser's to insert. */
export const hasFile = (event) => [...event.dataTransfer.types].includes("Files");

/** Call `open` with the files that are dropped on an element. */
export function acceptDrops(target, open) {
  target.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    target.classList.add("dropping");
  });
  target.addEventListener("dragleave", () => target.classList.remove("dropping"));
  target.addEventListener("drop", (event) => {
    target.classList.remove("dropping");
    if (!hasFile(event)) return;
    event.preventDefault();
    open([...event.dataTransfer.files]);
  });
}

/**
 * The browser's own field for a file, which shows its name and takes drops. Only a person can fill it: no link or example.
 *
 * `judge(name, message)` shows an error, so that a file that cannot be sent is refused when it is chosen.
 */
export function fileBox(field, { judge }) {
  const input = element("input", { type: "file" });
  const size = element("span", { class: "note" });
  const remove = element("button", { type: "button", onclick: () => take([]) }, "Remove the file");
  const row = element("div", { class: "files", hidden: true }, remove, size);
  const read = () => input.files[0] ?? null;
  const show = () => {
    const file = read();
    row.hidden = !file;
    size.textContent = file ? bytes(file.size) : "";
  };
  const take = (files) => {
    const transfer = new DataTransfer(); // makes the list that the field takes
    for (const file of files) transfer.items.add(file);
    input.files = transfer.files;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.focus();
  };
  input.addEventListener("input", () => {
    show();
    judge(field.name, read() && problemOf(field.name, read()));
  });
  acceptDrops(input, (files) => {
    if (files.length === 1) take(files);
    else judge(field.name, `These are ${files.length} files: drop one.`);
  });
  const write = () => {
    input.value = "";
    show();
  };
  return { input, extra: [row], read, write };
}

/** Why a file cannot be sent; null if it can. */
function problemOf(name, file) {
  try {
    checkFile(name, file);
    return null;
  } catch (error) {
    if (!(error instanceof FormError)) throw error;
    return error.message;
  }
}

/**
 * Beside a file of texts, a button that empties the boxes of texts: the file goes without them.
 *
 * Returns a function that shows the button where it has something to empty.
 */
export function addClear({ read, block, input }, boxes) {
  const clear = () => {
    for (const { write } of boxes) write("");
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.focus();
  };
  const button = element("button", { type: "button", onclick: clear }, "Clear the texts");
  block.querySelector(".files button").after(button);
  return () => (button.hidden = !read() || !boxes.some((box) => box.read().trim()));
}
