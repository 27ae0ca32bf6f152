"use strict";
// Draws every head from the packed probabilities: small ones once, the large one for each choice of head and token.
const data = JSON.parse(document.getElementById("data").textContent);
const n = data.tokens.length;
const bytes = Uint8Array.from(atob(data.patterns), (c) => c.charCodeAt(0));
const packed = new DataView(bytes.buffer);
const perHead = data.causal ? (n * (n + 1)) / 2 : n * n;
const count = data.layers.length * data.heads;
let head = 0;
let query = n - 1;
let key = null;

// The probability with which q looks at k in head h; null where it is undefined.
function look(h, q, k) {
  if (data.causal && k > q) return 0;
  const at = h * perHead + (data.causal ? (q * (q + 1)) / 2 + k : q * n + k);
  const whole = packed.getUint16(2 * at, true);
  return whole > data.whole ? null : whole / data.whole;
}

const byId = (id) => document.getElementById(id);
const name = (h) => `L${data.layers[Math.floor(h / data.heads)]}.H${h % data.heads}`;
const said = (p) => (p === null ? "undefined" : p > 0 && p < 0.001 ? "below 0.001" : p.toFixed(3));

// The page's colors, which change with the reader's setting; a canvas turns any CSS color into bytes.
const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function color(variable) {
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
  probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
let colors = {};
const setColors = () => (colors = { zero: color("--att-zero"), one: color("--att"), nan: color("--nan"), ink: color("--ink"), soft: color("--soft") });
const css = (rgb) => `rgb(${rgb.join(",")})`;
// A square root: small probabilities stay visible.
const shade = (p) => (p === null ? colors.nan : colors.zero.map((z, i) => Math.round(z + (colors.one[i] - z) * Math.sqrt(p))));

function drawSmall(canvas, h) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(n, n);
  for (let q = 0; q < n; q++) {
    for (let k = 0; k < n; k++) image.data.set([...shade(look(h, q, k)), 255], 4 * (q * n + k));
  }
  context.putImageData(image, 0, 0);
}

const large = byId("large");
let layout = { left: 0, top: 0, side: 1 };
function drawLarge() {
  const context = large.getContext("2d");
  const scale = window.devicePixelRatio || 1;
  const font = '11px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
  context.font = font;
  const short = data.tokens.map((t) => (t.length > 14 ? t.slice(0, 13) + "\u2026" : t));
  const wanted = Math.ceil(Math.max(...short.map((t) => context.measureText(t).width))) + 10;
  const across = Math.min(large.parentElement.clientWidth - 4, 640);
  const fitting = (left) => Math.max(3, Math.min(34, Math.floor((across - left) / n)));
  const labelled = fitting(wanted) >= 11;
  const room = labelled ? wanted : 0;
  const side = fitting(room);
  layout = { left: room, top: 0, side };
  const width = room + n * side + 2;
  const height = n * side + (labelled ? room : 2);
  large.width = width * scale;
  large.height = height * scale;
  large.style.width = `${width}px`;
  large.style.height = `${height}px`;
  context.scale(scale, scale);
  const gap = side >= 8 ? 1 : 0;
  for (let q = 0; q < n; q++) {
    for (let k = 0; k < n; k++) {
      if (data.causal && k > q) continue;
      context.fillStyle = css(shade(look(head, q, k)));
      context.fillRect(room + k * side, q * side, side - gap, side - gap);
    }
  }
  context.font = font;
  context.textBaseline = "middle";
  for (let i = 0; labelled && i < n; i++) {
    context.fillStyle = css(i === query ? colors.ink : colors.soft);
    context.textAlign = "right";
    context.fillText(short[i], room - 6, (i + 0.5) * side);
    context.save();
    context.fillStyle = css(i === key ? colors.ink : colors.soft);
    context.translate(room + (i + 0.5) * side, n * side + 6);
    context.rotate(-Math.PI / 2);
    context.fillText(short[i], 0, 0);
    context.restore();
  }
  context.strokeStyle = css(colors.ink);
  context.lineWidth = 1;
  context.strokeRect(room + 0.5, query * side - 0.5 + (query ? 0 : 1), (data.causal ? query + 1 : n) * side - gap, side);
  if (key !== null) {
    context.lineWidth = 2;
    context.strokeRect(room + key * side, query * side + (query ? 0 : 1), side - gap, side - gap);
  }
}

const rows = { looks: (i) => look(head, query, i), looked: (i) => look(head, i, query) };
const strips = {};
for (const id of Object.keys(rows)) {
  strips[id] = data.tokens.map((token, i) => {
    const span = document.createElement("span");
    span.textContent = token;
    span.addEventListener("mouseenter", () => choose(head, i, null));
    byId(id).append(span, document.createElement("wbr"));
    return span;
  });
}

