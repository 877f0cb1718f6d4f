// The state of a running training: its losses by language and its speed, asked for every few seconds.

import { ask } from "./server.js";

const by = (id) => document.getElementById(id);
const SECONDS = 5;
const [MOST, HEIGHT, LEFT, BOTTOM, TOP, LINE] = [900, 260, 56, 24, 8, 14];
const COLOURS = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#14b8a6", "#ec4899", "#84cc16"];

function element(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function round(value) {
  if (value === 0) return "0";
  return Math.abs(value) < 100 ? String(Number(value.toPrecision(3))) : Math.round(value).toLocaleString();
}

// Move heights, which rise, so that no line of text lies on another, and none below the picture.
function apart(heights) {
  const moved = heights.map((height, number) => Math.min(height, HEIGHT - 6 - LINE * (heights.length - 1 - number)));
  for (let number = 1; number < moved.length; number += 1) {
    moved[number] = Math.max(moved[number], moved[number - 1] + LINE);
  }
  return moved;
}

// Curves {name: [[x, y], …]} in one picture as wide as its place, each with its name at its end.
export function chart(curves, label, place) {
  const width = Math.min(place.clientWidth || MOST, MOST);
  const names = Object.keys(curves).filter((name) => curves[name].length);
  const points = names.flatMap((name) => curves[name]);
  if (!points.length) return document.createTextNode("Nothing yet.");
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const spread = high - low || Math.abs(high) || 1;
  const [bottom, top] = [low - 0.05 * spread, high + 0.05 * spread];
  const x = (value) => LEFT + ((value - left) / (right - left || 1)) * (width - LEFT - 110);
  const y = (value) => TOP + ((top - value) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label });
  for (let number = 0; number <= 4; number += 1) {
    const value = bottom + ((top - bottom) * number) / 4;
    svg.append(element("line", { class: "grid", x1: LEFT, x2: x(right), y1: y(value), y2: y(value) }));
    svg.append(element("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, round(value)));
  }
  svg.append(element("text", { x: LEFT, y: HEIGHT - 6 }, `step ${round(left)}`));
  svg.append(element("text", { x: x(right), y: HEIGHT - 6, "text-anchor": "end" }, round(right)));
  const ends = names.map((name, number) => ({ name, number, end: curves[name].at(-1) }));
  ends.sort((one, other) => other.end[1] - one.end[1]);
  const heights = apart(ends.map(({ end }) => y(end[1]) + 4));
  for (const [place, { name, number, end }] of ends.entries()) {
    const colour = COLOURS[number % COLOURS.length];
    const path = curves[name].map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    svg.append(element("polyline", { class: "curve", stroke: colour, points: path }));
    svg.append(element("circle", { class: "dot", fill: colour, cx: x(end[0]), cy: y(end[1]), r: 3 }));
    const text = `${name} ${round(end[1])}`;
    svg.append(element("text", { x: x(right) + 8, y: heights[place], class: "name", fill: colour }, text));
  }
  return svg;
}

export class Training {
  constructor() {
    this.timer = null;
  }

  start(onError) {
    const again = async () => {
      try {
        this.show(await (await ask("playground/training")).json());
      } catch (error) {
        onError(error);
      }
      if (this.timer !== null) this.timer = setTimeout(again, 1000 * SECONDS);
    };
    this.timer = 0;
    again();
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
  }

  show(run) {
    by("run").textContent = `${run.name}: step ${run.iteration.toLocaleString()}, ${round(run.consumed_tokens)} tokens`;
    const rows = { train: run.losses, ...run.validation };
    by("losses").replaceChildren(chart(rows, "Loss by step", by("losses")));
    by("speeds").replaceChildren(chart({ "tokens/s": run.speeds }, "Tokens a second by step", by("speeds")));
    const lines = Object.entries(rows).filter(([, points]) => points.length);
    by("table").tBodies[0].replaceChildren(
      ...lines.map(([name, points]) => {
        const row = document.createElement("tr");
        const head = document.createElement("th");
        head.scope = "row";
        head.textContent = name;
        row.append(head);
        row.insertCell().textContent = points.at(-1)[1].toFixed(4);
        row.insertCell().textContent = `step ${points.at(-1)[0].toLocaleString()}`;
        return row;
      }),
    );
  }
}
