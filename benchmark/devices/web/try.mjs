// Lets whoever holds the device try the model that was measured. The server is gone by then: everything has to be here before.

const TOP = 5, PAUSE_MS = 400, PREVIEW_PX = 720;
const $ = (id) => document.getElementById(id);
let worker, last = Promise.resolve(), looked = false, typing = 0;

/** One command after the other: a session runs one input at a time. */
function ask(command) {
  last = last.then(() => new Promise((resolve) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = (e) => resolve({ error: `the worker crashed (${e.message ?? "no reason given"})` });
    worker.postMessage(command);
  }));
  return last;
}

/**
 * Fetch and load the model, and show the section.
 *
 * @param {{provider: string, threads: number}} model how it was measured
 * @returns {Promise<string>} why it cannot be tried; empty if it can
 */
export async function open(model) {
  worker = new Worker("try_worker.mjs", { type: "module" });
  const opened = await ask({ do: "open", ...model });
  if (opened.error) return opened.error;
  const { name, precision, engine, provider, threads } = opened;
  $("try-model").textContent = `${name}, ${precision}; ${engine}, ${provider}${threads > 1 ? `, ${threads} threads` : ""}`;
  $("untrained").hidden = opened.trained;
  $("camera").parentElement.hidden = !matchMedia("(pointer: coarse)").matches;
  for (const id of ["file", "camera"]) $(id).addEventListener("change", ({ target }) => target.files[0] && look(target.files[0]));
  $("labels").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => looked && rank(), PAUSE_MS);
  });
  $("try").hidden = false;
  check();
  return "";
}

async function check() {
  const { least, truly, cosines, passed, why, error } = await ask({ do: "check" }), badge = $("check");
  badge.textContent = passed ? "reproduces the exported model" : cosines ? "differs from the exported model" : "not checked";
  badge.classList.toggle("good", passed === true);
  $("check-about").textContent = cosines
    ? `Smallest cosine over the bundle's own inputs: image ${cosines.image.toFixed(6)}, text ${cosines.text.toFixed(6)}; ${least} is enough.`
    : why ?? error;
  $("altered").hidden = truly !== false;
}

async function look(file) {
  looked = false;
  $("ranks").replaceChildren();
  tell("Looking at the picture");
  const [seen] = await Promise.all([ask({ do: "look", file }), preview(file)]);
  $("pictures").hidden = Boolean(seen.error);
  for (const id of ["image-time", "text-time"]) $(id).textContent = "";
  if (seen.error) return tell(seen.error);
  looked = true;
  draw($("seen"), seen);
  $("blackened").hidden = !seen.blackened;
  const ms = (value) => `${value.toFixed(1)} ms`;
  $("image-time").textContent = `Image tower ${ms(seen.run_ms)}; before it ${ms(seen.decode_ms)} to decode and ${ms(seen.input_ms)} to resize.`;
  return rank();
}

/** The picture as it is, at most as wide as the page shows it. */
async function preview(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return;
  const canvas = $("preview"), scale = Math.min(1, PREVIEW_PX / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
}

/** What the model sees. */
function draw(canvas, { seen, side }) {
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d"), shown = context.createImageData(side, side);
  for (let i = 0; i < side * side; i++) shown.data.set([seen[3 * i], seen[3 * i + 1], seen[3 * i + 2], 255], 4 * i);
  context.putImageData(shown, 0, 0);
  $("seen-about").textContent = `What the model sees, ${side} × ${side}`;
}

async function rank() {
  const labels = [...new Set($("labels").value.split("\n").map((label) => label.trim()).filter(Boolean))];
  if (!labels.length) {
    $("ranks").replaceChildren();
    return tell("Write a label, one a line.");
  }
  tell(`Comparing with ${labels.length} label${labels.length > 1 ? "s" : ""}`);
  const { ranked, embedded, text_ms, error } = await ask({ do: "rank", labels, top: TOP });
  if (error) return tell(error);
  $("ranks").replaceChildren(...ranked.map(row));
  const [{ label, probability }] = ranked;
  tell(`Best of ${labels.length}: ${label}, ${percent(probability)}.`);
  if (embedded) $("text-time").textContent = `Text tower ${(text_ms / embedded).toFixed(1)} ms a label.`;
  return null;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function row({ label, probability, cosine }) {
  const item = document.createElement("li"), bar = document.createElement("i");
  for (const [kind, text] of [["span", label], ["small", `cosine ${cosine.toFixed(3)}`], ["b", percent(probability)]]) {
    item.append(Object.assign(document.createElement(kind), { textContent: text }));
  }
  bar.style.width = `${100 * probability}%`;
  item.append(bar);
  return item;
}

function tell(text) {
  $("try-doing").textContent = text[0].toUpperCase() + text.slice(1);
}
