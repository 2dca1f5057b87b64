
// Where people decide. Each decision is an entry of localStorage of its own, by content and reviewer, so that tabs do
// not overwrite each other's; of two about the same content by one reviewer the later by time counts.
const $ = id => document.getElementById(id), dialog = $("review"), root = document.documentElement;
const COLUMNS = ["path", "sha256", "verdict", "label", "reviewer", "seconds", "time", "note", "model", "policy"];
const VERDICTS = ["label", "unsure", "bad_file", "withdrawn"]; // as in vidcls/data/decisions.py; "" has a note alone
const PREFIX = `vidcls ${page.model} ${page.policy || "none"} `;
const places = new Map(); // of each content: its rows in the table
page.videos.forEach(([, sha256], place) => sha256 && places.set(sha256, [...places.get(sha256) ?? [], place]));
const given = new Map(); // by content, then by reviewer
const unkept = new Map(); // entries that the browser has refused
const stale = new Set(); // contents whose rows in the table do not show yet what is decided
let reviewer = "", queue = [], at = 0, started = 0, away = 0, undoable = [];

// Looked up once: thousands of rows make that slow.
const [SAID, TROUBLE, DONE, OPEN] = [".said", ".trouble", "[name=mine][value=decided] + b", "[name=mine][value=open] + b"]
  .map(selector => [...document.querySelectorAll(selector)]);
const write = (nodes, text) => nodes.forEach(node => { node.textContent = text; });
const say = text => write(SAID, text);
function warn(text) {
  write(TROUBLE, text);
  TROUBLE.forEach(node => { node.hidden = !text; });
}
function attempt(action) { // storage may be blocked or full
  try { return action(localStorage); } catch (error) {
    warn(`This browser does not keep what you decide (${error.name}). Export decisions.csv before you close this page.`);
    return undefined;
  }
}

const of = (sha256, name) => given.get(sha256)?.get(name);
const decided = decision => Boolean(decision?.verdict) && decision.verdict !== "withdrawn";
const isDecided = sha256 => decided(of(sha256, reviewer));
const nameOf = ({ verdict, label }) => verdict === "label" ? page.classes[page.labels.indexOf(label)] ?? label
  : verdict.replace("_", " ");
const others = (sha256, besides) => [...given.get(sha256) ?? []].filter(([name, one]) => name !== besides && decided(one))
  .map(([name, one]) => `${name}: ${nameOf(one)}`).join(" · ");

function take(sha256, name, decision) { // false where a later one is known
  if (of(sha256, name)?.time >= decision.time) return false;
  if (!given.has(sha256)) given.set(sha256, new Map());
  given.get(sha256).set(name, decision);
  stale.add(sha256);
  return true;
}
function takeEntry(key, text) {
  const sha256 = key.slice(PREFIX.length, PREFIX.length + 64), name = key.slice(PREFIX.length + 65);
  if (!key.startsWith(PREFIX) || !places.has(sha256)) return;
  try { take(sha256, name, check(JSON.parse(text), name)); } catch { say("A decision that this browser kept is damaged."); }
}
function update(sha256, name) { // another tab may have decided since
  const key = `${PREFIX}${sha256} ${name}`, known = attempt(store => store.getItem(key));
  if (known) takeEntry(key, known);
}
function keep(sha256, name, decision) {
  update(sha256, name);
  if (!take(sha256, name, decision)) return false;
  unkept.set(`${PREFIX}${sha256} ${name}`, JSON.stringify(decision));
  attempt(store => unkept.forEach((text, one) => { store.setItem(one, text); unkept.delete(one); }));
  return true;
}
const now = sha256 => { // later than what it replaces, even where a clock was wrong
  update(sha256, reviewer);
  const before = of(sha256, reviewer)?.time;
  return new Date(Math.max(Date.now(), before ? Date.parse(before) + 1 : 0)).toISOString();
};

