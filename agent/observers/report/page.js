// The page of a night. It reads the overview that stands in it, shows it, and unpacks the details when one experiment
// is opened. Whatever a model or a program wrote is put in as text: nothing here makes markup of a string.

const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
let night, details, chart, shown = [], order = { by: "n", up: true };
const off = new Set();  // kinds of verdict that are filtered out
let view = "all";       // of the chart: "close" leaves out the early part of a night
let current = null;     // number of the experiment that is open

// Small tools.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const known = (value) => value !== null && value !== undefined;
const number = (value, digits = 5) => known(value) ? String(+value.toPrecision(digits)).replace("-", "\u2212") : "\u2013";
const signed = (value) => known(value) ? (value > 0 ? "+" : "") + number(value, 3) : "\u2013";
const range = (pair) => pair ? `${number(pair[0], 3)}\u00a0\u2026\u00a0${number(pair[1], 3)}` : "\u2013";
const dollars = (value) => !known(value) ? "not known" : value === 0 ? "$0" : value < 0.01 ? "<1\u00a2"
  : "$" + value.toFixed(value < 1000 ? 2 : 0);
const percent = (share) => `${Math.round(100 * share)}%`;
function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (seconds < 90) return `${seconds < 10 ? Math.round(seconds * 10) / 10 : Math.round(seconds)} s`;
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
const total = (row) => row.seconds.startup + row.seconds.training + row.seconds.evaluation;
const look = (kind) => night.looks[kind] || night.looks.other;
function glyph(kind) {
  return make("span", { class: "glyph", "aria-hidden": "true", style: { color: look(kind)[theme()] } },
    look(kind).glyph);
}
const byNumber = (n) => night.rows.find((row) => row.n === n);

// The text with this number, from its runs of lines.
function textOf(number) {
  if (!known(number)) return "";
  const { lines, runs } = details.texts, parts = [];
  for (let at = 0, run = runs[number]; at < run.length; at += 2) parts.push(...lines.slice(run[at], run[at] + run[at + 1]));
  return parts.join("\n");
}

// The top of the page.

function fact(name, value, ...notes) {
  return make("div", { class: "fact" }, make("div", { class: "name" }, name), make("div", { class: "value" }, value),
    notes.filter(Boolean).map((note) => make("div", { class: "note" }, note)));
}

function showTop() {
  const { facts, metric } = night;
  const heading = known(facts.gain) && facts.kept
    ? [make("h1", {}, `${metric.name} `, make("span", { class: "good" }, `${number(facts.baseline)} \u2192 ${number(facts.best)}`))]
    : [make("h1", {}, facts.kept ? `${metric.name} ${number(facts.best)}` : !known(facts.baseline)
      ? "The baseline is not measured" : `Nothing was kept; ${metric.name} is ${number(facts.baseline)}`)];
  const certain = !facts.interval ? "" : facts.interval[0] > 0 ? "Confirmed gain" : "Gain, not yet certain:";
  if (known(facts.gain) && facts.kept)
    heading.push(make("p", { class: "lead" }, `${certain} ${number(facts.gain, 3)}, 95% interval ${range(facts.interval)}`));
  $("headline").replaceChildren(...heading);
  showState();
  if (night.look.length) showLook();
  showFacts(facts);
}

const LOOKED = 6;  // things to look at that are shown without asking

function showLook() {
  const list = (items) => make("ul", {}, items.map((item) => make("li", {},
    known(item.n) ? [make("a", { href: `#${item.n}` }, `#${item.n}`), " "] : [], item.text)));
  const more = night.look.slice(LOOKED);
  $("look").hidden = false;
  $("look").replaceChildren(make("h2", {}, "Needs a look"), list(night.look.slice(0, LOOKED)),
    ...(more.length ? [make("details", {}, make("summary", {}, `${more.length} more`), list(more))] : []));
}

function showFacts(facts) {
  const cells = [fact("Kept", `${facts.kept} of ${facts.tried}`, facts.tried ? `${percent(facts.kept / facts.tried)} of experiments` : "",
    known(facts.best_number) && facts.kept ? `best: #${facts.best_number}` : "")];
  for (const test of facts.test)
    cells.push(fact("Held-out test", number(test.after), test.first === test.last ? test.name
      : `${test.name}, was ${number(test.before)} at #${test.first}`));
  cells.push(known(facts.per_hour)
    ? fact("Experiments per hour", number(facts.per_hour, 3), `${facts.tried} in ${duration(facts.hours * 3600)}`, `${facts.trials} trials`)
    : fact("Trials", String(facts.trials)));
  const sum = Object.values(night.times).reduce((all, seconds) => all + seconds, 0);
  if (sum) cells.push(fact("In training", percent(night.times.training / sum), "of the slots\u2019 time"));
  cells.push(fact("Dollars", dollars(facts.spent), known(facts.cap) ? `of ${dollars(facts.cap)} allowed` : "", facts.spent && known(facts.per_experiment) ? `${dollars(facts.per_experiment)} per experiment` : "",
    facts.spent && known(facts.per_gain) ? `${dollars(facts.per_gain)} per confirmed gain` : "",
    facts.unknown_prices ? "the proposer names no price" : `${facts.tokens.toLocaleString("en")} tokens`));
  $("facts").replaceChildren(...cells);
}

