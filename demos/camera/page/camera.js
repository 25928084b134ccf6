// The camera page: hears of every frame, shows picture and answer, draws the minute, turns the dials.

import { Chart, colour, short } from "./charts.js";

const STAGES = ["capture", "head", "codec", "link", "server", "waiting"];
const KINDS = { cloud: "the server", own: "the device", stead: "device, instead", none: "nobody" };
const BADGES = {
  cloud: "the server answered",
  own: "the device answered",
  stead: "the device, instead",
  none: "no answer",
};
const FAULTS = {
  cut: "Cut: the connection is closed and none is accepted. WHO; once the link is back, the server does again.",
  stall: "Stalled: bytes wait in both directions, nothing is lost, and nobody is told.",
  hole: "Black hole: the connection seems open, and whatever it carries is gone.",
};
const DRAWN = 150;  // milliseconds between two drawings
const HELD = 900;  // milliseconds for which a dial that was touched is not moved by others
const SILENT = 3000;  // milliseconds without a frame after which the page says so

const $ = (id) => document.getElementById(id);
const text = (id, value) => { if ($(id).textContent !== value) $(id).textContent = value; };
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

let about = null, points = [], ahead = 0, heard = 0, touched = 0, charts = null, linked = false;

// What comes

const stream = new EventSource("/events");
stream.addEventListener("hello", (event) => {
  const told = JSON.parse(event.data);
  about = told.about;
  points = told.past;
  clock(told.t);
  linked = true;
  begin();
  dials(told.link);
});
stream.addEventListener("frame", (event) => {
  const point = JSON.parse(event.data);
  heard = performance.now();
  clock(point.t);
  show(point);
  delete point.picture;
  points.push(point);
  while (points.length && points[0].t < point.t - about.seconds - 2) points.shift();
  dials(point.link);
});
stream.addEventListener("beat", (event) => {
  const told = JSON.parse(event.data);
  clock(told.t);
  dials(told.link);
});
stream.addEventListener("open", () => { linked = true; });
stream.addEventListener("error", () => { linked = false; });

/** Seconds of the device's clock now. */
function now() {
  return performance.now() / 1000 + ahead;
}

function clock(time) {
  const seen = time - performance.now() / 1000;
  ahead = Math.abs(seen - ahead) > 1 ? seen : ahead + 0.1 * (seen - ahead);
}

// The picture and its answer

function show(point) {
  $("picture").src = point.picture;
  text("label", point.label ?? "–");
  text("score", point.score === null ? "" : `${Math.round(100 * point.score)} %`);
  text("badge", BADGES[point.kind]);
  const where = { cloud: "cloud", none: "none" }[point.kind] ?? "edge";
  Object.assign($("badge").dataset, { where, kind: point.kind });
  text("plan", point.kind === "none" ? "" : point.plan);
  text("reason", point.reason ?? "");
  way(point);
  boxes(point.boxes);
}

/** Where the frame went, and what that took. */
function way({ kind, stages, bytes, up }) {
  const { capture, head, codec, link, server } = stages;
  text("device-ms", `${short(capture + head + codec)} ms`);
  text("server-ms", kind === "cloud" ? `${short(server)} ms` : "–");
  text("link-ms", kind === "cloud" ? `${short(link)} ms` : up === false ? "down" : "");
  text("link-bytes", bytes ? `${short(bytes)} B` : "");
  $("way-device").classList.toggle("here", kind === "own" || kind === "stead");
  $("way-device").classList.toggle("instead", kind === "stead");
  $("way-server").classList.toggle("here", kind === "cloud");
  $("way-link").classList.toggle("used", bytes > 0);
  $("way-link").classList.toggle("down", up === false);
}

function boxes(found) {
  const canvas = $("boxes"), image = $("picture"), ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  if (!found.length || !image.naturalWidth) return;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const scale = Math.min(width / image.naturalWidth, height / image.naturalHeight);
  const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
  const [left, top] = [(width - w) / 2, (height - h) / 2];
  pen.font = "600 12px system-ui, sans-serif";
  pen.lineWidth = 2;
  for (const [x1, y1, x2, y2, name, score] of found) {
    const words = `${name} ${Math.round(100 * score)} %`;
    pen.strokeStyle = pen.fillStyle = "#ffd166";
    pen.strokeRect(left + x1 * w, top + y1 * h, (x2 - x1) * w, (y2 - y1) * h);
    const y = Math.max(top + y1 * h, 18);
    pen.fillRect(left + x1 * w - 1, y - 18, pen.measureText(words).width + 10, 18);
    pen.fillStyle = "#1b1b1b";
    pen.fillText(words, left + x1 * w + 4, y - 5);
  }
}

// The figures of the last ten seconds

function number(id, value, unit) {
  const told = value === null ? "–" : value;
  if ($(id).dataset.told === told + unit) return;
  $(id).dataset.told = told + unit;
  const small = document.createElement("small");
  small.textContent = unit;
  $(id).replaceChildren(told, ...(value === null ? [] : [small]));
}

