/** The page: form → request → answer. Each step is a module; this one ties them to the elements of index.html. */

import { answerOf } from "./answer.js";
import { send } from "./api.js";
import { fileNames, withData } from "./dataurl.js";
import { element, sentence, tabs } from "./dom.js";
import { hasFile } from "./filebox.js";
import { createForm } from "./form.js";
import { fromFragment, toFragment } from "./link.js";
import { copyButton, download, listing } from "./listing.js";
import { FormError, requestOf } from "./request.js";
import { results, summary } from "./results.js";
import { fieldsOf, modelOf, modesOf } from "./schema.js";
import { FILE, fileOf, isLong, snippets } from "./snippets.js";

const RETRY_MILLISECONDS = 2000; // while the model is starting
const FILE_SECONDS = 1_800; // how long the gateway waits for a prediction
const CODE_MILLISECONDS = 150; // the code follows the form after a pause in typing

const part = (id) => document.getElementById(id);
const base = new URL(".", location.href).href.replace(/\/$/, "");

const [whole, known, examples] = await Promise.all(["openapi.json", "page/tasks.json", "page/examples.json"].map(load));
const model = modelOf(whole);
const fields = fieldsOf(whole);
const form = createForm(part("fields"), {
  fields,
  modes: modesOf(whole),
  tasks: known.tasks,
  keyRequired: model.keyRequired,
  onChange: later(writeCode),
});
const empty = form.values();
const target = { base, model: model.id, keyRequired: model.keyRequired };
let running = null; // the AbortController of the run in progress
let runs = 0;
const code = {
  labels: "",
  places: [],
  note: element("p", { class: "note" }, "Code appears here when the form can be sent."),
};

showModel();
showExamples();
form.fill(location.hash.length > 1 ? fromFragment(location.hash, empty) : examples[0].values);
writeCode();
part("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) run();
});
part("form").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if (!running) run();
});
addEventListener("hashchange", () => form.fill(fromFragment(location.hash, empty)));
// A file that misses a box would replace the page.
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => hasFile(event) && event.preventDefault());
part("link").replaceWith(copyButton("Copy link", linkTo));
for (const id of ["form", "code"]) part(id).hidden = false;
performance.mark("interactive");

/** A JSON file of the gateway, as soon as it has it: while the model is starting there is no description of it. */
async function load(path) {
  for (;;) {
    try {
      return (await send(path)).json;
    } catch (error) {
      if (!(error instanceof FormError)) throw error;
      part("model").replaceChildren(error.message);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MILLISECONDS));
    }
  }
}

function showModel() {
  const facts = [
    `${model.dimensions.toLocaleString("en-US")} dimensions`,
    `texts of up to ${model.max_tokens.toLocaleString("en-US")} tokens`,
    model.languages,
    model.prompt === "prefix" ? "takes no task" : null,
  ];
  part("model").replaceChildren(element("strong", {}, model.id), ["", ...facts.filter(Boolean)].join(" · "));
}

/** Examples that the model can read. */
function showExamples() {
  const isMultilingual = model.languages?.includes("languages");
  for (const { label, values, multilingual } of examples) {
    if (multilingual && !isMultilingual) continue;
    const button = element("button", { type: "button" }, label);
    button.addEventListener("click", (event) => {
      if (event.detail > 1) return; // of a double-click
      form.fill({ ...empty, ...values });
      running?.abort();
      run();
    });
    part("examples").append(button);
  }
  part("examples").hidden = false;
}

/** The request of the form as it stands. Throws FormError. */
function request() {
  return requestOf(form.mode(), fields, form.values(), model.id);
}

async function run() {
  const control = new AbortController();
  running = control;
  form.clear();
  part("run").setAttribute("aria-disabled", "true"); // disabling it would take the focus away
  try {
    const current = request();
    const stop = element("button", { type: "button", onclick: () => control.abort() }, "Stop");
    part("status").replaceChildren(element("p", {}, "Running … ", stop));
    showStatus();
    const body = await withData(current.body);
    const seconds = fileNames(current.body.input).length ? FILE_SECONDS : undefined;
    const response = await send(current.path, { body, key: form.key(), signal: control.signal, seconds });
    if (running !== control) return; // an example has replaced this run
    const answer = answerOf(current, response.json);
    part("answer").replaceChildren(results(answer, response, model));
    report("done", summary(answer, response.milliseconds));
  } catch (error) {
    if (running !== control) return;
    const isStopped = part("status").contains(document.activeElement);
    part("answer").replaceChildren(); // the last answer would mislead
    if (error.name === "AbortError") report("error", "Stopped.");
    else if (error instanceof FormError) {
      report("error", element("strong", {}, "There is no answer. "), ...sentence(error.message));
      if (!form.fail(error.field, error.message)) showStatus();
    } else {
      report("error", "Something went wrong in this page; details are in the browser’s console.");
      throw error;
    }
    if (isStopped) part("run").focus();
  } finally {
    if (running === control) {
      running = null;
      part("run").removeAttribute("aria-disabled");
    }
  }
}

/** Bring the status into view, where the results are below the form. */
function showStatus() {
  const { top, bottom } = part("status").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) part("status").scrollIntoView({ block: "start" });
}

function report(kind, ...words) {
  part("status").replaceChildren(element("p", { class: kind, "data-run": ++runs }, ...words));
}

/** The code of the form's request, in tabs that keep their selection while their contents change. */
function writeCode() {
  let [written, long] = [[], false];
  try {
    const current = request();
    [written, long] = [snippets(target, current), isLong(current)];
  } catch (error) {
    if (!(error instanceof FormError)) throw error;
  }
  code.note.hidden = written.length > 0;
  const labels = written.map(([label]) => label).join();
  if (labels && labels !== code.labels) {
    code.labels = labels;
    code.places = written.map(() => element("div"));
    const save = element(
      "button",
      { type: "button", id: "save", onclick: () => download(FILE, fileOf(request())) },
      `Download ${FILE}`,
    );
    const panels = written.map(([label], index) => [label, code.places[index]]);
    part("code").replaceChildren(part("code-heading"), code.note, tabs("code", "Code", panels), save);
  }
  part("code").classList.toggle("unsendable", !written.length);
  written.forEach(([label, text], index) => {
    code.places[index].replaceChildren(listing(text, `${label}: code`, { isPlain: label === "cURL" }));
  });
  if (part("save")) part("save").hidden = !long;
}

/** The address of the page with the form's content; null if that is too long. */
function linkTo() {
  const fragment = toFragment(form.values(), empty);
  return fragment === null ? null : `${base}/#${fragment}`;
}

function later(action) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, CODE_MILLISECONDS);
  };
}
