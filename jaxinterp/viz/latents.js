"use strict";
// What the list of latents and the page of one have in common: elements, numbers, tokens, bars.
const byId = (id) => document.getElementById(id);
const count = latents.rate.length;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const whole = (n) => n.toLocaleString("en-US");
const sized = (v, digits = 3) => {
  if (v === null) return "undefined";
  if (v === 0) return "0";
  const size = Math.abs(v);
  const text = size >= 10 ** digits && size < 1e6 ? whole(Math.round(v)) : size >= 0.001 && size < 1e6 ? v.toPrecision(digits) : v.toExponential(digits - 1);
  return text.replace("-", "\u2212");
};
const share = (v) => (v === 0 ? "never" : `${sized(100 * v)} %`);
// Spaces are seen where a token stands alone; in a stretch of text they are spaces.
const visible = (text) => text.replaceAll(" ", "\u00b7");
const plain = (text) => [text];
const chip = (text, drawn = plain) => element("span", { class: "chip mono" }, ...drawn(visible(text)));
const chips = (texts, drawn = plain) => element("div", { class: "chips" }, ...texts.map((text) => chip(text, drawn)));
const texts = (places) => places.map((i) => latents.tokens[i]);
// A label is a sentence, or a set: what is one of which tokens.
const isSet = (label) => Array.isArray(label);
const sentence = (label) => (isSet(label) ? `${label[0]} is one of ${label[1].map(visible).join(", ")}` : label);
// In little room a set is its tokens alone, unless they are those of the token before.
const brief = ([what, set], drawn = plain) => element("div", { class: "set" }, ...(what === "token" ? [] : [element("span", { class: "small soft" }, `${what}:`)]), chips(set, drawn));
const isDead = (i) => latents.rate[i] === 0;

// A histogram as an SVG; heights are logarithmic, since counts differ by powers of ten.
function bars(counts, { width = 320, height = 90, name, label, ticks, unit }) {
  const svg = (tag, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const largest = Math.max(1, ...counts);
  const most = Math.log1p(largest);
  const step = width / counts.length;
  const drawn = counts.map((n, i) => {
    const tall = (height * Math.log1p(n)) / most;
    const bar = svg("rect", { x: i * step, y: height - tall, width: Math.max(1, step - 1), height: tall, class: "column" });
    const all = svg("rect", { x: i * step, y: 0, width: step, height, class: "whole" }, svg("title", {}));
    all.firstChild.textContent = `${label(i)}: ${whole(n)} ${unit}`;
    return svg("g", {}, bar, all);
  });
  const axis = svg("line", { x1: 0, x2: width, y1: height, y2: height, class: "rule" });
  const top = svg("line", { x1: 0, x2: width, y1: 0, y2: 0, class: "grid" });
  const scale = svg("text", { x: 0, y: -5, class: "axis" });
  scale.textContent = `${whole(largest)} ${largest === 1 ? unit.replace(/s$/, "") : unit}`;
  const marks = ticks.map(([at, text]) => {
    const anchor = at <= 0 ? "start" : at >= counts.length ? "end" : "middle";
    const mark = svg("text", { x: at * step, y: height + 15, "text-anchor": anchor, class: "axis" });
    mark.textContent = text;
    return mark;
  });
  const box = { width, height: height + 38, viewBox: `0 -18 ${width} ${height + 38}` };
  return svg("svg", { ...box, class: "bars", role: "img", "aria-label": name }, top, ...drawn, axis, scale, ...marks);
}
