// Asks for commands, hands them to one worker a measurement, and shows how it goes.

import * as trial from "./try.mjs";

const HEARTBEAT_MS = 3000;
const $ = (id) => document.getElementById(id);
const workers = new Map(), progress = new Map(), cards = new Map();
let session = "", hidden = document.hidden, over = false, alone = false;

// A phone's network drops now and then: both sides know what has arrived, so that it can be asked again.
async function call(name, options = {}, tries = 5) {
  try {
    return await fetch(name, { ...options, headers: { "X-Session": session, ...options.headers } });
  } catch (e) {
    if (tries <= 1) throw e;
    await new Promise((resolve) => setTimeout(resolve, 1000));
    return call(name, options, tries - 1);
  }
}

function tell(title, doing) {
  if (title) $("title").textContent = title;
  $("doing").textContent = doing ?? "";
}

// --- measuring -------------------------------------------------------------------------------------------------------------------

function inWorker(number, command) {
  if (!workers.has(number)) workers.set(number, new Worker("worker.mjs", { type: "module" }));
  const worker = workers.get(number);
  return new Promise((resolve) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = (e) => resolve({ error: "DeviceError", exit_code: 4, message: `the worker crashed (${e.message ?? "no reason given"})` });
    worker.postMessage(command);
  });
}

async function measure(number, command) {
  if (command.do === "close") {
    workers.get(number)?.terminate();
    workers.delete(number);
    return {};
  }
  if (command.do === "load") {
    progress.set(number, { request: command.request, timed: 0, runs: 0 });
    cards.set(number, card(command.request));
  }
  const state = progress.get(number), name = label(state.request);
  tell("Measuring", { load: `loading ${name}`, warm_up: `warming up ${name}`, block: `timing ${name}`, finish: `loading ${name} again` }[command.do]);
  const answer = await inWorker(number, command);
  for (const ms of answer.latency_ms ?? []) [state.timed, state.runs] = [state.timed + ms, state.runs + 1];
  if (answer.error) cards.get(number).textContent = answer.message;
  else cards.get(number).textContent = state.runs ? `${state.runs.toLocaleString()} runs timed` : "loaded";
  draw();
  return answer;
}

function label(request) {
  return `${request.bundle} ${request.tower}`;
}

function draw() {
  const shares = [...progress.values()].map(({ request: r, timed, runs }) => Math.min(runs / r.min_samples, r.min_seconds ? timed / 1e3 / r.min_seconds : 1, 1));
  const percent = shares.length ? (100 * shares.reduce((a, b) => a + b, 0)) / shares.length : 0;
  $("bar").setAttribute("aria-valuenow", percent.toFixed(0));
  $("bar").firstElementChild.style.width = `${percent}%`;
}

// --- what the device is ----------------------------------------------------------------------------------------------------------

async function info() {
  const more = await navigator.userAgentData?.getHighEntropyValues(["model", "platformVersion", "architecture", "fullVersionList"]).catch(() => null);
  const agent = navigator.userAgent;
  const apple = /iPhone|iPad/.exec(agent)?.[0] ?? (/Macintosh/.test(agent) && navigator.maxTouchPoints > 1 ? "iPad" : "");
  const system = more ? `${navigator.userAgentData.platform} ${more.platformVersion}`.trim()
    : apple ? `iOS ${/OS (\d+[_\d]*)/.exec(agent)?.[1].replaceAll("_", ".") ?? ""}`.trim() : /\(([^;)]+)/.exec(agent)?.[1] ?? "unknown";
  const brand = more?.fullVersionList?.find(({ brand }) => !/Not|Chromium/.test(brand)) ?? more?.fullVersionList?.find(({ brand }) => brand === "Chromium");
  const browser = brand ? `${brand.brand} ${brand.version}` : /(Firefox|Version|Chrome)\/[\d.]+/.exec(agent)?.[0].replace("Version", "Safari").replace("/", " ") ?? "unknown browser";
  return { name: "web", model: more?.model || apple || "computer", os: `${system}, ${browser}`, architecture: more?.architecture ?? "", logical_cores: navigator.hardwareConcurrency || null };
}

async function state() {
  const battery = await navigator.getBattery?.().catch(() => null);
  const seen = !hidden;
  hidden = document.hidden;
  return { battery_percent: battery ? 100 * battery.level : null, charging: battery ? battery.charging : null, foreground: seen };
}