function figures(time) {
  const last = points.filter((point) => point.t > time - 10 && point.kind !== "none");
  const all = points.filter((point) => point.t > time - 10);
  const one = points.at(-1);
  if (!all.length) {
    for (const id of ["median", "size", "share", "pace", "energy"]) number(id, null, "");
    return;
  }
  const times = last.map((point) => point.total).sort((a, b) => a - b);
  const costs = all.map((point) => point.joules).filter((value) => value !== null);
  const span = Math.min(10, Math.max(time - all[0].t, 1));
  number("median", times.length ? short(times[times.length >> 1]) : null, "ms");
  number("size", short(mean(all.map((point) => point.bytes))), "B");
  number("share", short(100 * mean(all.map((p) => +(p.kind === "own" || p.kind === "stead")))), "%");
  number("pace", (all.length / span).toFixed(1), "/s");
  number("energy", costs.length ? short(1000 * mean(costs)) : null, "mJ");
  if (one.up === false) number("believed", "down", "");
  else number("believed", one.mbps === null ? null : short(one.mbps), "Mbit/s");
}

// The charts

function begin() {
  text("model", about.model);
  const classes = about.labels ? `, ${about.labels} classes` : "";
  text("limit", `${classes}, deadline ${short(about.deadline_ms)} ms`);
  text("joules-note", `estimated for ${about.joules.device}: head and radio`);
  legend("stages-legend", STAGES.map((stage) => [stage, stage]));
  legend("kinds-legend", Object.entries(KINDS));
  legend("link-legend", [["cloud", "believed"], ["soft", "set"], ["alarm", "down"]]);
  const units = {
    latency: "ms a frame", kinds: "% of frames", plans: "", bytes: "B/s",
    rate: "Mbit/s up", trip: "ms round trip", joules: "mJ a frame",
  };
  charts = Object.fromEntries(
    Object.entries(units).map(([id, unit]) => [id, new Chart($(id), about.seconds, unit)]),
  );
}

function legend(id, pairs) {
  $(id).replaceChildren(...pairs.map(([paint, words]) => {
    const one = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = `var(--${paint})`;
    one.append(dot, words);
    return one;
  }));
}

/** Points in spans of so many seconds: [[from, to, points], …]; the spans stay where they are. */
function spans(seconds) {
  const found = new Map();
  for (const point of points) {
    const from = Math.floor(point.t / seconds) * seconds;
    if (!found.has(from)) found.set(from, []);
    found.get(from).push(point);
  }
  return [...found].map(([from, inside]) => [from, from + seconds, inside]);
}

function draw() {
  const time = now();
  figures(time);
  latency(charts.latency.begin(time));
  kinds(charts.kinds.begin(time));
  plans(charts.plans.begin(time));
  bytes(charts.bytes.begin(time));
  link(charts.rate.begin(time), charts.trip.begin(time));
  energy(charts.joules.begin(time));
}

function latency(chart) {
  const paint = Object.fromEntries(STAGES.map((stage) => [stage, colour(stage)]));
  const bins = spans(0.5).map(([from, to, inside]) => ({
    from, to,
    parts: STAGES.map((stage) => [paint[stage], mean(inside.map((p) => p.stages[stage]))]),
  }));
  const tops = bins.map((bin) => bin.parts.reduce((sum, part) => sum + part[1], 0));
  const most = Math.max(10, ...tops);
  chart.linear(most > 0.5 * about.deadline_ms ? Math.max(most, 1.1 * about.deadline_ms) : most);
  chart.columns(bins);
  if (about.deadline_ms && chart.scale.high >= about.deadline_ms) {
    chart.mark(about.deadline_ms, "deadline", chart.ink.ink);
  }
}

function kinds(chart) {
  const names = Object.keys(KINDS), paint = names.map(colour);
  chart.linear(100);
  chart.columns(spans(1).map(([from, to, inside]) => ({
    from, to,
    parts: names.map((kind, i) => [
      paint[i], 100 * mean(inside.map((point) => +(point.kind === kind))),
    ]),
  })));
}

function plans(chart) {
  const cost = new Map();
  for (const { plan, bytes } of points) {
    const [sum, count] = cost.get(plan) ?? [0, 0];
    cost.set(plan, [sum + bytes, count + 1]);
  }
  const each = (name) => cost.get(name)[0] / cost.get(name)[1];
  const names = [...cost.keys()].sort((a, b) => each(b) - each(a) || (a < b ? -1 : 1));
  const paint = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, colour(kind)]));
  chart.rows(names, points.map((point) => [point.t, point.plan, paint[point.kind]]));
}

function bytes(chart) {
  const bins = spans(1).map(([from, to, inside]) => ({
    from, to,
    parts: [[colour("cloud"), inside.reduce((sum, point) => sum + point.bytes, 0)]],
  }));
  chart.linear(Math.max(100, ...bins.map((bin) => bin.parts[0][1])));
  chart.columns(bins);
}

