// The chat page: says what is typed, shows every token where it was made, cuts the link.

const MODES = {
  spec: "The device drafts, the server verifies several tokens at once: the text is the server's.",
  gated: "What the device's exit is sure of stands unverified; for the rest the server is asked.",
  ask: "The server is asked for every token.",
  edge: "Nobody is asked: the device's own exit says it all.",
};
const ENDS = { stop: "The end.", length: "As long as an answer may be here.", stopped: "Stopped." };
const MOST = 240; // tokens of an answer
const EVERY = 300; // milliseconds between two looks at how things stand
const $ = (id) => document.getElementById(id);

const messages = [];
let answer = null; // of the token that comes: its paragraph
let before = null; // how things stood at the last look

function put(parent, tag, text = "", set = {}) {
  const made = document.createElement(tag);
  made.textContent = text; // never as HTML: whatever a model or a reader wrote
  Object.assign(made, set);
  parent.append(made);
  return made;
}

function follow(change) {
  const said = $("said");
  const low = said.scrollHeight - said.scrollTop - said.clientHeight < 60;
  change();
  if (low) said.scrollTop = said.scrollHeight;
}

function note(text, { alarm = false, where = "" } = {}) {
  follow(() => {
    const made = put($("said"), "p", text, { className: alarm ? "note alarm" : "note" });
    if (where) made.dataset.where = where;
  });
}

async function post(path, what) {
  const told = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(what),
  });
  if (!told.ok) throw new Error(await wrong(told));
  return told;
}

async function wrong(told) {
  const said = await told.json().catch(() => null);
  return said?.error?.message ?? `the device answered ${told.status}`;
}

// Saying

async function say() {
  const text = $("text").value;
  if (!text.trim() || answer) return;
  messages.push({ role: "user", content: text });
  $("text").value = "";
  follow(() => {
    put($("said"), "p", text, { className: "turn asked" });
    answer = put($("said"), "p", "", { className: "turn answer saying" });
  });
  busy(true);
  try {
    await stream(await post("/say", { messages, max_tokens: MOST, ...chosen() }));
  } catch (error) {
    note(error.message, { alarm: true });
    $("text").value = text;
  }
  const said = answer.textContent;
  if (said) messages.push({ role: "assistant", content: said });
  else messages.pop();
  answer.classList.remove("saying");
  if (!said) answer.remove();
  answer = null;
  busy(false);
}

function chosen() {
  const drafts = Number($("drafts").value);
  const seed = $("seed").valueAsNumber;
  return {
    temperature: Number($("temperature").value),
    ...(Number.isNaN(seed) ? {} : { seed }),
    how: {
      mode: document.querySelector("[name=mode]:checked").value,
      drafts: drafts < 0 ? null : drafts,
      pace: $("pace").value ? Number($("pace").value) : null,
    },
  };
}

async function stream(told) {
  const reader = told.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const piece = event.slice("data: ".length);
      if (piece !== "[DONE]") hear(JSON.parse(piece));
    }
  }
}

function hear(piece) {
  if (piece.error) throw new Error(piece.error.message);
  figures(piece.tally);
  if (piece.end) {
    follow(() => put($("said"), "p", ENDS[piece.end], { className: "ended" }));
    return;
  }
  const { text, where, position } = piece.token;
  follow(() => {
    const made = put(answer, "span", text, { className: "token" });
    Object.assign(made.dataset, { where, position });
    made.title = `${where}, token ${position}`;
  });
}

function busy(on) {
  $("say").disabled = on;
  $("stop").disabled = !on;
  $("anew").disabled = on;
}

function figures(tally) {
  const { edge, draft, cloud } = tally.where;
  $("count").textContent = `${tally.tokens} tokens`;
  $("requests").textContent = tally.requests_per_token.toFixed(2);
  $("accepted").textContent = tally.drafted ? `${Math.round(100 * tally.acceptance)} %` : "–";
  $("bytes").textContent = tally.bytes_up.toLocaleString("en");
  $("speed").textContent = tally.tokens_per_s.toFixed(1);
  unit($("first"), Math.round(1000 * tally.first_s), "ms");
  const shares = $("shares");
  shares.replaceChildren();
  for (const [where, count] of Object.entries({ edge, draft, cloud })) {
    const share = put(shares, "i");
    share.dataset.where = where;
    share.style.flexGrow = count;
    share.hidden = !count;
  }
  shares.setAttribute("aria-label", `${edge} edge, ${draft} draft, ${cloud} cloud`);
}