const countDone = () => [...places.keys()].filter(isDecided).length;
function redraw() { // the table; not while it is covered, as that would slow each step
  for (const sha256 of stale) {
    for (const place of places.get(sha256)) {
      const row = $(`v${place + 1}`), cell = row.querySelector(".name");
      const box = cell.querySelector(".given") ?? cell.appendChild(make("div", { class: "given" }));
      box.textContent = others(sha256);
      row.dataset.mine = isDecided(sha256) ? "decided" : "open";
    }
  }
  stale.clear();
  const done = countDone();
  write(DONE, done);
  write(OPEN, places.size - done);
  narrow();
}

function loop([when, frames], { peaks }) {
  const images = frames.map(jpeg => make("img", { src: `data:image/jpeg;base64,${jpeg}`, alt: "", hidden: "" }));
  images[images.length >> 1].hidden = false;
  return make("figure", {},
    make("div", { class: "loop", role: "img", "aria-label": `Frames around ${clock(when)}` }, ...images),
    make("figcaption", {}, make("span", { class: "blinded" }, `${namePeaks(peaks, when)} at `), clock(when, 1)));
}
const pressed = action => dialog.querySelector(`[data-do=${action}]`).ariaPressed === "true";
const press = (action, on) => { dialog.querySelector(`[data-do=${action}]`).ariaPressed = on; };
function filterPictures(name, on) {
  press(name, on);
  dialog.classList.toggle(name, on);
}
setInterval(() => {
  if (!dialog.open || !pressed("play")) return;
  for (const { children } of dialog.querySelectorAll(".loop")) {
    const shown = [...children].findIndex(image => !image.hidden);
    [...children].forEach((image, place) => { image.hidden = place !== (shown + 1) % children.length; });
  }
}, 250);

function show(place) { // of the queue
  at = place;
  say("");
  const sha256 = queue[at], [row] = places.get(sha256), summary = $(`v${row + 1}`).rows[0];
  const details = detailsOf(page.videos[row][2]);
  $("title").replaceChildren(summary.querySelector("bdi").cloneNode(true));
  const facts = [".badge", ".reason", ".brief"].map(name => summary.querySelector(name).cloneNode(true));
  $("verdict").replaceChildren(...facts);
  $("loops").replaceChildren(...details ? details.loops.map(one => loop(one, details)) : ["It could not be decoded."]);
  $("model").querySelectorAll(".plot > div").forEach(box => plots.unobserve(box));
  $("model").replaceChildren(...details ? [details.cuts.length > 2 ? plot(details) : bars(details)] : []);
  if (details?.segments.length) $("model").append(list(details.segments));
  for (const name of ["blur", "grey"]) filterPictures(name, root.classList.contains(name));
  $("note").value = of(sha256, reviewer)?.note ?? "";
  [started, away] = [performance.now(), 0];
  refresh();
  dialog.scrollTop = 0;
  $("title").focus({ preventScroll: true });
}
function refresh() { // what is decided about the video that is shown
  const sha256 = queue[at], mine = of(sha256, reviewer), done = countDone();
  Object.assign(dialog.querySelector("progress"), { max: places.size, value: done });
  $("place").textContent = `Video ${at + 1} of ${queue.length} · ${done} decided`;
  for (const button of dialog.querySelectorAll("#decide [data-do]")) {
    const { do: verdict, k } = button.dataset;
    if (VERDICTS.includes(verdict)) {
      button.ariaPressed = mine?.verdict === verdict && (verdict !== "label" || page.labels[k] === mine.label);
    }
  }
  $("others").textContent = others(sha256, reviewer);
}

