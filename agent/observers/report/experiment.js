// One experiment: its evidence, its change, its trials, what was asked and said. Part of the script of the page.

async function open(n) {
  const row = byNumber(n);
  if (!row) return;
  current = n;
  history.replaceState(null, "", `#${n}`);
  const found = await detailsOf(n);
  if (current !== n || !found) return;  // another one was opened meanwhile
  details = found;
  const own = details.experiments[n], base = known(row.base) ? details.experiments[row.base] : null;
  const failed = row.n && !known(row.metric), said = log(own, failed);
  $("shown").replaceChildren(...evidence(row, own), ...plot("seeds", base ? "Its trials beside the incumbent\u2019s" : "Its trials"),
    ...change(own), ...(failed ? said : []), ...plot("curves", "Training loss"), ...trials(row, own, base), ...(failed ? [] : said), ...talk(own));
  $("details").hidden = false;
  $("details").scrollTop = 0;
  $("details").focus({ preventScroll: true });
  for (const line of $("rows").tBodies[0].rows) line.classList.toggle("chosen", +line.dataset.n === n);
  chart?.view.data("chosen", chosen()).runAsync();
  await plots(own, base);
}

function close() {
  current = null;
  $("details").hidden = true;
  history.replaceState(null, "", location.pathname + location.search);
  chart?.view.data("chosen", []).runAsync();
}

function step(by) {
  const at = shown.findIndex((row) => row.n === current), next = shown[at + by];
  if (at >= 0 && next) open(next.n);
}

function small(name, value, note) {
  return make("div", {}, make("div", { class: "name" }, name), make("div", { class: "value" }, value), note ? make("div", { class: "note" }, note) : null);
}

function evidence(row, own) {
  const { startup, training, evaluation, model } = row.seconds, items = [];
  if (known(row.metric)) items.push(small(night.metric.name, number(row.metric, 6)));
  if (known(row.effect)) items.push(small("Effect", signed(row.effect), row.interval ? `${row.level}: ${range(row.interval)}` : ""));
  if (row.trials) items.push(small("Trials took", duration(total(row)),
    `startup ${duration(startup)}, training ${duration(training)}, evaluation ${duration(evaluation)}`));
  if (row.n) items.push(small("Cost", dollars(row.usd), `${row.tokens.toLocaleString("en")} tokens, ${duration(model)} of waiting`));
  if (known(row.memory)) items.push(small("Peak memory", `${number(row.memory, 3)} GB`));
  for (const [name, value] of Object.entries(own.test)) items.push(small(`Held out: ${name}`, number(value)));
  const line = [row.category, row.proposer, row.commit && `commit ${row.commit}`, known(row.base) && `on #${row.base}`];
  return [
    make("p", { class: "eyebrow" }, `#${row.n} `, glyph(row.kind), row.kind, row.review ? " \u00b7 marked for a look" : ""),
    make("h2", {}, textOf(own.hypothesis)), make("p", { class: "reason" }, textOf(own.reason)),
    make("p", { class: "quiet" }, line.filter(Boolean).join(" \u00b7 ")), make("div", { class: "small" }, items),
  ];
}

function trials(row, own, base) {
  const all = [...own.trials.map((trial) => ["this", trial]), ...(base?.trials || []).map((trial) => [`incumbent #${row.base}`, trial])];
  if (!own.trials.length) return [];
  const notes = all.map(([, trial]) => trial.superseded ? "on an older incumbent" : trial.reason || "");
  const told = notes.some(Boolean);
  const names = ["", "seed", night.metric.name, "trained", "memory", ...(told ? [""] : [])];
  return [make("h3", {}, "Each trial"), make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, names.map((name, at) => make("th", { class: at && at < 5 ? "r" : null }, name)))),
    make("tbody", {}, all.map(([who, trial], at) => make("tr", {}, make("td", {}, who), make("td", { class: "r" }, String(trial.seed)),
      make("td", { class: "r" }, known(trial.metric) ? number(trial.metric, 6) : trial.outcome),
      make("td", { class: "r" }, trial.seconds ? duration(trial.seconds.training) : "\u2013"),
      make("td", { class: "r" }, known(trial.memory) ? `${number(trial.memory, 3)} GB` : "\u2013"),
      told ? make("td", { class: "note quiet" }, notes[at]) : null)))))];
}

const plot = (id, title) => [make("h3", { id: `${id}-title` }, title), make("div", { class: "plot", id })];

async function plots(own, base) {
  const sides = [["this experiment", own], ...(base ? [["its incumbent", base]] : [])];
  const all = sides.flatMap(([who, side]) => side.trials.map((trial) => ({ who, trial })));
  const compared = own.trials.some((trial) => known(trial.metric)) ? all : [];  // beside a crash there is nothing to compare
  const seeds = compared.filter(({ trial }) => known(trial.metric)).map(({ who, trial }) => ({ who, metric: trial.metric }));
  const curves = all.flatMap(({ who, trial }) => (trial.curve || []).map(([x, y]) => ({ who, x, y, trial: `${who} ${trial.number}` })));
  for (const [id, rows] of Object.entries({ seeds, curves })) {
    const [place, title] = [$(id), $(`${id}-title`)];
    const spec = id === "curves" ? withoutFall(specs()[id], rows) : specs()[id];
    if (rows.length && place) await draw(place, spec, { [id]: rows });
    else [place, title].forEach((part) => part?.remove());
  }
}

// The steep fall at the beginning would flatten the rest, where curves differ: the scale is that of what comes after it.
function withoutFall(spec, rows) {
  const late = rows.filter(({ x }) => x >= 0.1).map(({ y }) => y), all = Math.max(...rows.map(({ y }) => y));
  const [low, high] = [Math.min(...late), Math.max(...late)], room = 0.15 * (high - low);
  if (late.length < 20 || all < high + room) return spec;
  const { y } = spec.encoding;
  return { ...spec, encoding: { ...spec.encoding, y: { ...y, scale: { ...y.scale, domain: [low - room, high + room], nice: false } } } };
}

function change(own) {
  const text = textOf(own.diff);
  if (!text) return [];
  const kind = (line) => /^(---|\+\+\+|@@)/.test(line) ? "at" : line.startsWith("+") ? "plus" : line.startsWith("-") ? "minus" : null;
  return [make("h3", {}, "Change"), make("pre", { class: "diff" }, text.split("\n").map((line) => make("span", { class: kind(line) }, line || " ")))];
}

function folded(title, note, text, wide) {
  return text ? make("details", {}, make("summary", {}, title, " ", make("span", { class: "quiet" }, note)), make("pre", { class: wide ? null : "wrap" }, text)) : null;
}

function log(own, failed) {
  const last = own.trials.filter((trial) => known(trial.log)).at(-1);
  if (!last) return [];
  const shownLog = folded("Log", `the end of trial ${last.number + 1}`, textOf(last.log), true);
  shownLog.open = failed;
  return [shownLog];
}

function talk(own) {
  return own.calls.flatMap((call, at) => {
    const many = own.calls.length > 1 ? ` ${at + 1} (${call.kind})` : "";
    const used = known(call.input) ? `${call.input.toLocaleString("en")} tokens` : "";
    const gave = known(call.output) ? `${call.who}, ${call.output.toLocaleString("en")} tokens, ${dollars(call.usd)}, ${duration(call.seconds)}` : "";
    return [folded(`Prompt${many}`, used, textOf(call.question)), folded(`Reply${many}`, call.unusable || gave, textOf(call.reply))];
  }).filter(Boolean);
}

