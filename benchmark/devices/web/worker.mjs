// One measurement: a loaded tower, its inputs and the count of its timed runs. Commands and answers are those of rounds.py.

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };
const REFRESH_MS = 20, PAUSE_MS = 50;

// ONNX Runtime prints its profile. The runtime takes hold of this function when it loads, so that it has to be ours before.
let printed = null;
const print = console.log;
console.log = (...words) => (printed ? printed.push(words.join(" ")) : print(...words));

let ort, model, options, session, request, batches;
let next = 0, timed = 0, firstStart = null, lastEnd = -Infinity;

async function bytesOf(place) {
  const got = await fetch(place);
  if (!got.ok) throw new Error(`${place.split("/").pop()} could not be fetched (${got.status})`);
  return new Uint8Array(await got.arrayBuffer());
}

async function softwareGpu() {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new Error("this browser has no WebGPU here; open the page by localhost or https, or give --provider wasm");
  return adapter.info?.isFallbackAdapter || adapter.isFallbackAdapter || /swiftshader|llvmpipe/i.test(`${adapter.info?.architecture} ${adapter.info?.description}`);
}

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
  let provider = request.provider;
  if (request.threads > 1 && !crossOriginIsolated) throw new Error("more than one thread needs a secure page; open it by localhost or https, or give --threads 1");
  if (provider === "webgpu" && (await softwareGpu())) provider = "webgpu in software";
  const gpu = request.provider === "webgpu";
  ort = await import(gpu ? "./ort.webgpu.bundle.min.mjs" : "./ort.wasm.bundle.min.mjs");
  ort.env.wasm.wasmBinary = await bytesOf(gpu ? "./ort-wasm-simd-threaded.asyncify.wasm" : "./ort-wasm-simd-threaded.wasm"); // before the load is timed
  ort.env.wasm.numThreads = request.threads;
  ort.env.logLevel = "error";
  model = await bytesOf(command.bundle + request.artifact);
  const { dtype, shape } = request.input;
  const inputs = await bytesOf(command.inputs), Values = ARRAYS[dtype];
  const size = shape.slice(1).reduce((a, b) => a * b, 1), rows = new Values(inputs.buffer);
  if (rows.length !== size * request.rows) throw new Error("the inputs have another size than the request says");
  batches = [];
  for (let first = 0; first < request.rows; first += shape[0]) {
    const batch = new Values(size * shape[0]);
    for (let i = 0; i < shape[0]; i++) {
      const row = (first + i) % request.rows;
      batch.set(rows.subarray(row * size, (row + 1) * size), i * size);
    }
    batches.push(new ort.Tensor(dtype, batch, shape));
  }
  options = { executionProviders: [request.provider], graphOptimizationLevel: "all", intraOpNumThreads: request.threads };
  const load_ms = await create();
  const [first_run_ms] = await run();
  return { engine: `onnxruntime-web ${ort.env.versions.web}`, provider, load_ms, first_run_ms, baseline_memory_bytes: null };
}

async function run() {
  const index = next;
  next = (index + 1) % batches.length;
  const feeds = { [request.input.name]: batches[index] };
  const start = performance.now();
  const output = (await session.run(feeds))[request.output.name];
  lastEnd = performance.now();
  const values = output.data;
  return [Math.max(lastEnd - start, tick), index, values, start];
}

function base64(values) {
  let text = "";
  for (const byte of new Uint8Array(values.buffer, values.byteOffset, values.byteLength)) text += String.fromCharCode(byte);
  return btoa(text);
}

function keeps(sample) {
  const group = Math.floor(sample / request.keep_of);
  return sample % request.keep_of === request.keep[group % request.keep.length];
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
    if (keeps(timed)) answer.kept.push({ sample: timed, first_input: index * request.input.shape[0], values: base64(Float32Array.from(values)) });
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
    const message = typeof e === "number" ? `the runtime failed with code ${e}; perhaps the memory was not enough` : `${e?.message ?? e}`;
    postMessage({ error: "DeviceError", exit_code: 4, message: message.slice(0, 500) });
  }
};
