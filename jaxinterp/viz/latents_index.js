// The list: searched, sorted, and drawn only where it is seen, so that it may be long.
const HEIGHT = 33;
// While one searches, what is found stands first and is marked.
let pattern = null;
const isFound = (text) => visible(text).split(pattern).length > 1;
const marked = (text) => (pattern ? text.split(pattern).map((part, i) => (i % 2 ? element("mark", {}, part) : part)) : [text]);
const foundFirst = (all) => (pattern ? [...all.filter(isFound), ...all.filter((text) => !isFound(text))] : all);
const some = (places) => [chips(foundFirst(texts(places)), marked)];
const label = (one) => (isSet(one) ? [brief([one[0], foundFirst(one[1])], marked)] : marked(one));
const COLUMNS = [
  { name: "number", head: "latent", value: (i) => i, cell: (i) => [element("a", { href: `latent.html#${i}` }, String(i))], first: 1 },
  { name: "fires", head: "fires on", cell: (i) => some(latents.fires[i]) },
  { name: "promotes", head: "promotes", cell: (i) => some(latents.promotes[i]), about: "tokens that are bytes without text of their own come last here; a latent's page has them in their order", absent: !latents.promotes },
  { name: "label", head: "label", value: (i) => sentence(latents.labels[i]), cell: (i) => label(latents.labels[i]), about: "a set of tokens: the token is one of them", first: 1, absent: !latents.labels },
  { name: "f1", head: "F1", value: (i) => latents.f1[i], cell: (i) => [latents.f1[i]?.toFixed(2) ?? "undefined"], first: -1, absent: !latents.f1 },
  { name: "rate", head: "firing rate", value: (i) => latents.rate[i], cell: (i) => [share(latents.rate[i])], first: -1 },
  { name: "max", head: "largest", value: (i) => latents.max[i], cell: (i) => [sized(latents.max[i])], first: -1 },
  { name: "mean", head: "mean", value: (i) => latents.mean[i], cell: (i) => [sized(latents.mean[i])], first: -1 },
].filter((column) => !column.absent);
const state = { q: "", sort: "number", way: 1, dead: false };
const body = document.querySelector("#list tbody");
let shown = [];
let drawn = [-1, -1];

const words = latents.tokens.map((text) => visible(text.toLowerCase())); // as they are shown: "\u00b7dog" finds the token that begins a word
const sought = (one) => (isSet(one) ? [...(one[0] === "token" ? [] : [one[0]]), ...one[1].map(visible)] : [one]).map((text) => text.toLowerCase()); // no lead words
const haystacks = latents.fires.map((own, i) =>
  [...own, ...(latents.promotes ? latents.promotes[i] : [])].map((t) => words[t]).concat(latents.labels ? sought(latents.labels[i]) : []).join("\n"),
);

