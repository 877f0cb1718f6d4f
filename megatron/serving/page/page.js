// Ties the page together: tabs, keys, and what the buttons do.

import { Editor } from "./editor.js";
import { Matches } from "./matches.js";
import { ask, events, useKey } from "./server.js";
import { Training } from "./training.js";

const by = (id) => document.getElementById(id);
const editor = new Editor(by("text"), by("shown"));
const matches = new Matches(editor, complain);
const training = new Training();
let about = { infill: false, attribution: false, training: false };
let work = null; // the AbortController of a completion being written

function complain(error) {
  by("alert").hidden = !error;
  by("alert").textContent = error ? error.message : "";
  if (error?.status === 401) {
    by("key-form").hidden = false;
    by("key").focus();
  }
}

// The middle is filled in where text follows the cursor.
function isInfill() {
  return about.infill && by("order").value === "auto" && editor.text.slice(editor.cursor).trim() !== "";
}

function label() {
  by("generate").textContent = isInfill() ? "Fill in" : "Complete";
}

function options() {
  const number = (id) => Number(by(id).value);
  const asked = {
    max_tokens: number("max_tokens"),
    temperature: number("temperature"),
    top_p: number("top_p"),
    seed: number("seed"),
  };
  const stop = by("stop_text").value.replaceAll("\\n", "\n").replaceAll("\\t", "\t");
  if (stop) asked.stop = [stop];
  return asked;
}

async function generate() {
  const wrong = by("controls").querySelector("input:invalid");
  if (wrong) by("controls").open = true;
  if (work || wrong) {
    wrong?.reportValidity();
    return;
  }
  complain(null);
  const place = editor.cursor;
  const body = { model: about.model, prompt: editor.text.slice(0, place), stream: true, ...options() };
  if (isInfill()) body.suffix = editor.text.slice(place);
  work = new AbortController();
  const { signal } = work;
  matches.clear();
  editor.written = [];
  editor.area.readOnly = true;
  by("stop").disabled = false;
  by("status").textContent = "";
  by("generate").disabled = by("discard").disabled = true;
  const range = { start: place, end: place };
  let count = 0;
  let reason = "stopped";
  const start = performance.now();
  try {
    for await (const event of events(await ask("v1/completions", { body, signal }))) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (!choice) continue;
      count += 1;
      editor.written = [];
      editor.replace(range.end, range.end, choice.text);
      range.end += choice.text.length;
      editor.written = [range];
      editor.draw();
      reason = choice.finish_reason ?? reason;
      const rate = count / ((performance.now() - start) / 1000);
      by("status").textContent = `${count} tokens, ${rate.toFixed(1)} a second`;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      reason = "failed";
      complain(error);
    }
  }
  work = null;
  editor.area.readOnly = false;
  by("stop").disabled = true;
  by("generate").disabled = false;
  by("discard").disabled = range.start === range.end;
  by("status").textContent += `; ${{ stop: "ended by itself", length: "the limit of tokens", content_filter: "withheld" }[reason] ?? reason}`;
  editor.area.focus();
  label();
  if (about.attribution && range.end > range.start) await find();
}

function discard() {
  for (const range of editor.written) editor.replace(range.start, range.end, "");
  editor.written = [];
  matches.clear();
  by("discard").disabled = true;
  by("status").textContent = "";
  editor.area.focus();
  label();
}

async function find() {
  try {
    await matches.find();
  } catch (error) {
    complain(error);
  }
}

function select(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const isChosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
    by(tab.getAttribute("aria-controls")).hidden = !isChosen;
  }
  training.stop();
  if (name === "training") training.start(complain);
}

async function start() {
  try {
    about = await (await ask("playground/about")).json();
  } catch (error) {
    complain(error);
    return;
  }
  by("key-form").hidden = true;
  by("model").textContent = document.title = about.model;
  by("max_tokens").max = about.max_tokens;
  by("check").hidden = !about.attribution;
  by("tab-training").hidden = !about.training;
  label();
}

by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(by("key").value);
  complain(null);
  start();
});
by("generate").addEventListener("click", generate);
by("stop").addEventListener("click", () => work?.abort());
by("discard").addEventListener("click", discard);
by("check").addEventListener("click", find);
by("order").addEventListener("change", label);
document.addEventListener("selectionchange", label);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") work?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  }
});
for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => select(tab.id.slice("tab-".length)));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const tabs = [...document.querySelectorAll("[role=tab]:not([hidden])")];
    const next = tabs[(tabs.indexOf(tab) + (event.key === "ArrowRight" ? 1 : tabs.length - 1)) % tabs.length];
    next.focus();
    select(next.id.slice("tab-".length));
  });
}
start();
