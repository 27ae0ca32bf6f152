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
for (const view of data.views) {
  if (view.sameAs === undefined) continue;
  const first = data.views[view.sameAs];
  for (const key of ["byPrompt", "baseByPrompt", "sourceByPrompt", "low", "high", "nulls", "inside", "draws"]) view[key] = first[key];
}
const largest = (lines) => {
  let limit = 0;
  for (const line of lines) for (const v of line) limit = Math.max(limit, Math.abs(v ?? 0));
  return limit;
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
  const limit = largest([values]) || 1;
  const root = document.querySelector(`.view[data-view="${index}"]`);
  root.classList.toggle("single", prompt >= 0);
  for (const cell of all(".cell[data-i]", root)) {
    const value = values[+cell.dataset.i];
    cell.classList.toggle("nan", value === null);
    cell.classList.toggle("neg", value !== null && value < 0);
    cell.style.setProperty("--v", value === null ? 0 : (Math.abs(value) / limit).toFixed(4));
    if (cell.classList.contains("bar")) {
      const { zero, pixels } = cell.ownerSVGElement.dataset;
      const size = Math.abs(value ?? 0) * pixels;
      cell.setAttribute("height", Math.max(size, 0.1));
      cell.setAttribute("y", value > 0 ? zero - size : zero);
    }
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

// Single prompts (filled, upper lane), the null's draws (hollow, lower lane), the interval and the effect on one line.
function strip(view, i) {
  const prompts = view.byPrompt ? view.byPrompt[i] : [];
  const nulls = view.nulls ? view.nulls[i] : [];
  view.reach ??= largest([view.effects, view.low ?? [], view.high ?? []].concat(view.byPrompt ?? [], view.nulls ?? [])) || 1;
  const at = (v) => (150 + (140 * v) / view.reach).toFixed(1);
  const lane = (values, y, extra) => values.map((v, n) => (v === null ? "" : `<circle cx="${at(v)}" cy="${y + ((n * 5) % 9)}" r="2.6"${extra}/>`)).join("");
  const low = view.low?.[i] ?? null;
  const high = view.high?.[i] ?? null;
  const line = low === null || high === null ? "" : `<path class="interval" d="M${at(low)} 23H${at(high)}M${at(low)} 19v8M${at(high)} 19v8"/>`;
  const holder = document.createElement("div");
  holder.innerHTML = `<svg width="300" height="46" role="img" aria-label="single prompts above, null draws below"><line class="rule" x1="150" x2="150" y1="1" y2="45"/>` +
    `<line class="grid" x1="10" x2="290" y1="23" y2="23"/><g class="blobs">${lane(prompts, 5, "")}</g>` +
    `<g>${lane(nulls, 32, ' class="hollow"')}</g>${line}` +
    (view.effects[i] === null ? "" : `<circle cx="${at(view.effects[i])}" cy="23" r="4" fill="var(--ink)"/>`) + "</svg>";
  return holder.firstChild;
}

function readNull(list, view, i, unit) {
  const nulls = view.nulls[i].filter((v) => v !== null);
  if (!nulls.length) return;
  row(list, "null", `${text(Math.min(...nulls))} to ${text(Math.max(...nulls))}${unit} in ${view.draws} draw${view.draws === 1 ? "" : "s"}`);
  row(list, "against all nulls", view.inside[i] ? "inside" : "outside");
}

function read(index, i) {
  const view = data.views[index];
  const box = document.querySelector(`.view[data-view="${index}"] .reading`);
  box.replaceChildren();
  box.dataset.cell = i;
  const name = document.createElement("div");
  name.className = "name";
  name.textContent = view.names[i];
  const list = document.createElement("dl");
  const unit = view.unit ? ` ${view.unit}` : "";
  const single = prompt >= 0 && view.byPrompt;
  const effect = single ? view.byPrompt[i][prompt] : view.effects[i];
  const base = single ? view.baseByPrompt?.[prompt] ?? null : view.base;
  row(list, single ? `effect in prompt ${prompt}` : "effect", text(effect) + unit);
  if (single) row(list, "mean effect", text(view.effects[i]) + unit);
  if (!single && view.low) row(list, "95 % interval", `${text(view.low[i])} to ${text(view.high[i])}${unit}`);
  if (!single && view.source !== null) row(list, "normalized", text(view.normalized[i]));
  if (base !== null) row(list, "metric", `${text(base)} \u2192 ${text(effect === null ? null : base + effect)}${unit}`);
  if (single && view.sourceByPrompt) row(list, "source", text(view.sourceByPrompt[prompt]) + unit);
  if (!single && view.nulls) readNull(list, view, i, unit);
  if (!single && view.byPrompt) {
    const there = view.byPrompt[i].filter((v) => v !== null);
    const same = there.filter((v) => Math.sign(v) === Math.sign(view.effects[i])).length;
    row(list, "this sign in", `${same} of ${there.length} prompts`);
  }
  box.append(name, list);
  if (view.byPrompt || view.nulls || view.low) box.append(strip(view, i));
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
    const at = document.querySelector(".view.on .reading").dataset.cell;
    read(shown, pinned ?? +at);
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
