"use strict";
const MAX_REQUESTS = 300, MAX_SHOWN = 100, MAX_BUFFER = 8 << 20, SILENCE_MS = 6000;
const byId = (id) => document.getElementById(id);

// The token moves from the URL to this tab's session storage and the header of the requests.
const given = new URLSearchParams(location.search).get("token");
if (given !== null) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}
const token = sessionStorage.getItem("token");

let range = "10m", paused = false, latest = null, requests = [], stream = null;
const pictures = new Map();

// Text reaches the page as text only.
function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function row(cells, className, heading) {
  const made = element("tr", undefined, className);
  for (const [text, cellClass] of cells) {
    const cell = element(heading ? "th" : "td", text, cellClass);
    if (cellClass === "text cut") cell.title = text;
    if (heading) cell.scope = "col";
    made.append(cell);
  }
  return made;
}

function fillTable(id, headings, rows, empty) {
  const table = byId(id), key = headings.map(([text]) => text).join("|");
  if (table.dataset.headings !== key) {
    table.dataset.headings = key;
    table.tHead.replaceChildren(row(headings, "", true));
  }
  if (!rows.length) {
    const cell = element("td", empty, "empty text");
    cell.colSpan = headings.length;
    const only = element("tr");
    only.append(cell);
    rows = [only];
  }
  table.tBodies[0].replaceChildren(...rows);
}

function showPicture(picture) {
  const figure = byId(picture.id);
  if (!figure) return;
  // The picture is escaped where it is drawn; a document of this kind runs no script.
  const drawn = new DOMParser().parseFromString(picture.svg, "text/html").querySelector("svg");
  if (!drawn) return;
  figure.querySelector(".plot").replaceChildren(document.adoptNode(drawn));
  figure.querySelector(".legend").replaceChildren(...picture.legend.map((entry) => {
    const item = element("li"), svg = document.createElementNS(drawn.namespaceURI, "svg");
    svg.setAttribute("viewBox", "0 0 10 10");
    svg.setAttribute("aria-hidden", "true");
    const box = document.createElementNS(drawn.namespaceURI, "rect");
    for (const [name, value] of [["width", 10], ["height", 10], ["rx", 2], ["class", entry.class]]) box.setAttribute(name, value);
    svg.append(box);
    item.append(svg, element("span", entry.name), element("b", entry.value));
    return item;
  }));
}

function showTiles(tiles) {
  const made = tiles.map((tile) => {
    const box = element("div", undefined, "tile");
    box.append(element("span", tile.name), element("b", tile.value), element("span", tile.note));
    return box;
  });
  byId("tiles").replaceChildren(...made);
}

function duration(seconds) {
  const two = (value) => String(value).padStart(2, "0");
  const days = Math.floor(seconds / 86400), hours = Math.floor(seconds / 3600) % 24;
  const rest = `${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`;
  return days ? `${days}d ${two(hours)}:${rest}` : `${hours}:${rest}`;
}

const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });

function showAbout(message) {
  const parts = [message.meter === "embedded" ? "measured by this process" : "daemon", `version ${message.version}`];
  if (message.uptime_s !== undefined) parts.push(`up ${duration(message.uptime_s)}`);
  if (message.simulated) parts.push("simulated");
  parts.push(`at ${clock(message.unix_ms)}`);
  byId("about").textContent = parts.join(" · ");
}

function showTables(message) {
  const { energy } = message;
  const headings = ["MODEL", `ENERGY ${energy.unit}`, "SHARE", `ABOVE IDLE ${energy.unit}`, "REQ/S", "POWER", "J/REQUEST", "J/TOKEN", "TTFT"];
  const rows = energy.rows.map((of) => row([[of.name, "text name-cell"], ...of.cells.map((text) => [text])], of.kind === "group" ? "" : "dim"));
  rows.push(row([["machine"], [energy.machine], ["100 %"], [energy.machine_above_idle], [""], [""], [""], [""], [""]], "total"));
  fillTable("energy-table", headings.map((text, at) => [text, at ? "" : "text"]), rows, "");
  const domains = message.domains.map((domain) => row([
    ["\u00a0\u00a0".repeat(domain.depth) + domain.name, "text"], [domain.state === "live" ? domain.power : domain.state],
    [domain.energy], [domain.idle], [domain.grade, "text short"], [domain.counted ? "counted" : "not counted", "text short"],
  ], domain.counted ? "" : "dim"));
  const unit = energy.unit;
  fillTable("domains-table", [["DOMAIN", "text"], ["POWER"], [`ENERGY ${unit}`], [`IDLE PART ${unit}`], ["GRADE", "text"], ["TOTAL", "text"]], domains, "no domain");
  const open = message.open.map((span) => row([[span.name, "text"], [span.group, "text"], [span.age], [span.energy]]));
  byId("open-title").textContent = `Open spans: ${message.open_count}`;
  fillTable("open-table", [["NAME", "text"], ["MODEL", "text"], ["AGE"], ["ENERGY SO FAR"]], open, "no open span");
}