function strongest(pick) {
  const all = data.tokens.map((_, i) => [pick(i) ?? 0, i]).filter(([p]) => p > 0).sort((a, b) => b[0] - a[0]);
  return all.slice(0, 3).map(([p, i]) => `${data.tokens[i]} (${i}) ${said(p)}`).join(", ") || "nothing";
}

function tell() {
  const token = (i) => `${data.tokens[i]} (${i})`;
  byId("name").textContent = name(head);
  byId("said").textContent =
    key === null
      ? `${token(query)} looks at ${strongest(rows.looks)}; is looked at by ${strongest(rows.looked)}`
      : `${token(query)} looks at ${token(key)}: ${said(look(head, query, key))}`;
  for (const [id, pick] of Object.entries(rows)) {
    strips[id].forEach((span, i) => {
      const p = pick(i);
      span.style.setProperty("--v", Math.sqrt(p ?? 0).toFixed(4));
      span.title = said(p);
      span.classList.toggle("at", i === query);
    });
  }
}

const buttons = [];
function choose(h, q, k) {
  if (h !== head) {
    buttons[head].setAttribute("aria-pressed", "false");
    buttons[head].tabIndex = -1;
  }
  head = h;
  query = q;
  key = k;
  buttons[head].setAttribute("aria-pressed", "true");
  buttons[head].tabIndex = 0;
  tell();
  drawLarge();
}

function keepAddress() {
  try {
    history.replaceState(null, "", `#${name(head)}@${query}`);
  } catch {
    // Some browsers keep the address of local files as it is.
  }
}

function fromAddress() {
  const found = /^#L([^.]+)\.H(\d+)(?:@(\d+))?$/.exec(decodeURIComponent(location.hash));
  if (!found) return;
  const layer = data.layers.indexOf(found[1]);
  if (layer < 0 || +found[2] >= data.heads) return;
  choose(layer * data.heads + +found[2], Math.min(found[3] === undefined ? query : +found[3], n - 1), null);
}

function makeGrid() {
  const grid = byId("grid");
  const side = Math.max(20, Math.min(64, Math.floor(470 / data.heads), Math.floor(900 / data.layers.length)));
  grid.style.gridTemplateColumns = `auto repeat(${data.heads}, ${side + 2}px)`;
  const label = (text) => {
    const one = document.createElement("span");
    one.className = "label";
    one.textContent = text;
    grid.append(one);
  };
  label("");
  for (let h = 0; h < data.heads; h++) label(`H${h}`);
  for (let h = 0; h < count; h++) {
    if (h % data.heads === 0) label(`L${data.layers[h / data.heads]}`);
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = n;
    canvas.style.width = canvas.style.height = `${side}px`;
    button.type = "button";
    button.tabIndex = -1;
    button.title = name(h);
    button.setAttribute("aria-label", name(h));
    button.setAttribute("aria-pressed", "false");
    button.append(canvas);
    button.addEventListener("click", () => {
      choose(h, query, null);
      keepAddress();
    });
    grid.append(button);
    buttons.push(button);
  }
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: data.heads, ArrowUp: -data.heads }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = head + step;
    if (next < 0 || next >= count) return;
    choose(next, query, null);
    buttons[next].focus();
    keepAddress();
  });
}

function at(event) {
  const box = large.getBoundingClientRect();
  const k = Math.floor((event.clientX - box.left - layout.left) / layout.side);
  const q = Math.floor((event.clientY - box.top) / layout.side);
  const inside = (i) => i >= 0 && i < n;
  if (inside(q) && inside(k) && !(data.causal && k > q)) return [q, k];
  if (inside(q) && k < 0) return [q, null];
  if (inside(k) && q >= n) return [k, null];
  return null;
}
large.addEventListener("mousemove", (event) => {
  const place = at(event);
  if (place && (place[0] !== query || place[1] !== key)) choose(head, ...place);
});
large.addEventListener("mouseleave", () => choose(head, query, null));
const within = (i) => Math.max(0, Math.min(n - 1, i));
large.addEventListener("keydown", (event) => {
  const [down, right] = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key] ?? [0, 0];
  if (!down && !right) return;
  event.preventDefault();
  const q = within(query + down);
  const k = right ? within((key ?? q) + right) : key;
  choose(head, q, k === null ? null : data.causal ? Math.min(k, q) : k);
});
byId("looks").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  choose(head, within(query + step), null);
  keepAddress();
});
window.addEventListener("hashchange", fromAddress);
window.addEventListener("resize", drawLarge);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());

function draw() {
  setColors();
  buttons.forEach((button, h) => drawSmall(button.firstChild, h));
  choose(head, query, key);
}
makeGrid();
draw();
fromAddress();