function step(by) {
  if (queue[at + by]) show(at + by);
  else say(by > 0 ? "This is the last video." : "This is the first video.");
}
function decide(verdict, label = "") {
  const sha256 = queue[at], seconds = Math.round((performance.now() - started - away) / 100) / 10;
  undoable.push([sha256, of(sha256, reviewer)]);
  const decision = { verdict, label, seconds, time: now(sha256), note: $("note").value };
  keep(sha256, reviewer, decision);
  const after = [...queue.slice(at + 1), ...queue.slice(0, at)].find(one => !isDecided(one));
  if (after) show(queue.indexOf(after));
  else refresh();
  const rest = after ? $("place").textContent : "All videos of this queue are decided. Export decisions.csv.";
  say(`${nameOf(decision)}. ${rest}`);
}
function undo() {
  const mine = [...places.keys()].filter(isDecided);
  const last = mine.sort((a, b) => of(a, reviewer).time < of(b, reviewer).time ? -1 : 1).at(-1);
  const [sha256, before] = undoable.pop() ?? [last];
  if (!sha256) return say("There is nothing to undo.");
  const { note } = of(sha256, reviewer), none = { verdict: "withdrawn", label: "", seconds: 0 };
  keep(sha256, reviewer, { ...decided(before) ? before : none, note, time: now(sha256) });
  if (!queue.includes(sha256)) queue.splice(at, 0, sha256);
  show(queue.indexOf(sha256));
  return say(`Undone. ${$("place").textContent}`);
}
function writeNote() {
  const sha256 = queue[at], before = of(sha256, reviewer) ?? { verdict: "", label: "", seconds: 0 };
  keep(sha256, reviewer, { ...before, note: $("note").value, time: now(sha256) });
}

function start(sha256) {
  queue = [...new Set(fitting.map(video => page.videos[rank(video) - 1][1]))].filter(Boolean);
  if ($("blind").checked) queue.sort(); // the order of the table is that of the model
  if (!queue.length) return say("No video fits the filters.");
  if (!dialog.open) dialog.showModal();
  $("who").hidden = Boolean(reviewer);
  $("desk").hidden = !reviewer;
  $("name").textContent = reviewer;
  if (reviewer) show(Math.max(0, queue.indexOf(sha256 ?? queue.find(one => !isDecided(one)))));
  else $("reviewer").focus();
  return undefined;
}

