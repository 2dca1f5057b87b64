"use strict";
const table = document.querySelector(".videos"), filter = document.forms[0];
const page = JSON.parse(document.getElementById("page").textContent);
const further = document.getElementById("further"), rank = video => Number(video.id.slice(1));
let fitting = [...table.tBodies], limit = page.atOnce; // what fits the filters, and how much of it is shown
const plots = new ResizeObserver(entries => entries.forEach(entry => entry.target.draw()));

const DRAWN = ["svg", "path", "line", "rect", "circle", "text"];
function make(name, attributes = {}, ...children) {
  const space = DRAWN.includes(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const node = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const share = p => p === null ? "–" : p.toFixed(2);
function clock(seconds, digits = 0) {
  const all = Number(seconds.toFixed(digits)), hours = Math.floor(all / 3600), minutes = Math.floor(all / 60) % 60;
  const rest = (all % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

function bars({ probabilities }) {
  const box = make("div", { class: "bars" });
  page.classes.forEach((name, k) => {
    const [p] = probabilities[k], bar = make("b", { class: page.plotted.includes(k) ? "harmful" : "" });
    bar.style.width = `${100 * p}%`;
    box.append(make("span", {}, name), make("i", { "aria-hidden": "true" }, bar), make("span", {}, share(p)));
  });
  return make("section", {}, make("h2", {}, "Probability"), box);
}

// One lane for each class, so that no colours have to be told apart.
function draw(box, { cuts, probabilities, segments, peaks }) {
  const width = Math.max(box.clientWidth, 240), end = cuts.at(-1), left = 28, right = 26, bottom = 22;
  const high = page.plotted.length > 2 ? 60 : 100, lane = high + 26, height = lane * page.plotted.length + bottom;
  const x = seconds => left + (width - left - right) * seconds / end;
  const names = page.plotted.map(k => page.classes[k]).join(", ");
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Probability of ${names} over ${clock(end)}; segments: ${segments.length}, listed below` });
  const add = (...node) => svg.appendChild(make(...node));
  const titles = page.plotted.map((k, place) => {
    const base = lane * (place + 1), y = p => base - high * p;
    for (const [, from, to] of segments.filter(one => one[0] === k)) {
      add("rect", { class: "shade", x: x(from), width: Math.max(x(to) - x(from), 1), y: y(1), height: high });
    }
    for (const p of [0, .5, 1]) {
      add("line", { class: "grid", x1: left, x2: width - right, y1: y(p), y2: y(p) });
      add("text", { x: left - 6, y: y(p) + 4, "text-anchor": "end" }, p);
    }
    let path = "", drawing = false;
    probabilities[k].forEach((p, window) => {
      if (p !== null) path += `${drawing ? "V" : `M${x(cuts[window]).toFixed(1)} `}${y(p).toFixed(1)}` +
        `H${x(cuts[window + 1]).toFixed(1)}`;
      drawing = p !== null;
    });
    add("path", { class: "curve", d: path });
    const marks = [...segments.map(([k, , , p, at]) => [k, at, p]), ...peaks].filter(one => one[0] === k);
    for (const [, at, p] of marks) if (p !== null) add("circle", { class: "mark", cx: x(at), cy: y(p), r: 4.5 });
    return add("text", { class: "title", x: left, y: y(1) - 8 }, page.classes[k]);
  });
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  const step = steps.find(step => end / step <= width / 75) ?? end;
  for (let seconds = 0; seconds <= end; seconds += step) {
    add("text", { x: x(seconds), y: height - 5, "text-anchor": "middle" }, clock(seconds));
  }
  const cursor = add("line", { class: "cursor", y1: 20, y2: height - bottom });
  svg.onpointermove = event => {
    const at = (event.offsetX * width / svg.clientWidth - left) / (width - left - right) * end;
    const seconds = Math.min(Math.max(at, 0), end), after = cuts.findIndex((cut, place) => place && cut > seconds);
    const window = after < 0 ? cuts.length - 2 : after - 1;
    for (const key of ["x1", "x2"]) cursor.setAttribute(key, x(seconds));
    cursor.style.visibility = "visible";
    page.plotted.forEach((k, place) => {
      titles[place].textContent = `${page.classes[k]} ${share(probabilities[k][window])} at ${clock(seconds, 1)}`;
    });
  };
  svg.onpointerleave = () => {
    cursor.style.visibility = "";
    page.plotted.forEach((k, place) => { titles[place].textContent = page.classes[k]; });
  };
  return svg;
}

function plot(details) {
  const box = make("div");
  box.draw = () => {
    if (box.clientWidth === box.drawn) return;
    box.drawn = box.clientWidth;
    box.replaceChildren(draw(box, details));
  };
  plots.observe(box);
  return make("section", { class: "plot" }, make("h2", {}, "Probability over time"), box);
}

function list(segments) {
  const head = ["Class", "From", "To", "Peak", "Peak at"].map(name => make("th", { scope: "col" }, name));
  const rows = segments.map(([k, from, to, p, at]) => {
    const cells = [page.classes[k], clock(from, 1), clock(to, 1), share(p), clock(at, 1)];
    return make("tr", {}, ...cells.map(text => make("td", {}, text)));
  });
  const parts = [make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)];
  return make("section", {}, make("h2", {}, "Segments"), make("table", { class: "found" }, ...parts));
}

function pictures({ peaks, loops }) {
  const buttons = loops.map(([when, frames]) => {
    const image = make("img", { src: `data:image/jpeg;base64,${frames[frames.length >> 1]}`, alt: "" });
    const caption = `${namePeaks(peaks, when)} at ${clock(when, 1)}`;
    const button = make("button", { type: "button", "aria-pressed": "false" }, make("span", {}, image), caption);
    button.onclick = () => button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false");
    return button;
  });
  return make("section", {}, make("h2", {}, "Frames at the peaks"), make("div", { class: "peaks" }, ...buttons));
}
const namePeaks = (peaks, when) => peaks.filter(peak => peak[1] === when)
  .map(([k, , p]) => `${page.classes[k]} ${share(p)}`).join(", ");

function more(video) { // the row below a video's own, made when it is first opened: thousands would make the page slow
  const [, sha256, place, facts] = page.videos[rank(video) - 1], box = make("div");
  const row = make("tr", { class: "more", id: `more-${video.id}` },
    make("td", { colspan: table.tHead.rows[0].cells.length }, box));
  const details = detailsOf(place);
  if (details === null) box.append(make("p", {}, "This video could not be decoded."));
  else {
    const drawn = box.appendChild(make("div", { class: "drawn" }));
    drawn.append(details.cuts.length > 2 ? plot(details) : bars(details));
    if (details.segments.length) drawn.append(list(details.segments));
    if (details.loops.length) drawn.append(pictures(details));
  }
  box.append(make("p", {}, sha256 ? make("button", { type: "button", class: "pick" }, "Review this video")
    : "It cannot be reviewed here, as its content is unknown."));
  box.append(make("dl", { class: "facts" }, ...Object.entries(facts).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
  video.querySelector("[aria-expanded]").setAttribute("aria-controls", row.id);
  return video.appendChild(row);
}
const detailsOf = place => place === null ? null : JSON.parse(document.getElementById(`details-${place}`).textContent);
const isOpen = video => video.classList.contains("open");
function open(video, wanted) {
  video.querySelector("[aria-expanded]").setAttribute("aria-expanded", wanted);
  video.classList.toggle("open", wanted);
  const row = video.rows[1] ?? (wanted && more(video));
  if (row) row.hidden = !wanted;
}

function sort(header) {
  const sorted = header.getAttribute("aria-sort"), numeric = !header.classList.contains("text");
  const descending = sorted ? sorted === "ascending" : header.classList.contains("number");
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = video => video.rows[0].cells[header.cellIndex].dataset.value;
  const texts = new Intl.Collator(undefined, { numeric: true });
  table.append(...[...table.tBodies].sort((one, other) => {
    const a = value(one), b = value(other), ties = rank(one) - rank(other);
    if (!a || !b) return !a - !b || ties; // what is unknown comes last, either way
    const order = numeric ? a - b : texts.compare(a, b);
    return (descending ? -order : order) || ties;
  }));
  narrow();
}

function narrow() {
  const wanted = new FormData(filter), words = wanted.get("text").trim().toLowerCase();
  fitting = [...table.tBodies].filter(video => {
    const texts = video.querySelectorAll(".name bdi, .name .reason");
    return ["decision", "status", "mine"].every(name => ["", video.dataset[name]].includes(wanted.get(name)))
      && [...texts].some(text => text.textContent.toLowerCase().includes(words));
  });
  const shown = new Set(fitting.slice(0, limit));
  for (const video of table.tBodies) if (video.hidden === shown.has(video)) video.hidden = !video.hidden;
  further.hidden = fitting.length <= limit;
  document.getElementById("count").textContent = `Showing ${shown.size} of ${page.total}`;
}

function follow() { // a link to one video: report.html#v3
  const video = /^#v\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
  if (video) {
    video.hidden = false;
    open(video, true);
    video.scrollIntoView();
  }
}

table.addEventListener("click", event => {
  const header = event.target.closest("[scope=col] > button"), summary = event.target.closest(".summary");
  if (header) sort(header.parentNode);
  if (summary && (event.target.closest("button") || getSelection().isCollapsed)) { // who selects text opens nothing
    open(summary.parentNode, !isOpen(summary.parentNode));
  }
});
document.getElementById("all").addEventListener("click", ({ target }) => {
  const wanted = target.textContent === "Open all";
  for (const video of table.tBodies) if (!video.hidden) open(video, wanted);
  target.textContent = wanted ? "Close all" : "Open all";
});
for (const name of ["blur", "grey"]) {
  document.getElementById(name).addEventListener("change", ({ target }) => {
    document.documentElement.classList.toggle(name, target.checked);
    for (const picture of document.querySelectorAll(".peaks button")) picture.setAttribute("aria-pressed", "false");
  });
}
further.addEventListener("click", () => {
  limit += page.atOnce;
  narrow();
});
further.hidden = fitting.length <= limit;
filter.addEventListener("input", narrow);
filter.addEventListener("submit", event => event.preventDefault());
addEventListener("hashchange", follow);
follow();
