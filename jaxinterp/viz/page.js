"use strict";
// The page is complete without this script: it adds reading by hover and keyboard, the choice of the view and of the prompt.
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const text = (value) => {
  if (value === null || value === undefined) return "undefined";
  const size = Math.abs(value);
  const written = size === 0 ? "0" : size >= 0.001 && size < 1000 ? value.toFixed(3) : value.toPrecision(3);
  return written.replace("-", "\u2212");
};
let shown = 0;
let prompt = -1;
let pinned = null;

function valueAt(view, i) {
  if (prompt < 0 || !view.byPrompt) return view.values[i];
  const effect = view.byPrompt[i][prompt];
  return effect === null || view.perUnit[i] === null ? null : effect * view.perUnit[i];
}

function paint(index) {
  const view = data.views[index];
  const values = view.names.map((_, i) => valueAt(view, i));
  const limit = Math.max(...values.map((v) => (v === null ? 0 : Math.abs(v)))) || 1;
  const root = document.querySelector(`.view[data-view="${index}"]`);
  for (const cell of all(".cell[data-i]", root)) {
    const value = values[+cell.dataset.i];
    cell.classList.toggle("nan", value === null);
    cell.classList.toggle("neg", value !== null && value < 0);
    cell.style.setProperty("--v", value === null ? 0 : (Math.abs(value) / limit).toFixed(4));
  }
  for (const label of all(".value[data-i]", root)) {
    const value = values[+label.dataset.i];
    label.textContent = value === null ? "" : short(value);
    label.classList.toggle("strong", value !== null && Math.abs(value) > 0.62 * limit);
    label.classList.toggle("faint", value !== null && Math.abs(value) < 0.1 * limit);
  }
  for (const tick of all(".tick", root)) tick.textContent = text(+tick.dataset.at * limit);
}

function short(value) {
  let written = Math.abs(value) < 10 ? value.toFixed(2) : value.toFixed(0);
  if (Number(written) === 0) return "0";
  if (Math.abs(value) < 1) written = written.replace("0.", ".");
  return written.replace("-", "\u2212");
}

function row(list, term, value) {
  const dt = document.createElement("dt");
  const dd = document.createElement("dd");
  dt.textContent = term;
  dd.textContent = value;
  list.append(dt, dd);
}

function dots(view, i) {
  const values = view.byPrompt[i].filter((v) => v !== null);
  const limit = Math.max(...view.byPrompt.flat().map((v) => Math.abs(v ?? 0))) || 1;
  const at = (v) => (150 + (140 * v) / limit).toFixed(1);
  const marks = values.map((v, n) => `<circle cx="${at(v)}" cy="${10 + ((n * 7) % 12)}" r="2.6"/>`).join("");
  const holder = document.createElement("div");
  holder.innerHTML = `<svg width="300" height="32" role="img" aria-label="effect by prompt"><line class="rule" x1="150" x2="150" y1="2" y2="30"/>` +
    `<line class="grid" x1="10" x2="290" y1="16" y2="16"/><g class="blobs">${marks}</g></svg>`;
  return holder.firstChild;
}

function read(index, i) {
  const view = data.views[index];
  const box = document.querySelector(`.view[data-view="${index}"] .reading`);
  box.replaceChildren();
  const name = document.createElement("div");
  name.className = "name";
  name.textContent = view.names[i];
  const list = document.createElement("dl");
  const unit = view.unit ? ` ${view.unit}` : "";
  row(list, "effect", text(view.effects[i]) + unit);
  if (view.source !== null) row(list, "normalized", text(view.normalized[i]));
  row(list, "metric", `${text(view.base)} \u2192 ${text(view.effects[i] === null ? null : view.base + view.effects[i])}${unit}`);
  if (view.byPrompt) {
    const same = view.byPrompt[i].filter((v) => v !== null && Math.sign(v) === Math.sign(view.effects[i])).length;
    row(list, "this sign in", `${same} of ${view.byPrompt[i].length} prompts`);
  }
  box.append(name, list);
  if (view.byPrompt) box.append(dots(view, i));
}

function mark(index, i, kind) {
  const root = document.querySelector(`.view[data-view="${index}"]`);
  for (const old of all(`.${kind}`, root)) old.classList.remove(kind);
  if (i === null) return;
  for (const one of all(`[data-i="${i}"]`, root)) one.classList.add(kind);
}

function visit(index, i) {
  mark(index, i, "at");
  if (i !== null) read(index, i);
  else if (pinned !== null) read(index, pinned);
}

function pin(index, i) {
  pinned = pinned === i ? null : i;
  for (const [n] of data.views.entries()) mark(n, pinned, "pinned");
  if (pinned !== null) read(index, pinned);
}

function show(index) {
  shown = index;
  all(".view").forEach((view) => view.classList.toggle("on", +view.dataset.view === index));
  all("[data-show]").forEach((button) => button.setAttribute("aria-pressed", String(+button.dataset.show === index)));
  read(index, pinned ?? data.views[index].top);
}

for (const view of all(".view")) {
  const index = +view.dataset.view;
  view.addEventListener("mouseover", (event) => {
    const target = event.target.closest("[data-i]");
    visit(index, target ? +target.dataset.i : null);
  });
  view.addEventListener("mouseleave", () => visit(index, null));
  view.addEventListener("click", (event) => {
    const target = event.target.closest("[data-i]");
    if (target) pin(index, +target.dataset.i);
  });
  view.addEventListener("keydown", (event) => {
    const columns = +event.target.dataset?.columns;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (!step) return;
    const [first, last] = event.target.dataset.range.split(" ").map(Number);
    const now = all(".cell.at", event.target)[0];
    const next = now ? +now.dataset.i + step : first;
    if (next >= first && next <= last) visit(index, next);
    event.preventDefault();
  });
}
all("[data-show]").forEach((button) => button.addEventListener("click", () => show(+button.dataset.show)));
const chooser = document.getElementById("prompt");
if (chooser) {
  chooser.addEventListener("change", () => {
    prompt = +chooser.value;
    data.views.forEach((_, index) => paint(index));
  });
}
for (const figure of all(".heads figure")) {
  const looks = all(".look", figure);
  const spans = all(".strip span", figure);
  const said = figure.querySelector(".said");
  const query = (q, k) => {
    spans.forEach((span, s) => {
      const cell = looks.find((one) => one.dataset.q === String(q) && one.dataset.k === String(s));
      span.style.setProperty("--v", cell ? cell.dataset.p : 0);
      span.classList.toggle("query", s === q);
    });
    if (k === undefined) return;
    looks.forEach((one) => one.classList.toggle("at", one.dataset.q === String(q) && one.dataset.k === String(k)));
    const cell = looks.find((one) => one.dataset.q === String(q) && one.dataset.k === String(k));
    said.textContent = `${spans[q].textContent} \u2192 ${spans[k].textContent}: ${text(cell ? +cell.dataset.p : 0)}`;
  };
  looks.forEach((one) => one.addEventListener("mouseenter", () => query(+one.dataset.q, +one.dataset.k)));
  spans.forEach((span, q) => span.addEventListener("mouseenter", () => query(q)));
  query(spans.length - 1);
}
all("svg title").forEach((title) => title.remove());
show(0);