function find() {
  const asked = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (i) => asked.every((word) => String(i) === word.replace(/^#/, "") || haystacks[i].includes(word));
  pattern = asked.length ? new RegExp(`(${asked.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "i") : null;
  shown = [];
  for (let i = 0; i < count; i++) if ((state.dead || !isDead(i)) && fits(i)) shown.push(i);
  const { value } = COLUMNS.find((column) => column.name === state.sort);
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  shown.sort((a, b) => state.way * compare(value(a), value(b)) || a - b);
  const dead = state.dead ? 0 : latents.rate.filter((rate) => rate === 0).length;
  byId("count").textContent = `${whole(shown.length)} of ${whole(count - dead)} latents`;
  const among = `numbers, the tokens listed here${latents.labels ? ", and labels" : ""}${dead ? ", of latents that are ever active" : ""}`;
  const fault = asked.length ? `Nothing fits \u201c${state.q.trim()}\u201d. Searched are ${among}.` : "No latent is ever active.";
  byId("nothing").textContent = shown.length ? "" : fault;
  for (const head of document.querySelectorAll("#list th")) {
    const sorted = head.dataset.name === state.sort;
    if (head.dataset.sortable) head.setAttribute("aria-sort", sorted ? (state.way > 0 ? "ascending" : "descending") : "none");
  }
  drawn = [-1, -1];
  draw();
}

function row(i) {
  const cells = COLUMNS.map((column) => element("td", { class: column.name }, ...column.cell(i)));
  const made = element("tr", { "data-i": i, class: isDead(i) ? "dead" : "" }, ...cells);
  if (latents.labels) made.querySelector(".label").title = sentence(latents.labels[i]);
  return made;
}

function draw() {
  const top = body.getBoundingClientRect().top;
  const first = Math.max(0, Math.min(shown.length, Math.floor(-top / HEIGHT) - 20));
  const last = Math.min(shown.length, first + Math.ceil(window.innerHeight / HEIGHT) + 40);
  if (first === drawn[0] && last === drawn[1]) return;
  drawn = [first, last];
  const space = () => element("tr", { class: "space", "aria-hidden": "true" }, element("td"));
  const before = space();
  const behind = space();
  before.firstChild.style.height = `${first * HEIGHT}px`;
  behind.firstChild.style.height = `${(shown.length - last) * HEIGHT}px`;
  body.replaceChildren(before, ...shown.slice(first, last).map(row), behind);
}

function keep() {
  const asked = new URLSearchParams();
  if (state.q) asked.set("q", state.q);
  if (state.sort !== "number" || state.way !== 1) asked.set("sort", `${state.way < 0 ? "-" : ""}${state.sort}`);
  if (state.dead) asked.set("dead", "1");
  try {
    history.replaceState(null, "", `#${asked}`);
  } catch {
    // Some browsers keep the address of local files as it is.
  }
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const sort = (asked.get("sort") ?? "").replace(/^-/, "");
  if (COLUMNS.some((column) => column.name === sort && column.value)) Object.assign(state, { sort, way: asked.get("sort")[0] === "-" ? -1 : 1 });
  state.q = byId("search").value = asked.get("q") ?? "";
  state.dead = byId("dead").checked = asked.get("dead") === "1";
}

function begin() {
  const heads = COLUMNS.map((column) => {
    if (!column.value) return element("th", { class: column.name, "data-name": column.name, scope: "col", title: column.about ?? null }, column.head);
    const button = element("button", { type: "button" }, column.head);
    button.addEventListener("click", () => {
      state.way = state.sort === column.name ? -state.way : column.first;
      state.sort = column.name;
      find();
      keep();
    });
    return element("th", { class: column.name, "data-name": column.name, "data-sortable": "yes", scope: "col", title: column.about ?? null }, button);
  });
  document.querySelector("#list thead tr").append(...heads);
  byId("list").classList.toggle("labelled", Boolean(latents.labels));
  const dead = latents.rate.filter((rate) => rate === 0).length;
  byId("about").textContent = `${whole(count)} latents, ${dead ? `${whole(dead)} of them never active, ` : ""}in ${whole(latents.rows)} tokens`;
  const least = Math.floor(Math.log10(1 / latents.rows));
  const counts = new Array(-4 * least).fill(0);
  for (const rate of latents.rate) if (rate > 0) counts[Math.min(counts.length - 1, Math.max(0, Math.floor(4 * (Math.log10(rate) - least))))]++;
  const tenth = (i) => sized(10 ** (least + i / 4), 2);
  byId("density").replaceChildren(
    element("h2", {}, "How often latents are active"),
    element("p", { class: "small soft" }, "numbers of latents by firing rate; heights are logarithmic"),
    bars(counts, {
      width: 460, name: "histogram of firing rates", unit: "latents", label: (i) => `firing rate ${tenth(i)} to ${tenth(i + 1)}`,
      ticks: Array.from({ length: 1 - least }, (_, i) => [4 * i, i === -least ? "1" : `10${[..."\u207b" + (-least - i)].map((c) => "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[c] ?? c).join("")}`]),
    }),
  );
  byId("search").addEventListener("input", (event) => {
    state.q = event.target.value;
    find();
    keep();
  });
  byId("dead").addEventListener("change", (event) => {
    state.dead = event.target.checked;
    find();
    keep();
  });
  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr[data-i]");
    if (line && !event.target.closest("a") && !String(getSelection())) location.href = `latent.html#${line.dataset.i}`;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || document.activeElement === byId("search")) return;
    event.preventDefault();
    byId("search").focus();
  });
  window.addEventListener("scroll", draw, { passive: true });
  window.addEventListener("resize", draw);
  window.addEventListener("hashchange", () => {
    fromAddress();
    find();
  });
  fromAddress();
  find();
}
begin();
