// `manifest.json` of a bundle, checked; its schema is conformance/manifest.schema.json.

import { MobileClipError, reason } from "./error.mjs";
import { parseCanonical } from "./json.mjs";
import { sha256 } from "./sha256.mjs";

export const SCHEMA_VERSION = 1;
const MAX_RESOLUTION = 1024;

/**
 * @typedef {{path: string, size_bytes: number, sha256: string}} FileEntry
 * @typedef {{name: string, dtype: "float32" | "int32" | "uint8", shape: number[]}} TensorInfo
 * @typedef {{resolution: number, mean: number[], std: number[], interpolation: "bilinear" | "bicubic", resize: "shortest" | "squash",
 *   baked: boolean}} PreprocessInfo `baked`: the graph takes uint8 RGB (N, R, R, 3) and does everything after the crop itself
 * @typedef {{target: "onnx" | "coreml" | "executorch", tower: "image" | "text", path: string, files: FileEntry[], input: TensorInfo,
 *   output: TensorInfo}} Artifact
 * @typedef {{model: {name: string, trained: boolean, logit_scale: number}, embedding_space: string, embed_dim: number,
 *   options: {precision: "fp32" | "fp16", batch: number, normalize: boolean}, preprocess: PreprocessInfo,
 *   tokenizer: {file: FileEntry, context_length: number}, artifacts: Artifact[], golden: FileEntry, reference: FileEntry}} Manifest
 *   embeddings may be compared where `embedding_space` is equal: same weights, preprocessing and tokenizer
 */

// --- what each field must be -----------------------------------------------------------------------------------------------------

function need(right, what) {
  if (!right) throw new TypeError(what);
}

const text = (value, name) => need(typeof value === "string", `${name} is no text`);
const flag = (value, name) => need(typeof value === "boolean", `${name} is neither true nor false`);
const number = (value, name) => need(Number.isFinite(value), `${name} is no number`);
const whole = (least) => (value, name) => need(Number.isSafeInteger(value) && value >= least, `${name} is no whole number from ${least} on`);
const hash = (value, name) => need(typeof value === "string" && /^[0-9a-f]{64}$/.test(value), `${name} is no sha256`);
const one = (...known) => (value, name) => need(known.includes(value), `${name} is none of ${known.join(", ")}`);
const inside = (value, name) => need(typeof value === "string" && staysInside(value), `${name} leaves the bundle`);

const list = (item, length) => (value, name) => {
  need(Array.isArray(value) && (length === undefined || value.length === length), `${name} is no list${length ? ` of ${length}` : ""}`);
  value.forEach((each, i) => item(each, `${name}[${i}]`));
};

const object = (fields) => (value, name) => {
  need(value !== null && typeof value === "object" && !Array.isArray(value), `${name} is no object`);
  for (const [key, check] of Object.entries(fields)) check(Object.hasOwn(value, key) ? value[key] : undefined, name ? `${name}.${key}` : key);
};

const FILE = object({ path: inside, size_bytes: whole(0), sha256: hash });
const TENSOR = object({ name: text, dtype: one("float32", "int32", "uint8"), shape: list(whole(1)) });
const ARTIFACT = object({
  target: one("onnx", "coreml", "executorch"), tower: one("image", "text"), path: inside, files: list(FILE), input: TENSOR, output: TENSOR,
});
const MANIFEST = object({
  model: object({ name: text, trained: flag, logit_scale: number }),
  embedding_space: hash,
  embed_dim: whole(1),
  options: object({ precision: one("fp32", "fp16"), batch: whole(1), normalize: flag }),
  preprocess: object({
    resolution: whole(1), mean: list(number, 3), std: list(number, 3), interpolation: one("bilinear", "bicubic"),
    resize: one("shortest", "squash"), baked: flag,
  }),
  tokenizer: object({ file: FILE, context_length: whole(2) }),
  artifacts: list(ARTIFACT),
  golden: FILE,
  reference: FILE,
});

function staysInside(path) {
  return path !== "" && !/^\/|[\\:\0]/.test(path) && !path.split("/").includes("..");
}

function fitTogether({ preprocess, options: { batch }, tokenizer, embed_dim, artifacts }) {
  const side = preprocess.resolution;
  need(side <= MAX_RESOLUTION, `a resolution of ${side}`);
  const wanted = {
    image: preprocess.baked ? ["image", "uint8", batch, side, side, 3] : ["image", "float32", batch, 3, side, side],
    text: ["tokens", "int32", batch, tokenizer.context_length],
  };
  const has = ({ name, dtype, shape }, ...expected) => [name, dtype, ...shape].join() === expected.join();
  for (const { path, tower, input, output, files } of artifacts) {
    need(has(input, ...wanted[tower]), `${path} takes ${input.name}, ${input.dtype} ${input.shape}`);
    need(has(output, "embedding", "float32", batch, embed_dim), `${path} gives ${output.name}, ${output.dtype} ${output.shape}`);
    need(files.length && files.every((f) => f.path === path || f.path.startsWith(`${path}/`)), `${path} is not among its files`);
  }
}

/**
 * The manifest in a JSON text, checked: schema version, its own hash, that its paths stay inside and that its parts fit together.
 *
 * @param {string} json
 * @returns {Manifest}
 * @throws {MobileClipError} it is none, or not of this version, or was edited
 */
export function parseManifest(json) {
  let parsed;
  try {
    parsed = parseCanonical(json, "manifest_sha256");
  } catch (e) {
    throw new MobileClipError(`manifest.json is no JSON object (${reason(e)}); copy the bundle again`);
  }
  const { value, canonical } = parsed;
  if (value.schema_version !== SCHEMA_VERSION) {
    const found = String(JSON.stringify(value.schema_version)).slice(0, 20);
    throw new MobileClipError(`the bundle has schema version ${found}, this reads ${SCHEMA_VERSION}; export it again with the same toolkit`);
  }
  if (value.manifest_sha256 !== sha256(new TextEncoder().encode(canonical))) {
    throw new MobileClipError("manifest.json was changed after the export; export the bundle again instead of editing it");
  }
  try {
    MANIFEST(value, "");
    fitTogether(value);
  } catch (e) {
    throw new MobileClipError(`manifest.json does not fit together (${reason(e)}); export the bundle again`);
  }
  return value;
}

/**
 * Whether a file is the one that was exported.
 *
 * @param {FileEntry} entry
 * @param {Uint8Array} bytes
 * @throws {MobileClipError}
 */
export function checkFile(entry, bytes) {
  if (bytes.length !== entry.size_bytes || sha256(bytes) !== entry.sha256) {
    throw new MobileClipError(`${entry.path} is not what was exported (its sha256 differs); copy the bundle again`);
  }
}