function unit(place, number, name) {
  place.textContent = number;
  put(place, "small", name);
}

// How things stand

async function look() {
  try {
    const told = await fetch("/state");
    if (!told.ok) throw new Error(await wrong(told));
    const now = await told.json();
    shown(now, before ?? now);
    before = now;
  } catch {
    badge("the device does not answer", "none");
  }
  setTimeout(look, EVERY);
}

function shown(now, last) {
  $("model").textContent = now.model;
  if (!$("legend").childElementCount) legend(now.meaning);
  const cut = $("cut");
  cut.setAttribute("aria-pressed", now.cut);
  cut.textContent = now.cut ? "Restore the link" : "Cut the link";
  if (document.activeElement !== $("rtt")) {
    $("rtt").value = now.rtt_ms;
    tell();
  }
  if (now.cut) badge(now.away ? "link cut: the device goes on alone" : "link cut", "edge");
  else if (now.away) badge(now.up ? "verifying what was said alone" : "no server: alone", "edge");
  else badge(now.up ? "server connected" : "connecting", now.up ? "cloud" : "none");
  events(now, last);
}

function events(now, last) {
  if (now.cut && !last.cut) note("The link is cut.", { alarm: true });
  if (last.cut && !now.cut) note("The link is back.", { where: "cloud" });
  if (now.away && !last.away) note("No word from the server: the device goes on alone.", { where: "edge" });
  if (now.differences > last.differences) differs(now.difference);
  else if (last.away && !now.away) note("The server agrees with all that was said alone.", { where: "draft" });
}

function differs({ position, said, instead }) {
  const [mine, other] = [said, instead].map((text) => `“${text.trim() || text}”`);
  const words = `at token ${position} it would have said ${other}, not ${mine}`;
  note(`The server has read what was said alone: ${words}.`, { where: "cloud" });
  const shown = [...document.querySelectorAll(".token")];  // a part of a character shows later
  const token = shown.find((one) => Number(one.dataset.position) >= position);
  if (!token) return;
  token.classList.add("differs");
  token.title += `; the server would have said ${other}`;
}

function badge(text, where) {
  $("link").textContent = text;
  $("link").dataset.where = where;
}

function legend(meaning) {
  for (const [where, words] of Object.entries(meaning)) {
    const line = put($("legend"), "span");
    line.dataset.where = where;
    put(line, "i");
    put(line, "span", `${where}: ${words}`);
  }
}

// Controls

function tell() {
  const drafts = Number($("drafts").value);
  const mode = document.querySelector("[name=mode]:checked").value;
  $("drafts-told").textContent = drafts < 0 ? "as many as pay" : drafts;
  $("drafts").disabled = mode !== "spec";
  $("temperature-told").textContent = Number($("temperature").value).toFixed(1);
  $("means").textContent = MODES[mode];
  $("rtt-told").textContent = `${$("rtt").value} ms`;
  $("paced").hidden = !$("pace").value;
}

async function change(what) {
  try {
    await post("/link", what);
  } catch (error) {
    note(error.message, { alarm: true });
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  say();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    say();
  }
});
$("stop").addEventListener("click", () =>
  post("/stop", {}).catch((error) => note(error.message, { alarm: true })));
$("cut").addEventListener("click", () => change({ cut: $("cut").getAttribute("aria-pressed") !== "true" }));
$("rtt").addEventListener("change", () => change({ rtt_ms: Number($("rtt").value) }));
$("anew").addEventListener("click", () => {
  messages.length = 0;
  $("said").replaceChildren();
  $("text").value = "Once upon a time";
});
document.addEventListener("input", tell);
tell();
look();
