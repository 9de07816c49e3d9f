// onnxruntime-web, as both workers use it.

/** The bytes of a file that the page is served. */
export async function bytesOf(place) {
  const got = await fetch(place);
  if (!got.ok) throw new Error(`${place.split("/").pop()} could not be fetched (${got.status})`);
  return new Uint8Array(await got.arrayBuffer());
}

async function softwareGpu() {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new Error("this browser has no WebGPU here; open the page by localhost or https, or give --provider wasm");
  return adapter.info?.isFallbackAdapter || adapter.isFallbackAdapter || /swiftshader|llvmpipe/i.test(`${adapter.info?.architecture} ${adapter.info?.description}`);
}

/**
 * Get the runtime ready.
 *
 * @param {"wasm" | "webgpu"} asked
 * @param {number} threads
 * @returns {Promise<{ort: any, engine: string, provider: string, options: object}>} what runs, by its full name, and the options of a session
 */
export async function start(asked, threads) {
  if (threads > 1 && !crossOriginIsolated) throw new Error("more than one thread needs a secure page; open it by localhost or https, or give --threads 1");
  const gpu = asked === "webgpu", provider = gpu && (await softwareGpu()) ? "webgpu in software" : asked;
  const ort = await import(gpu ? "./ort.webgpu.bundle.min.mjs" : "./ort.wasm.bundle.min.mjs");
  ort.env.wasm.wasmBinary = await bytesOf(gpu ? "./ort-wasm-simd-threaded.asyncify.wasm" : "./ort-wasm-simd-threaded.wasm"); // before a load is timed
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const options = { executionProviders: [asked], graphOptimizationLevel: "all", intraOpNumThreads: threads };
  return { ort, engine: `onnxruntime-web ${ort.env.versions.web}`, provider, options };
}

/** What a worker was told of an error: the runtime throws numbers where the memory was not enough. */
export function messageOf(e) {
  const message = typeof e === "number" ? `the runtime failed with code ${e}; perhaps the memory was not enough` : `${e?.message || e}`; // never empty: the page asks whether there is one
  return message.slice(0, 500);
}
