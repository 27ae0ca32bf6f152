// The page of one latent, whose number stands behind the # of the address. Its data are in a file with those of its neighbors.
const chunks = new Map();
const waiting = new Map();

function addLatents(number, data) {
  chunks.set(number, data);
  waiting.get(number)?.();
}

function load(number) {
  if (chunks.has(number)) return Promise.resolve(chunks.get(number));
  return new Promise((done, failed) => {
    waiting.set(number, () => done(chunks.get(number)));
    const script = element("script", { src: `data/latents_${String(number).padStart(5, "0")}.js` });
    script.addEventListener("error", () => failed(new Error(`${script.getAttribute("src")} is missing or cannot be read.`)));
    document.head.append(script);
  });
}

// A latent as a link that says what it is about.
function other(i) {
  const label = latents.labels?.[i];
  const about = !latents.labels ? chips(texts(latents.fires[i].slice(0, 3))) : isSet(label) ? brief(label) : element("div", { class: "about small soft" }, label);
  if (latents.labels) about.title = sentence(label);
  return [element("div", { class: "other" }, element("a", { href: `#${i}` }, String(i)), about)];
}

function context([center, tokens, active], most) {
  const values = new Map(active);
  const spans = tokens.map((t, at) => {
    const value = values.get(at) ?? 0;
    const span = element("span", { title: value ? `activation ${sized(value)}` : null, class: at === center ? "own" : null }, latents.tokens[t]);
    if (value) span.style.setProperty("--v", (0.1 + 0.9 * Math.min(1, value / most)).toFixed(3));
    return span;
  });
  const half = (name, part) => element("div", { class: name }, element("div", {}, ...part));
  const text = element("div", { class: "text" }, half("before", spans.slice(0, center)), half("behind", spans.slice(center)));
  return element("li", {}, element("span", { class: "n soft" }, sized(values.get(center) ?? 0)), text);
}

const list = (contexts, most) => element("ol", { class: "contexts mono" }, ...contexts.map((one) => context(one, most)));
const block = (title, note, ...content) => element("section", {}, element("h2", {}, title), ...(note ? [element("p", { class: "small soft" }, note)] : []), ...content);

