// Where the text stands in the training data: marks in the editor, a list of them, and the source beside it.

import { ask } from "./server.js";

const by = (id) => document.getElementById(id);

// The server counts characters, the text area UTF-16 units.
function placesOf(text) {
  const places = [0];
  for (const character of text) places.push(places.at(-1) + character.length);
  return places;
}

export function describe(source) {
  const name = [source.repository, source.path].filter(Boolean).join("/");
  return name || source.dataset_document;
}

export class Matches {
  constructor(editor, onError) {
    this.onError = onError;
    this.editor = editor;
    this.request = 0;
    editor.area.addEventListener("keyup", () => this.follow());
    editor.area.addEventListener("click", () => this.follow());
  }

  async find() {
    const number = (this.request += 1);
    const text = this.editor.text;
    const answer = await (await ask("playground/matches", { body: { text } })).json();
    if (number !== this.request || text !== this.editor.text) return; // it was written on
    const places = placesOf(text);
    this.editor.matches = answer.spans.map((span) => ({
      ...span,
      start: places[span.start],
      end: places[span.end],
    }));
    this.editor.chosen = null;
    this.editor.draw();
    this.list();
  }

  clear() {
    this.request += 1;
    this.editor.matches = [];
    this.editor.chosen = null;
    this.editor.draw();
    by("found").hidden = true;
  }

  list() {
    const spans = this.editor.matches;
    by("found").hidden = false;
    by("source").hidden = true;
    by("summary").textContent = spans.length
      ? `${spans.length === 1 ? "One run" : `${spans.length} runs`} of this text, marked in the editor.`
      : "No long run of this text stands there word for word.";
    by("matches").replaceChildren(...spans.map((span) => this.item(span)));
  }

  item(span) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const best = span.sources[0];
    button.append(best ? describe(best) : "A source that is not named");
    const facts = document.createElement("small");
    const times = span.count === 1 ? "once" : `${span.count.toLocaleString()} times`;
    facts.textContent = ` ${span.end - span.start} characters, ${times}${best?.license ? `, ${best.license}` : ""}`;
    button.append(facts);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => this.choose(span, true));
    item.append(button);
    return item;
  }

  // The cursor goes into a match: show it.
  follow() {
    const span = this.editor.matchAt(this.editor.cursor);
    if (span && span !== this.editor.chosen) this.choose(span, false);
  }

  async choose(span, moves) {
    this.editor.chosen = span;
    this.editor.draw();
    this.editor.matches.forEach((one, number) => {
      const button = by("matches").children[number]?.querySelector("button");
      button?.setAttribute("aria-pressed", String(one === span));
    });
    const source = span.sources[0];
    if (!source) return;
    const query = new URLSearchParams({ id: source.id, line: source.first_line });
    let answer;
    try {
      answer = await (await ask(`playground/source?${query}`)).json();
    } catch (error) {
      this.onError(error);
      return;
    }
    if (this.editor.chosen === span) this.show({ ...answer, ...source }, moves);
  }

  show(source, moves) {
    by("source").hidden = false;
    by("source-name").textContent = describe(source);
    const facts = [
      source.license || "licence unknown",
      `lines ${source.first_line} to ${source.last_line} of ${source.num_lines}`,
    ];
    by("source-facts").textContent = facts.join(" · ");
    const lines = source.text.split("\n").map((text, number) => {
      const line = document.createElement("span");
      const place = source.text_first_line + number;
      line.dataset.line = place;
      line.textContent = text || " ";
      if (source.first_line <= place && place <= source.last_line) line.className = "match";
      return line;
    });
    by("source-text").replaceChildren(...lines);
    const sheet = by("source-text");
    const first = sheet.querySelector(".match");
    if (first) sheet.scrollTop = first.offsetTop - sheet.offsetTop - 60;
    if (moves) by("source-name").focus();
  }
}
