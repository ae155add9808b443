// The page of a night at work: it asks the server that it comes from, which pushes what is new. With the token of the
// URL that was printed it can also steer.

const MANY = 2;  // trials at once: more of them stand beside each other, with less of their logs
const token = readToken();
let can = [], moment = null, cursor = -1, drawn = new WeakMap(), version = null;
const detailsOf = (n) => ask(`experiment/${n}`);
order = { by: "n", up: false };

function readToken() {
  const given = location.hash.match(/^#token=(.+)$/);
  if (given) {
    sessionStorage.setItem("token", given[1]);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token");
}

// What is said by the server; null where it can't be had.
async function ask(path) {
  try {
    const answer = await fetch(path);
    return answer.ok ? await answer.json() : null;
  } catch { return null; }
}

// Something is asked of it; returns its answer, or says why there is none.
async function tell(method, path, content) {
  let answer, text;
  try {
    answer = await fetch(path, { method, headers: { Authorization: `Bearer ${token}` }, body: content && JSON.stringify(content) });
    text = await answer.text();
  } catch { return { refused: "the page's server does not answer" }; }
  return answer.ok ? JSON.parse(text) : { refused: text, status: answer.status };
}

// What is at work.

function showNow() {
  const slots = moment.running.map((run) => String(run.job.slot));
  for (const box of $("now").querySelectorAll(".run")) if (!slots.includes(box.dataset.slot)) forget(box);
  $("now").classList.toggle("many", slots.length > MANY);
  for (const run of moment.running) showRun(run);
  showAhead();
  showState();
  showButtons();
}

function forget(box) {
  drawn.get(box.querySelector(".plot"))?.finalize?.();
  box.remove();
}

// What is asked and what is ready. Made anew only where it is another: a button must not go away under a finger.
function showAhead() {
  const which = moment.ahead.map((a) => `${a.experiment} ${a.doing}`).join();
  if ($("ahead")?.dataset.which !== which) {
    $("ahead")?.remove();
    if (which) $("now").append(make("ul", { id: "ahead", "data-which": which }, moment.ahead.map((a) => make("li", {},
      make("b", {}, `#${a.experiment} `), a.doing, make("span", { class: "since" }), make("span", { class: "quiet" }, ` ${a.label}`), skipper(a.experiment)))));
  }
  moment.ahead.forEach((a, at) => { $("ahead").children[at].querySelector(".since").textContent = a.since ? ` ${duration(Math.max(0, moment.at - a.since))}` : ""; });
}

function showState() {
  const { setup } = night || { setup: {} }, left = known(moment.left) ? `${duration(moment.left)} left` : "";
  const word = moment.at_work ? moment.state : `Ended: ${moment.state}`;
  const parts = [known(moment.since) && `${duration(moment.since)} in`, left, setup.proposer, setup.device];
  const calm = moment.at_work && moment.state === "at work" ? "on" : moment.at_work ? "held" : "over";
  $("setup").replaceChildren(make("span", { class: `state ${calm}` }, word), parts.filter(Boolean).map((part) => ` \u00b7 ${part}`).join(""));
}

function showRun(run) {
  const { job } = run, id = `slot-${job.slot}`, card = moment.cards.find((one) => one.uuid === job.gpu);
  const share = percent(run.share);
  const away = known(run.loss) && known(run.against) ? run.loss - run.against : null;
  const facts = [
    small("Loss", number(run.loss, 4), known(away) ? `${number(Math.abs(away), 2)} ${away < 0 ? "below" : "above"} the incumbent\u2019s at ${share}` : ""),
    small("Left", known(run.left) ? duration(run.left) : "\u2013", `${duration(run.seconds)} since its start`),
    card ? small(`GPU ${card.index}`, known(card.busy) ? percent(card.busy) : "\u2013", `${number(card.used, 3)} of ${number(card.total, 3)} GB`) : small("Slot", String(job.slot), "on the CPU"),
  ];
  const phase = job.what === "test" ? "held-out test" : job.phase === "startup" ? "starts" : job.phase === "training" ? `training ${share}` : "is scored";
  const head = [make("p", { class: "eyebrow" }, make("b", {}, `#${job.experiment}`), job.what === "test" ? "" : ` trial ${job.number + 1}`, ` \u00b7 ${phase}`),
    make("p", { class: "claim" }, run.label), make("div", { class: "progress" }, make("i", { style: { width: share } })), make("div", { class: "small" }, facts)];
  const box = boxOf(job, id);
  box.querySelector(".told").replaceChildren(...head);
  box.querySelector(".log").textContent = run.log.slice(moment.running.length > MANY ? -3 : 0).join("\n") || "nothing is printed yet";
  showCurve(box.querySelector(".plot"), run);
}

// Its place on the page, by slot; another experiment in the slot gets a new one.
function boxOf(job, id) {
  if ($(id) && $(id).dataset.experiment !== String(job.experiment)) forget($(id));
  if (!$(id)) {
    const next = [...$("now").querySelectorAll(".run")].find((box) => +box.dataset.slot > job.slot) || $("ahead");
    $("now").insertBefore(make("article", { id, class: "run", "data-slot": job.slot, "data-experiment": job.experiment },
      make("div", {}, skipper(job.experiment), make("div", { class: "told" })), make("div", { class: "plot" }),
      make("div", { class: "said" }, make("pre", { class: "log" }))), next);
  }
  return $(id);
}

async function showCurve(place, run) {
  const rows = [["this experiment", run.job.curve], ["its incumbent", run.base]].flatMap(([who, curve]) =>
    curve.map(([x, y]) => ({ who, x, y, trial: who })));
  place.hidden = !rows.length;
  if (!night || !rows.length) return;
  if (drawn.has(place)) drawn.get(place).view?.data("curves", rows).runAsync();
  else {
    drawn.set(place, {});  // until it is drawn
    drawn.set(place, await draw(place, withoutFall({ ...specs().curves, height: 150 }, rows), { curves: rows }));
  }
}

// All that was decided.

let fetching = false;
async function refresh() {
  if (fetching || moment.cursor === cursor) return;
  fetching = true;
  const wanted = moment.cursor, overview = await ask("overview");
  if (overview?.rows) {
    const first = !night;
    await show(overview);
    cursor = wanted;
    if (first) showNow();
  }
  fetching = false;
}

// Steering: there where the token is, and what the loop can be asked.

const ASKED = {
  pause: ["Pause", "what has begun comes to its end, then it waits"], resume: ["Go on", ""],
  finish: ["Stop after this", "what has begun comes to its end"], stop: ["Stop now", "trials are ended; the same command goes on later"],
};

function showButtons() {
  $("steer").hidden = !token || !moment.at_work;
  if (!token) return;
  const wanted = ["pause", "resume", "finish", "stop"].filter((what) => can.includes(what));
  if ($("buttons").dataset.can !== wanted.join()) {
    $("buttons").dataset.can = wanted.join();
    $("buttons").replaceChildren(...wanted.map((what) => make("button", { type: "button", title: ASKED[what][1], "data-ask": what,
      onclick: (event) => sure(event.currentTarget, what === "stop", () => request({ what }, ASKED[what][0])) }, ASKED[what][0])),
    make("button", { type: "button", id: "edit", onclick: edit }, "Edit program.md"));
    $("idea").hidden = !can.includes("suggest");
  }
}

function skipper(n) {
  return token && n && can.includes("skip") ? make("button", { type: "button", class: "skip", "data-ask": "skip",
    onclick: (event) => sure(event.currentTarget, true, () => request({ what: "skip", experiment: n }, `Skip #${n}`)) }, "Skip") : null;
}

// What can't be taken back is asked for twice.
function sure(button, twice, action) {
  if (!twice || button.dataset.sure) { action(); return; }
  const label = button.textContent;
  button.dataset.sure = "yes";
  button.textContent = `${label}: sure?`;
  setTimeout(() => { delete button.dataset.sure; button.textContent = label; }, 4000);
}

async function request(content, name) {
  const answer = await tell("POST", "request", content);
  report(answer.refused ? `${name}: ${answer.refused}` : answer.said || `${name}: the loop is asked`, Boolean(answer.refused));
  return !answer.refused;
}

function report(text, bad) {
  $("answer").hidden = false;
  $("answer").textContent = text;
  $("answer").classList.toggle("bad", bad);
}

async function edit() {
  const answer = await tell("GET", "program");
  if (answer.refused) { report(answer.refused, true); return; }
  load(answer);
  if (!$("editor").open) $("editor").showModal();
}

function load(answer) {
  $("text").value = answer.text;
  version = answer.version;
  refuse("");
}

function refuse(text, newer = false) {
  $("refused").textContent = text;
  $("reload").hidden = !newer;
}

async function save() {
  const answer = await tell("PUT", "program", { text: $("text").value, version });
  if (answer.refused) { refuse(answer.refused, answer.status === 412); return; }
  version = answer.version;
  $("editor").close();
  report("program.md is saved: it steers from the next proposal on", false);
}

$("save").addEventListener("click", save);
$("reload").addEventListener("click", edit);
$("idea").addEventListener("submit", async (event) => {
  event.preventDefault();
  const words = $("words").value.trim();
  if (words && await request({ what: "suggest", words }, "Your idea")) $("words").value = "";
});

// An experiment that is open can be vetoed where it was kept, and accepted where it was held.
new MutationObserver(() => {
  const row = current === null ? null : byNumber(current);
  const what = row?.kept && row.n ? "veto" : row?.kind === "held" ? "accept" : null;
  if (!what || !token || !can.includes(what) || $("decide")) return;
  const [word, title] = what === "veto" ? ["Veto", "it is taken off the branch"] : ["Accept", "it is kept where it is confirmed on the incumbent"];
  $("shown").prepend(make("button", { type: "button", id: "decide", "data-ask": what, title,
    onclick: (event) => sure(event.currentTarget, true, () => request({ what, experiment: row.n }, `${word} #${row.n}`)) }, `${word} #${row.n}`));
}).observe($("shown"), { childList: true });

const pushed = new EventSource("events");
pushed.addEventListener("can", (event) => { can = JSON.parse(event.data); });
pushed.addEventListener("now", (event) => { moment = JSON.parse(event.data); document.body.classList.remove("lost"); showNow(); refresh(); });
pushed.addEventListener("error", () => { document.body.classList.add("lost"); });