function table(heads, rows) {
  const head = element("tr", {}, ...heads.map((text, i) => element("th", { class: i ? "n" : "", scope: "col" }, text)));
  const lines = rows.map(([first, ...rest]) => element("tr", {}, element("td", {}, ...first), ...rest.map((v) => element("td", { class: "n" }, v))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
}

function facts(i, one) {
  const listed = {
    "firing rate": share(latents.rate[i]),
    tokens: `${whole(one.counts.reduce((sum, n) => sum + n, 0))} of ${whole(latents.rows)}`,
    ...(isDead(i) ? {} : { "largest activation": sized(latents.max[i]), "mean, where active": sized(latents.mean[i]) }),
    ...(latents.f1 ? { "F1 of the label": sized(latents.f1[i]) } : {}),
  };
  return element("dl", { class: "facts" }, ...Object.entries(listed).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function aside(i, one) {
  const parts = [];
  if (one.counts.length) {
    const edge = (bin) => sized(bin * one.width);
    const chart = { name: "histogram of activations", unit: "tokens", label: (bin) => `activation ${edge(bin)} to ${edge(bin + 1)}` };
    const half = Math.round(one.counts.length / 2);
    const ticks = [0, half, one.counts.length].map((bin) => [bin, edge(bin)]);
    parts.push(block("Activations", "heights are logarithmic", bars(one.counts, { ...chart, ticks })));
  }
  if (one.promoted.length) {
    const side = (name, pairs) => table([name, "logits"], pairs.map(([t, v]) => [[chip(latents.tokens[t])], sized(v, 2)]));
    const both = element("div", { class: "sides" }, side("promoted", one.promoted), side("suppressed", one.suppressed));
    parts.push(block("Tokens", "logits of the decoder's direction alone, above the mean of all tokens", both));
  }
  if (one.coactive.length) {
    const rows = one.coactive.map(([j, index, part]) => [other(j), `${sized(100 * part, 2)} %`, sized(index, 2)]);
    parts.push(block("Active together", "in what share of this one's tokens the other is active too, and Jaccard index", table(["latent", "share", "Jaccard"], rows)));
  }
  if (one.nearest.length) {
    const rows = one.nearest.map(([j, cosine]) => [other(j), sized(cosine, 2)]);
    parts.push(block("Nearest", "by the direction that they write", table(["latent", "cosine"], rows)));
  }
  return element("aside", {}, ...parts);
}

function examples(i, one) {
  const made = element("div", { class: "examples" });
  if (!one.top.length) return made;
  const ramp = element("div", { class: "ramp small soft" }, element("span", {}, "0"), element("i"), element("span", {}, `${sized(latents.max[i])} activation`));
  made.append(block("Strongest", "no two of one text, or with the same tokens before", list(one.top, latents.max[i]), ramp));
  const total = one.quantiles.length;
  const own = ([center, , active]) => sized(new Map(active).get(center));
  const parts = one.quantiles.flatMap((part, q) => {
    if (!part.length) return [];
    const percent = (parts) => whole(Math.round((100 * parts) / total));
    const title = `${percent(total - q - 1)} to ${percent(total - q)} %`;
    return [element("h3", {}, title, element("span", { class: "soft" }, `, here ${own(part[part.length - 1])} to ${own(part[0])}`)), list(part, latents.max[i])];
  });
  made.append(block("Of all strengths", "a random sample of all tokens at which it is active, sorted by activation and cut into equal parts", ...parts));
  return made;
}

function header(i) {
  const label = latents.labels?.[i];
  const lede = isSet(label) ? element("div", { class: "lede set" }, element("span", {}, `${label[0]} is one of`), ...label[1].map((text) => chip(text))) : element("p", { class: "lede" }, label ?? "");
  return element("header", {}, element("h1", {}, `Latent ${i}`), element("p", { class: "soft where" }, latents.where), ...(label ? [lede] : []));
}

// The next latent in a direction that is ever active.
function step(i, way) {
  let at = i + way;
  while (at >= 0 && at < count && isDead(at)) at += way;
  return at >= 0 && at < count ? at : null;
}

function point(link, i) {
  if (i === null) link.removeAttribute("href");
  else link.href = `#${i}`;
}

async function show() {
  const asked = location.hash.slice(1) || "0";
  const i = /^\d+$/.test(asked) ? +asked : -1;
  const legal = i >= 0 && i < count;
  document.title = legal ? `Latent ${i}, ${latents.title}` : latents.title;
  point(byId("previous"), legal ? step(i, -1) : null);
  point(byId("next"), legal ? step(i, 1) : null);
  const place = byId("latent");
  if (!legal) {
    place.replaceChildren(element("h1", {}, "No such latent"), element("p", {}, `There is no latent ${asked}: they are 0 to ${count - 1}.`));
    return;
  }
  try {
    const one = (await load(Math.floor(i / latents.chunk)))[i % latents.chunk];
    if (location.hash.slice(1) !== asked && location.hash) return; // gone on meanwhile
    place.replaceChildren(header(i), element("div", { class: "one" }, facts(i, one), examples(i, one), aside(i, one)));
  } catch (error) {
    place.replaceChildren(element("h1", {}, `Latent ${i}`), element("p", {}, error.message));
  }
}

byId("back").textContent = `All ${whole(count)} latents`;
byId("jump").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = byId("jump").querySelector("input");
  location.hash = field.value.trim().replace(/^#/, "");
  field.value = "";
});
document.addEventListener("keydown", (event) => {
  const link = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
  if (!link || event.target.closest("input") || event.altKey || event.ctrlKey || event.metaKey) return;
  const href = byId(link).getAttribute("href");
  if (href) location.hash = href;
});
byId("latent").addEventListener("click", (event) => {
  if (!String(getSelection())) event.target.closest(".contexts li")?.classList.toggle("open");
});
window.addEventListener("hashchange", () => {
  window.scrollTo(0, 0);
  show();
});
show();