function showTimes() {
  const colors = { training: "training", startup: "startup", evaluation: "evaluation", "waiting for a model": "waiting",
    paused: "paused", idle: "idle" };
  const sum = Object.values(night.times).reduce((all, seconds) => all + seconds, 0);
  const parts = Object.entries(night.times).filter(([, seconds]) => seconds > 0.005 * sum);
  if (!sum) return;
  const color = (name) => ({ background: `var(--${colors[name]})` });
  $("times").replaceChildren(
    make("div", { class: "bar", role: "img", "aria-label": parts.map(([name, s]) => `${name} ${percent(s / sum)}`).join(", ") },
      parts.map(([name, seconds]) => make("i", { style: { ...color(name), flexGrow: seconds / sum } }))),
    make("div", { class: "keys" }, parts.map(([name, seconds]) => make("span", { title: duration(seconds) },
      make("i", { style: color(name) }), `${name} ${percent(seconds / sum)}`))));
}

function showGroups() {
  $("categories").replaceChildren(
    make("thead", {}, make("tr", {}, ["Category", "Kept", "", "Gain"].map((name, at) => make("th", { class: at === 1 || at === 3 ? "r" : null }, name)))),
    make("tbody", {}, night.categories.map((group) => make("tr", openers(() => { $("category").value = group.category; filter(); }),
      make("td", {}, group.category), make("td", { class: "r" }, `${group.kept} of ${group.tried}`),
      make("td", { class: "rate" }, make("span", {}, make("i", { style: { width: percent(group.kept / group.tried) } }))),
      make("td", { class: "r" }, group.kept ? signed(group.effect) : "\u2013")))));
  $("failed").hidden = !night.failures.length;
  $("failures").replaceChildren(...night.failures.slice(0, 12).map((group) => make("li", openers(() => open(group.numbers[0])),
    make("span", {}, glyph(group.kind), group.kind), make("span", { class: "what quiet" }, group.reason), make("span", {}, String(group.numbers.length)))));
}

// Anything that opens by a click opens by the keyboard too.
function openers(action) {
  return { tabindex: "0", onclick: action, onkeydown: (event) => { if (event.key === "Enter" && event.target === event.currentTarget) action(); } };
}

// Filters, table.

function showFilters() {
  const counts = {};
  for (const row of night.rows) counts[row.kind] = (counts[row.kind] || 0) + 1;
  $("kinds").replaceChildren(...Object.keys(counts).map((kind) => make("button", {
    class: "chip", type: "button", "aria-pressed": String(!off.has(kind)), "data-kind": kind,
    onclick: (event) => {
      if (!off.delete(kind)) off.add(kind);
      event.currentTarget.setAttribute("aria-pressed", String(!off.has(kind)));
      filter();
    },
  }, glyph(kind), kind, make("span", { class: "number" }, String(counts[kind])))));
  const chosen = $("category").value;
  const names = [...new Set(night.rows.map((row) => row.category).filter(Boolean))].sort();
  $("category").replaceChildren(make("option", { value: "" }, "All categories"), ...names.map((name) => make("option", { value: name }, name)));
  $("category").value = chosen || "";
}

function filter() {
  const category = $("category").value, words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = night.rows.filter((row) => {
    const text = `#${row.n} ${row.label} ${row.category} ${row.reason} ${row.kind}`.toLowerCase();
    return !off.has(row.kind) && (!category || row.category === category) && words.every((word) => text.includes(word));
  });
  const value = order.by === "time" ? total : (row) => row[order.by];
  shown.sort((a, b) => !known(value(a)) ? 1 : !known(value(b)) ? -1  // what has no number comes last either way
    : (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : a.n - b.n) * (order.up ? 1 : -1));
  $("count").value = shown.length === night.rows.length ? `${shown.length} experiments` : `${shown.length} of ${night.rows.length}`;
  const visible = new Set(shown.map((row) => row.n));
  for (const row of $("rows").tBodies[0].rows) row.hidden = !visible.has(+row.dataset.n);
  if (chart) chart.view.data("points", points().filter((point) => visible.has(point.n))).runAsync();
}

const COLUMNS = [["#", "n"], ["verdict", "kind"], ["METRIC", "metric"], ["effect", "effect"], ["category", "category"],
  ["what", "label"], ["time", "time"], ["cost", "usd"]];

function showTable() {
  $("rows").tHead.replaceChildren(make("tr", {}, COLUMNS.map(([name, by], at) => make("th", { class: [2, 3, 6, 7].includes(at) ? "r" : null },
    make("button", { type: "button", onclick: () => { order = { by, up: order.by === by ? !order.up : true }; filter(); sortRows(); } },
      name === "METRIC" ? night.metric.name : name)))));
  $("rows").tBodies[0].replaceChildren(...night.rows.map((row) => make("tr", {
    ...openers(() => open(row.n)), "data-n": row.n, class: row.kept ? "kept" : null,
  },
  make("td", {}, `#${row.n}`), make("td", {}, glyph(row.kind), row.kind, row.review ? make("span", { title: "marked for a look" }, " \u2691") : null),
  make("td", { class: "r" }, number(row.metric)), make("td", { class: "r" }, signed(row.effect)), make("td", { class: "quiet", title: row.category }, row.category),
  make("td", { class: "what", title: row.label }, row.label), make("td", { class: "r" }, row.trials ? duration(total(row)) : "\u2013"),
  make("td", { class: "r" }, row.n && known(row.usd) ? dollars(row.usd) : "\u2013"))));
}