function showHealth(lines) {
  const words = { ok: "ok", warning: "warning", alarm: "alarm" };
  byId("health").querySelector("tbody").replaceChildren(...lines.map((line) => {
    const made = element("tr"), level = element("td"), text = element("td");
    level.append(element("span", words[line.level] ?? line.level, `level ${line.level}`));
    text.append(element("b", line.name), document.createTextNode(line.text));
    made.append(level, text);
    return made;
  }));
}

function showRequests() {
  const wanted = byId("search").value.trim().toLowerCase();
  const texts = (of) => [of.name, of.model, of.span, `uid ${of.uid}`, of.state ?? ""];
  const found = requests.filter((of) => !wanted || texts(of).some((text) => text.toLowerCase().includes(wanted)));
  const shown = found.slice(-MAX_SHOWN).reverse();
  const rows = shown.map((of) => row([
    [clock(of.closed_unix_ms), "text short"], [of.state ? `${of.name} (${of.state})` : of.name, "text"], [of.model, "text"], [of.energy], [of.duration],
    [of.power ?? ""], [of.tokens === undefined ? "" : String(of.tokens)], [of.per_token ?? ""], [`uid ${of.uid}`], [of.span, "text cut"],
  ]));
  const headings = ["END", "NAME", "MODEL", "ENERGY", "TIME", "POWER", "TOKENS", "J/TOKEN", "USER", "SPAN"];
  const isText = new Set(["END", "NAME", "MODEL", "SPAN"]);
  fillTable("requests-table", headings.map((text) => [text, isText.has(text) ? "text" : ""]), rows, wanted ? "no request matches" : "no request yet");
  const some = shown.length < found.length ? `the latest ${shown.length} of ` : "";
  byId("search-note").textContent = wanted || some ? `${some}${found.length}${wanted ? ` of ${requests.length}` : ""} requests` : "";
}

function showBanner(text, isNotice) {
  const banner = byId("banner");
  // An unchanged text is not announced again.
  if (banner.textContent !== text) banner.textContent = text;
  banner.classList.toggle("notice", Boolean(isNotice));
  document.body.classList.toggle("stale", Boolean(text) && !isNotice);
}

function show() {
  if (!latest) return;
  showAbout(latest);
  showTiles(latest.tiles);
  showHealth(latest.health);
  showTables(latest);
  for (const picture of pictures.values()) showPicture(picture);
  pictures.clear();
  if (latest.unreachable) {
    showBanner(`The daemon is unreachable since ${clock(latest.unreachable.since_unix_ms)}, reconnecting: ${latest.unreachable.reason}`);
  } else {
    showBanner(latest.notice ?? "", true);
  }
}

function receive(message) {
  const changed = message.full || message.requests.length > 0;
  requests = (message.full ? message.requests : requests.concat(message.requests)).slice(-MAX_REQUESTS);
  if (message.full) pictures.clear();
  for (const picture of message.pictures) pictures.set(picture.id, picture);
  latest = message;
  if (paused) return;
  show();
  if (changed) showRequests();
}

// EventSource cannot send the token in a header, so the stream is read here.
async function readStream(response, alive) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    buffer += decoder.decode(value, { stream: true });
    if (buffer.length > MAX_BUFFER) throw new Error("an event is too long");
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) if (event.startsWith("data: ")) receive(JSON.parse(event.slice(6)));
  }
}

async function connect() {
  const own = new AbortController();
  stream = own;
  let timer;
  const alive = () => { clearTimeout(timer); timer = setTimeout(() => own.abort(), SILENCE_MS); };
  alive();
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch(`events?range=${range}`, { headers, signal: own.signal, cache: "no-store" });
    if (response.status === 401) return "The token is no longer valid: wattspan serve was started again. Open the URL that it printed.";
    if (!response.ok) return `wattspan serve refuses the request (${response.status}), trying again.`;
    await readStream(response, alive);
  } catch (error) {
    if (!(error instanceof TypeError) && error.name !== "AbortError") console.warn(error);
  } finally {
    clearTimeout(timer);
    own.abort();
  }
  return stream === own ? "wattspan serve is unreachable, reconnecting." : "";
}

async function keepConnected() {
  for (;;) {
    const lost = await connect();
    if (lost) {
      showBanner(lost);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function choose(next) {
  range = next;
  for (const input of document.getElementsByName("range")) input.checked = input.value === next;
  const old = stream;
  stream = null;
  old?.abort();
}

function pause(on) {
  paused = on;
  const button = byId("pause");
  button.setAttribute("aria-pressed", String(on));
  button.textContent = on ? "Continue" : "Pause";
  if (!on) { show(); showRequests(); }
}

byId("ranges").addEventListener("change", (event) => choose(event.target.value));
byId("pause").addEventListener("click", () => pause(!paused));
byId("search").addEventListener("input", showRequests);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const search = byId("search");
  if (event.target === search) {
    if (event.key === "Escape") { search.value = ""; showRequests(); search.blur(); }
    return;
  }
  const ranges = { 1: "10m", 2: "1h", 3: "24h" };
  if (event.key === "/") { event.preventDefault(); search.focus(); }
  else if (event.key === "p") pause(!paused);
  else if (ranges[event.key]) choose(ranges[event.key]);
});
keepConnected();