function link(rate, trip) {
  const down = [];
  points.forEach((point, i) => {
    if (point.up !== false) return;
    const end = points[i + 1]?.t ?? now();
    if (points[i - 1]?.up === false && down.length) down.at(-1)[1] = end;
    else down.push([point.t, end]);
  });
  const paint = colour("cloud"), alarm = colour("alarm");
  const rates = points.flatMap((p) => [p.mbps, p.link.mbps]).filter((value) => value > 0);
  rate.powers(Math.min(0.1, ...rates), Math.max(10, ...rates));
  trip.linear(Math.max(20, ...points.flatMap((p) => [p.rtt_ms ?? 0, p.link.rtt_ms])));
  for (const [chart, key] of [[rate, "mbps"], [trip, "rtt_ms"]]) {
    chart.shade(down, alarm);
    chart.line(points.map((p) => [p.t, p.link[key]]), chart.ink.soft, {
      dash: [5, 4], steps: true, wide: 1.4,
    });
    chart.line(points.map((p) => [p.t, p[key]]), paint);
  }
}

function energy(chart) {
  const known = points.filter((point) => point.joules !== null);
  chart.linear(Math.max(1, ...known.map((point) => 1000 * point.joules)));
  if (!known.length) {
    chart.empty(about.joules.why ?? "no estimate for these plans");
    return;
  }
  const paint = { cloud: colour("cloud"), edge: colour("own") };
  chart.columns(spans(1).map(([from, to, inside]) => {
    const some = inside.filter((point) => point.joules !== null);
    const share = (kinds) => some.filter((p) => kinds.includes(p.kind))
      .reduce((sum, p) => sum + (1000 * p.joules) / some.length, 0);
    return { from, to, parts: [[paint.edge, share(["own", "stead"])], [paint.cloud, share(["cloud"])]] };
  }));
}

// The dials

const sliders = {
  mbps: {
    get: (place) => Number((10 ** place).toPrecision(2)), place: (value) => Math.log10(value),
    told: (value) => value < 1 ? `${short(1000 * value)} kbit/s` : `${short(value)} Mbit/s`,
  },
  rtt: { field: "rtt_ms", get: Number, place: Number, told: (value) => `${short(value)} ms` },
  jitter: { field: "jitter_ms", get: Number, place: Number, told: (value) => `${short(value)} ms` },
};
const faults = ["cut", "stall", "hole"];
let pending = {}, timer = null;

/** Move the dials to where the link is, unless somebody has a hand on them. */
function dials(link) {
  if (performance.now() - touched < HELD) return;
  for (const [id, slider] of Object.entries(sliders)) {
    const value = link[slider.field ?? id];
    $(id).value = slider.place(value);
    text(`${id}-told`, slider.told(value));
  }
  pressed(link);
}

function pressed(link) {
  for (const id of faults) $(id).setAttribute("aria-pressed", String(link[id]));
  const fault = faults.find((id) => link[id]);
  text("fault", fault ? FAULTS[fault].replace("WHO", about.stead) : "Worsen the link, or break it, and watch who answers.");
}

/** Ask for a change, soon; what comes in between goes along. */
function turn(change) {
  touched = performance.now();
  Object.assign(pending, change);
  timer ??= setTimeout(async () => {
    const wanted = pending;
    pending = {};
    timer = null;
    try {
      const answer = await fetch("/link", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(wanted),
      });
      const told = await answer.json();
      $("wrong").hidden = answer.ok;
      if (answer.ok) pressed(told);
      else text("wrong", told.error);
    } catch {
      $("wrong").hidden = false;
      text("wrong", "The demo does not answer: has it ended?");
    }
  }, 60);
}

for (const [id, slider] of Object.entries(sliders)) {
  $(id).addEventListener("input", () => {
    const value = slider.get($(id).value);
    text(`${id}-told`, slider.told(value));
    turn({ [slider.field ?? id]: value });
  });
}
for (const id of faults) {
  $(id).addEventListener("click", () => {
    turn({ [id]: $(id).getAttribute("aria-pressed") !== "true" });
  });
}
for (const button of document.querySelectorAll(".presets button")) {
  button.addEventListener("click", () => {
    const [mbps, rtt, jitter] = ["mbps", "rtt", "jitter"].map((key) => Number(button.dataset[key]));
    turn({ mbps, rtt_ms: rtt, jitter_ms: jitter });
    touched = 0;
  });
}

// Again and again

setInterval(() => {
  const [kind, words] = !linked ? ["lost", "the demo does not answer"]
    : performance.now() - heard > SILENT ? ["waiting", "no frames"] : ["live", "live"];
  $("state").dataset.state = kind;
  const said = $("state").lastElementChild;
  if (said.textContent !== words) said.textContent = words;
  if (charts !== null && !document.hidden) draw();
}, DRAWN);