function sortRows() {
  const body = $("rows").tBodies[0], rows = new Map([...body.rows].map((row) => [+row.dataset.n, row]));
  body.append(...shown.map((row) => rows.get(row.n)));
}

// The chart of the night.

const theme = () => dark.matches ? "dark" : "light";
const specs = () => night.specs[theme()];
const points = () => night.views[view].points;

// Expressions are interpreted and not compiled, so that the page needs no right to make code of text.
function draw(element, spec, data) {
  for (const [name, values] of Object.entries(data)) spec = { ...spec, datasets: { ...spec.datasets, [name]: values } };
  return vegaEmbed(element, structuredClone(spec), { actions: false, ast: true, renderer: "svg", defaultStyle: false, tooltip: false });
}

async function showChart() {
  chart?.finalize();
  chart = await draw($("chart"), night.views[view][theme()], { points: points(), stairs: night.stairs, chosen: chosen() });
  const beyond = points().filter((point) => point.beyond).length;
  $("caption").textContent = "Each point is one experiment with the interval of its effect; the line is the best verified commit, "
    + "the band what one trial may vary by luck. Points at the foot have no number."
    + (beyond ? ` Beyond the range, and drawn at its edge: ${beyond}.` : "");
}

async function switchView() {
  view = view === "all" ? "close" : "all";
  $("closer").textContent = view === "all" ? "Look closer" : "Show all";
  await showChart();
  filter();
}

const chosen = () => points().filter((point) => point.n === current && known(point.y));

// The experiment whose point is nearest to the pointer, within a finger's width.
function nearest(event) {
  if (!chart) return null;
  const frame = $("chart").querySelector("svg").getBoundingClientRect(), [left, top] = chart.view.origin();
  const x = chart.view.scale("x"), y = chart.view.scale("y"), reach = event.pointerType === "touch" ? 28 : 18;
  const visible = new Set(shown.map((row) => row.n));
  let best = null, least = reach;
  for (const point of points()) {
    if (!visible.has(point.n)) continue;
    const foot = night.views.all.light.height - night.strip / 2 + 3;
    const away = Math.hypot(frame.left + left + x(point.n) - event.clientX, frame.top + top + (known(point.y) ? y(point.y) : foot) - event.clientY);
    if (away < least || (away === least && point.kept)) [best, least] = [point, away];
  }
  return best && byNumber(best.n);
}

function hint(event) {
  const row = nearest(event), box = $("hint");
  box.hidden = !row || event.pointerType === "touch";
  if (box.hidden) return;
  const numbers = [known(row.metric) ? `${night.metric.name} ${number(row.metric)}` : "", known(row.effect) ? `effect ${signed(row.effect)} (${range(row.interval)})` : "",
    row.trials ? `${row.trials} trial${row.trials > 1 ? "s" : ""}` : ""];
  box.replaceChildren(make("b", {}, `#${row.n} `, glyph(row.kind), row.kind), make("p", {}, row.label),
    make("span", { class: "quiet" }, numbers.filter(Boolean).join(" \u00b7 ") || row.reason));
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  box.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 18}px`;
}

// All of it.

async function show(overview) {
  night = overview;
  showTop();
  showTimes();
  showGroups();
  showFilters();
  showTable();
  filter();
  sortRows();
  $("footer").replaceChildren("Take what was kept:", make("code", {}, `git log -p --reverse HEAD..${night.branch}`), make("code", {}, `git merge --ff-only ${night.branch}`));
  $("closer").hidden = !night.views.close;
  await showChart();
  if (current === null && /^#\d+$/.test(location.hash)) await open(+location.hash.slice(1));
  document.documentElement.dataset.ready = "yes";
}

$("search").addEventListener("input", filter);
$("category").addEventListener("change", filter);
$("chart").addEventListener("pointermove", hint);
$("chart").addEventListener("pointerleave", () => { $("hint").hidden = true; });
$("chart").addEventListener("click", (event) => { const row = nearest(event); if (row) open(row.n); });
$("closer").addEventListener("click", switchView);
$("close").addEventListener("click", close);
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
addEventListener("hashchange", () => { if (/^#\d+$/.test(location.hash)) open(+location.hash.slice(1)); });
addEventListener("keydown", (event) => {
  if (event.target.matches("input, select")) return;
  if (event.key === "Escape") close();
  if (current !== null && event.key === "ArrowLeft") step(-1);
  if (current !== null && event.key === "ArrowRight") step(1);
});
dark.addEventListener("change", async () => { showFilters(); showTable(); showGroups(); filter(); await showChart(); if (current !== null) open(current); });
