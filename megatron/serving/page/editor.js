// The text, the ranges of it that are marked, and the sheet behind it that shows them.
//
// Places are UTF-16 units, as the text area counts. Ranges move with the text when it is edited before them, and a range
// that is edited inside goes.

export class Editor {
  constructor(area, sheet) {
    this.area = area;
    this.sheet = sheet;
    this.written = []; // [{start, end}] by the model
    this.matches = []; // [{start, end, …}] found in the training data
    this.chosen = null; // one of them
    this.previous = area.value;
    area.addEventListener("input", () => this.edited());
    this.draw();
  }

  get text() {
    return this.area.value;
  }

  get cursor() {
    return this.area.selectionEnd;
  }

  // Put text in place of what lies between, as the model does; the cursor stays behind it if it was there.
  replace(start, end, text) {
    this.area.setRangeText(text, start, end, "end");
    this.shift(start, end, text.length);
    this.draw();
  }

  edited() {
    const before = this.previous;
    const after = this.text;
    const shorter = Math.min(before.length, after.length);
    let start = 0;
    while (start < shorter && before[start] === after[start]) start += 1;
    let same = 0;
    while (same < shorter - start && before.at(-1 - same) === after.at(-1 - same)) same += 1;
    this.shift(start, before.length - same, after.length - same - start);
    this.draw();
  }

  shift(start, end, size) {
    const moved = (range) => {
      if (range.end <= start) return [range];
      if (range.start < end) return []; // edited inside
      const by = size - (end - start);
      return [Object.assign(range, { start: range.start + by, end: range.end + by })];
    };
    this.written = this.written.flatMap(moved);
    this.matches = this.matches.flatMap(moved);
    if (!this.matches.includes(this.chosen)) this.chosen = null;
    this.previous = this.text;
  }

  matchAt(place) {
    return this.matches.find((range) => range.start <= place && place < range.end) ?? null;
  }

  draw() {
    const edges = new Set([0, this.text.length]);
    const ranges = [...this.written, ...this.matches];
    for (const range of ranges) edges.add(range.start).add(range.end);
    const places = [...edges].sort((one, other) => one - other);
    const parts = places.slice(0, -1).map((start, number) => {
      const text = this.text.slice(start, places[number + 1]);
      const inside = (range) => range !== null && range.start <= start && start < range.end;
      if (!ranges.some(inside)) return text;
      const mark = document.createElement("mark");
      mark.textContent = text;
      if (this.matches.some(inside)) mark.className = inside(this.chosen) ? "chosen" : "match";
      return mark;
    });
    this.sheet.replaceChildren(...parts, "\n"); // an empty last line has its height, too
  }
}