function exportDecisions() {
  const rows = [...places].flatMap(([sha256, [place]]) => [...given.get(sha256) ?? []].map(([name, one]) => {
    const row = { model: page.model, policy: page.policy, ...one, path: page.videos[place][0], sha256, reviewer: name };
    return one.verdict && COLUMNS.map(column => String(row[column]));
  })).filter(Boolean);
  if (!rows.length) return say("Nothing is decided yet.");
  const link = make("a", { download: "decisions.csv" });
  link.href = URL.createObjectURL(new Blob([writeCsv([COLUMNS, ...rows])], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return say(`Exported ${rows.length} rows to decisions.csv.`);
}
function check({ verdict, label, seconds, time, note, ...more }, name) { // an entry, or an Error that says what is wrong
  if (!["", ...VERDICTS].includes(verdict)) throw Error(`the verdict ${JSON.stringify(verdict)} is none of ${VERDICTS}`);
  const known = verdict === "label" ? page.labels.includes(label) : label === "";
  if (!known) throw Error(`the label ${JSON.stringify(label)} is no class of this page, or has no place here`);
  if (!name || typeof note !== "string") throw Error("the name of the reviewer is missing");
  if (!/^\d{4}-.*(Z|[+-]\d\d:?\d\d)$/.test(time) || !Date.parse(time)) throw Error("the time is none with a time zone");
  if (String(seconds).trim() === "" || !(Number(seconds) >= 0)) throw Error("the seconds are no number");
  return { verdict, label, seconds: Number(seconds), time: new Date(time).toISOString(), note, ...more };
}
function importDecisions(text) {
  const [[, header] = [0, []], ...rows] = readCsv(text);
  const missing = COLUMNS.filter(column => !header.includes(column));
  if (missing.length) throw Error(`it has no column ${missing.join(", ")}`);
  const found = rows.map(([line, cells]) => {
    if (cells.length !== header.length) throw Error(`line ${line} has ${cells.length} cells, not ${header.length}`);
    return [line, Object.fromEntries(header.map((column, place) => [column, cells[place]]))];
  });
  const foreign = found.filter(([, { sha256 }]) => !places.has(sha256));
  if (foreign.length) {
    const [[line, { path }]] = foreign;
    throw Error(`${foreign.length} of its ${found.length} rows are about videos that this page does not show, ` +
      `the first in line ${line}: ${path}`);
  }
  const checked = found.map(([line, { sha256, reviewer: name, verdict, label, seconds, time, note, model, policy }]) => {
    const more = { ...model !== page.model && { model }, ...policy !== page.policy && { policy } };
    try {
      return [sha256, name, check({ verdict: verdict || "none", label, seconds, time, note, ...more }, name)];
    } catch (error) { throw Error(`line ${line}: ${error.message}`); }
  });
  return checked.filter(one => keep(...one)).length; // all or none of it
}

const ACTIONS = {
  label: ({ k }) => decide("label", page.labels[k]), unsure: () => decide("unsure"), bad_file: () => decide("bad_file"),
  previous: () => step(-1), next: () => step(1), undo,
  blur: () => filterPictures("blur", !pressed("blur")), grey: () => filterPictures("grey", !pressed("grey")),
  play: () => press("play", !pressed("play")), close: () => dialog.close(),
  rename: () => { $("who").hidden = false; $("desk").hidden = true; $("reviewer").value = reviewer; $("reviewer").focus(); },
};
const KEYS = { u: "unsure", x: "bad_file", arrowleft: "previous", k: "previous", arrowright: "next", j: "next", z: "undo",
  b: "blur", g: "grey", p: "play" };
dialog.addEventListener("click", event => {
  const button = event.target.closest("[data-do]");
  if (button) ACTIONS[button.dataset.do](button.dataset);
});
dialog.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("desk").hidden) return;
  if (event.target === $("note")) {
    if (event.key === "Escape") { event.preventDefault(); $("title").focus(); }
    return;
  }
  // By the place of the key where another alphabet is typed, or digits need shift.
  const key = (/^[a-z]$/i.test(event.key) ? event.key : event.code.replace(/^(Key|Digit|Numpad)/, "")).toLowerCase();
  const button = /^[1-9]$/.test(key) && dialog.querySelector(`[data-k="${key - 1}"]`), action = KEYS[key];
  if (!$("keys").checked || !(button || action || key === "n")) return;
  event.preventDefault();
  if (event.repeat && !["previous", "next"].includes(action)) return; // a key that is held decides once
  if (button) button.click();
  else if (action) ACTIONS[action]({});
  else $("note").focus();
});
dialog.addEventListener("close", redraw);
$("who").addEventListener("submit", event => {
  event.preventDefault();
  reviewer = $("reviewer").value.trim().normalize();
  undoable = [];
  for (const sha256 of given.keys()) stale.add(sha256);
  attempt(store => store.setItem("vidcls reviewer", reviewer));
  start(queue[at]);
});
$("note").addEventListener("input", writeNote);
$("start").addEventListener("click", () => start());
table.addEventListener("click", event => {
  const pick = event.target.closest(".pick");
  if (pick) start(page.videos[rank(pick.closest("tbody")) - 1][1]);
});
document.querySelectorAll(".export").forEach(button => button.addEventListener("click", exportDecisions));
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = ""; // the same file may be chosen again
  try {
    const count = importDecisions(new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()));
    if (!unkept.size) warn("");
    say(`Imported ${count} decisions of ${file.name} that were new.`);
    redraw();
  } catch (error) {
    warn(`${file.name} was not imported: ${error.message}.`);
  }
});
$("blind").addEventListener("change", ({ target }) => {
  attempt(store => store.setItem("vidcls blind", target.checked ? "1" : ""));
  setBlind(target.checked);
});
function setBlind(on) {
  $("blind").checked = on;
  $("hidden").hidden = !on;
  root.classList.toggle("blind", on);
}
document.addEventListener("visibilitychange", () => { // time that the page is hidden is not time spent
  away += (document.hidden ? -1 : 1) * performance.now();
});
addEventListener("storage", ({ key, newValue }) => { // another tab
  if (!key || newValue === null) return;
  takeEntry(key, newValue);
  if (!dialog.open) redraw();
  else if (reviewer) refresh();
});
addEventListener("beforeunload", event => { if (unkept.size) event.preventDefault(); });

$("work").hidden = !places.size;
reviewer = attempt(store => store.getItem("vidcls reviewer")) || "";
setBlind(Boolean(attempt(store => store.getItem("vidcls blind"))));
attempt(store => Object.entries(store).forEach(entry => takeEntry(...entry)));
if (matchMedia("(prefers-reduced-motion: reduce)").matches) press("play", false);
redraw();