// --- what is seen ----------------------------------------------------------------------------------------------------------------

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function card(request) {
  const box = element("div", "card"), line = element("p", "soft", "loading");
  box.append(element("h2", "", label(request)), line);
  $("measurements").append(box);
  return line;
}

function strip(latencies) {
  const sorted = [...latencies].sort((a, b) => a - b), at = (q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
  const low = at(0), high = Math.max(at(0.98), low * 1.02), ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 320 44");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `distribution of ${latencies.length} latencies, median ${at(0.5).toFixed(2)} ms`);
  const x = (ms) => 4 + (312 * (ms - low)) / (high - low);
  latencies.forEach((ms, i) => {
    if (ms > high) return;
    const dot = document.createElementNS(ns, "circle");
    for (const [name, value] of [["cx", x(ms)], ["cy", 6 + ((i * 7919) % 32)], ["r", 1.6]]) dot.setAttribute(name, value);
    svg.append(dot);
  });
  const rule = document.createElementNS(ns, "line");
  for (const [name, value] of [["x1", x(at(0.5))], ["x2", x(at(0.5))], ["y1", 0], ["y2", 44]]) rule.setAttribute(name, value);
  svg.append(rule);
  return [svg, element("p", "soft range", `${low.toFixed(2)} to ${high.toFixed(2)} ms`)];
}

async function show(results, model) {
  over = true;
  $("measurements").replaceChildren(...results.map((r) => {
    const box = element("div", "card"), value = element("p", "value", r.p50_ms.toFixed(2));
    value.append(element("small", "", " ms, median"));
    const cosine = r.cosine === null ? "no output compared" : `smallest cosine to the model ${r.cosine.toFixed(6)}`;
    box.append(
      element("h2", "", `${r.label}, ${r.provider}`), value, element("p", "soft", `90 % below ${r.p90_ms.toFixed(2)} ms, ${r.n.toLocaleString()} runs`),
      ...strip(r.latency_ms), element("p", "soft", cosine), element("span", r.valid ? "badge good" : "badge", r.valid ? "valid" : "not valid"),
    );
    for (const reason of r.reasons) box.append(element("p", "soft", reason));
    return box;
  }));
  $("bar").firstElementChild.style.width = "100%";
  $("hint").hidden = true;
  if (model) tell("Nearly done", "The results were sent. The model is being fetched once more, for you to try.");
  const why = model ? await trial.open(model) : "";
  tell("Done", `The results were sent. You may close this page${model && !why ? ", or try the model below" : ""}.${why && ` The model cannot be tried here: ${why}`}`);
}

// --- the conversation ------------------------------------------------------------------------------------------------------------

async function answerTo({ measurement, command }) {
  if (measurement !== null) return measure(measurement, command);
  if (command.do === "info") return info();
  if (command.do === "state") return state();
  if (command.do === "show") await show(command.results, command.model);
  return {};
}

async function main() {
  const taken = await fetch("take", { method: "POST", body: "" });
  if (!taken.ok) return tell("Taken", "Another browser has opened this page. Start the benchmark again for a new one.");
  session = await taken.text();
  const { model, os } = await info();
  $("about").textContent = `${model}, ${os}`;
  tell("Connected", "waiting for the first command");
  document.addEventListener("visibilitychange", () => (hidden ||= document.hidden));
  addEventListener("pagehide", () => alone || navigator.sendBeacon(`leave?${session}`, ""));
  const lock = () => navigator.wakeLock?.request("screen").catch(() => null);
  document.addEventListener("visibilitychange", lock);
  await lock();
  for (let number = 0; ; ) {
    const got = await call("next", { headers: { "X-Number": number } });
    if (got.status === 204) continue;
    if (!got.ok) throw new Error(`refused (${got.status})`);
    const asked = await got.json();
    number = asked.number;
    const heart = setInterval(() => call("alive", { method: "POST", body: "" }, 1).catch(() => null), HEARTBEAT_MS);
    const answer = await answerTo(asked).catch((e) => ({ error: "DeviceError", exit_code: 4, message: `${e?.message ?? e}` }));
    clearInterval(heart);
    const post = (value) => call("answer", { method: "POST", body: JSON.stringify(value), headers: { "X-Number": number } });
    const sent = await post(answer);
    if (!sent.ok) await post({ error: "DeviceError", exit_code: 4, message: `the answer was refused (${sent.status})` });
    if (over) return (alone = true);
  }
}

main().catch((e) => over || tell("Interrupted", `The connection to the benchmark ended (${e.message}). Start it again.`));
