// One measurement: a loaded tower, its inputs and the count of its timed runs. Commands and answers are those of rounds.py.

import { base64, batches, keeps } from "./core/bench.mjs";
import { bytesOf, messageOf, start } from "./runtime.mjs";

const REFRESH_MS = 20, PAUSE_MS = 50;

// ONNX Runtime prints its profile. The runtime takes hold of this function when it loads, so that it has to be ours before.
let printed = null;
const print = console.log;
console.log = (...words) => (printed ? printed.push(words.join(" ")) : print(...words));

let ort, model, options, session, request, inputs;
let next = 0, timed = 0, firstStart = null, lastEnd = -Infinity;

// What the clock can tell apart, in ms: browsers make it coarse on purpose.
function clockTick() {
  let tick = Infinity;
  for (let i = 0; i < 20; i++) {
    const start = performance.now();
    let end;
    while ((end = performance.now()) === start);
    tick = Math.min(tick, end - start);
  }
  return tick;
}

const tick = clockTick();

async function create() {
  const start = performance.now();
  session = await ort.InferenceSession.create(model, options);
  return performance.now() - start;
}

async function load(command) {
  request = command.request;
  const runtime = await start(request.provider, request.threads);
  ({ ort, options } = runtime);
  model = await bytesOf(command.bundle + request.artifact);
  const { dtype, shape } = request.input;
  inputs = batches(request, await bytesOf(command.inputs)).map((values) => new ort.Tensor(dtype, values, shape));
  const load_ms = await create();
  const [first_run_ms] = await run();
  return { engine: runtime.engine, provider: runtime.provider, load_ms, first_run_ms, baseline_memory_bytes: null, clock_ms: tick };
}

async function run() {
  const index = next;
  next = (index + 1) % inputs.length;
  const feeds = { [request.input.name]: inputs[index] };
  const start = performance.now();
  const output = (await session.run(feeds))[request.output.name];
  lastEnd = performance.now();
  const values = output.data;
  return [Math.max(lastEnd - start, tick), index, values, start];
}

async function warmUp() {
  const warmup_ms = [];
  for (let i = 0; i < request.warmup_runs; i++) warmup_ms.push((await run())[0]);
  return { warmup_ms };
}

async function block({ seconds, samples }) {
  if (performance.now() - lastEnd > PAUSE_MS) { // others may have taken the caches
    const until = performance.now() + REFRESH_MS;
    do await run(); while (performance.now() < until);
  }
  const answer = { latency_ms: [], start_ms: [], wait_ms: [], kept: [] };
  for (let sum = 0; sum < 1e3 * seconds || answer.latency_ms.length < samples; timed++) {
    const [ms, index, values, start] = await run();
    firstStart ??= start;
    answer.start_ms.push(start - firstStart);
    answer.latency_ms.push(ms);
    sum += ms;
    if (keeps(request, timed)) answer.kept.push({ sample: timed, first_input: index * request.input.shape[0], values: base64(Float32Array.from(values)) });
  }
  return answer;
}

async function finish() {
  await session.release();
  return { peak_memory_bytes: null, warm_load_ms: await create() };
}

// What each operator costs, in place of the loaded tower.
async function profile({ runs }) {
  await session.release();
  options = { ...options, enableProfiling: true };
  await create();
  for (let i = 0; i < runs; i++) await run();
  printed = [];
  session.endProfiling();
  const onnx_profile = printed.join("\n");
  printed = null;
  return { onnx_profile };
}

const COMMANDS = { load, warm_up: warmUp, block, finish, profile };

onmessage = async ({ data: command }) => {
  try {
    postMessage(await COMMANDS[command.do](command));
  } catch (e) {
    postMessage({ error: "DeviceError", exit_code: 4, message: messageOf(e) });
  }
};
