// What the kit does not hold: damaged files, the parts of the manifest's hash, halves, and the encoder around a model.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";
import * as kit from "./kit.mjs";

const { MobileClipError, reason } = await kit.core("error");
const { messageOf } = await kit.core("../runtime");
const { parseCanonical } = await kit.core("json");
const { sha256 } = await kit.core("sha256");
const { parseManifest } = await kit.core("manifest");
const { SafeTensors } = await kit.core("safetensors");
const { HALVES, toHalf } = await kit.core("half");
const { Tokenizer } = await kit.core("tokenizer");
const { clean, unescape } = await kit.core("cleanup");
const { Picture, pixels } = await kit.core("preprocess");
const { classEmbedding, dot, normalized, rank, search } = await kit.core("zeroshot");
const { Bundle } = await kit.core("bundle");
const { Encoder } = await kit.core("encoder");

const utf8 = (text) => new TextEncoder().encode(text);
const saying = (words) => (e) => e instanceof MobileClipError && words.test(e.message) && !e.message.includes("\n");
const hashOf = (data) => createHash("sha256").update(data).digest("hex");

test("sha256 is the platform's", () => {
  for (const size of [...Array(200).keys(), 1000, 100_003]) {
    const data = randomBytes(size);
    assert.equal(sha256(data), hashOf(data), `${size} bytes`);
    assert.equal(sha256(data.subarray(1)), hashOf(data.subarray(1)), "from the middle of a buffer");
  }
});

test("canonical JSON keeps numbers as they stand and sorts as Python does", () => {
  const written = ' {"b": [1.0, 1e-06, -0.0, 100.00000762939453], "seal": 3,\n "a": {"\\u00fc\\ud83d\\ude00": "\\u0001\\n\\/\\u007f", "\\uffee": null, "😀": true}} ';
  const { value, canonical } = parseCanonical(written, "seal");
  assert.equal(canonical, '{"a":{"ü😀":"\\u0001\\n/\u007f","\uffee":null,"😀":true},"b":[1.0,1e-06,-0.0,100.00000762939453]}');
  assert.equal(value.seal, 3);
  for (const [text, canonical] of [["{}", "{}"], ['{"a":[]}', '{"a":[]}'], ['{"a":{"seal":[{}]}}', '{"a":{"seal":[{}]}}'], ['{"__proto__":1}', '{"__proto__":1}']]) {
    assert.equal(parseCanonical(text, "seal").canonical, canonical);
  }
  const deep = "[".repeat(5000) + "]".repeat(5000);
  for (const bad of ["", "null", "[]", "3", '{"a":1,}', '{"a":1,"a":1}', '{"a":NaN}', `{"a":${deep}}`]) assert.throws(() => parseCanonical(bad, "seal"), SyntaxError, bad);
});

test("manifests that are no objects are refused in one line", () => {
  for (const text of ["", "[]", "null", "{", '{"schema_version":1,"schema_version":1}', '{"schema_version":"1"}', '{"schema_version":1.5}', "\u0000"]) {
    assert.throws(() => parseManifest(text), saying(/./), text);
  }
  const rest = '{"schema_version":1}'; // its own hash alone is not enough
  assert.throws(() => parseManifest(`{"manifest_sha256":"${hashOf(rest)}","schema_version":1}`), saying(/does not fit together \(model is no object\)/));
});

test("an error always has a reason", () => {
  assert.deepEqual([new Error("\n a\nb"), new Error(""), new TypeError(" \n"), "text", 7, null].map((e) => reason(e)), ["a", "Error", "TypeError:", "text", "7", "null"]);
  for (const e of [new Error(""), new DOMException(""), 7, null, "text"]) assert.ok(messageOf(e).trim());
});

test("every half is read and written", () => {
  for (let half = 0; half < 1 << 16; half++) {
    const value = HALVES[half];
    if (Number.isNaN(value)) assert.ok((half & 0x7c00) === 0x7c00 && half & 0x3ff);
    else assert.equal(toHalf(value), half);
  }
  for (const [value, half] of [[1, 0x3c00], [65504, 0x7bff], [65519.99, 0x7bff], [65520, 0x7c00], [2 ** -24, 1], [2 ** -25, 0], [2 ** -25 * 1.001, 1], [1 + 2 ** -11, 0x3c00],
    [1 + 3 * 2 ** -11, 0x3c02], [-0.5, 0xb800], [NaN, 0x7e00]]) assert.equal(toHalf(value), half, `${value}`);
});

function safetensors(header, data = new Uint8Array(0)) {
  const text = utf8(typeof header === "string" ? header : JSON.stringify(header)), file = new Uint8Array(8 + text.length + data.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length), true);
  file.set(text, 8);
  file.set(data, 8 + text.length);
  return file;
}

test("damaged safetensors files are refused in one line", () => {
  const one = (about) => safetensors({ x: { dtype: "F32", shape: [2], data_offsets: [0, 8], ...about } }, new Uint8Array(8));
  assert.deepEqual([...new SafeTensors(one({})).get("x", "F32").values], [0, 0]);
  const huge = one({});
  new DataView(huge.buffer).setBigUint64(0, 2n ** 63n, true);
  for (const [name, file] of Object.entries({
    empty: new Uint8Array(0), short: new Uint8Array(7), huge, "no JSON": safetensors("{"), "no UTF-8": safetensors({}).fill(0xff, 8), "a list": safetensors("[3]"), null: safetensors("null "),
    type: one({ dtype: "F99" }), "inherited type": one({ dtype: "constructor" }), shape: one({ shape: [3] }), negative: one({ shape: [-2] }), fraction: one({ shape: [0.5, 4] }),
    order: one({ data_offsets: [8, 0] }), outside: one({ data_offsets: [8, 16] }), "no place": one({ data_offsets: null }), places: one({ data_offsets: [0, 4, 8] }), cut: one({}).slice(0, -1),
  })) assert.throws(() => new SafeTensors(file, "x.safetensors"), saying(/x\.safetensors is damaged/), name);
  assert.throws(() => new SafeTensors(one({})).get("y"), saying(/holds no y/));
  assert.throws(() => new SafeTensors(one({})).get("x", "I32"), saying(/holds no x of type I32/));
});

test("other tokenizers are refused in one line", () => {
  const file = JSON.parse(kit.tokenizerFile());
  const changed = (part, more) => JSON.stringify({ ...file, [part]: { ...file[part], ...more } });
  for (const [text, words] of [
    ["{", /none that is known/], ["null", /none that is known/], ["{}", /none that is known/], [changed("model", { type: "Unigram" }), /not CLIP's/],
    [changed("pre_tokenizer", { pretokenizers: [{ type: "Whitespace" }] }), /splits text/], [changed("model", { vocab: { a: 0 } }), /start or end/],
    [changed("model", { merges: [["q q", "q"]] }), /merge/], [changed("truncation", { max_length: 1 }), /context length/], [changed("padding", { pad_id: "x" }), /padding/],
  ]) assert.throws(() => new Tokenizer(text), saying(words));
});

test("captions of any kind and length have a row", () => {
  const tokenizer = new Tokenizer(kit.tokenizerFile()), begin = performance.now();
  for (const text of ["", "\ud800 \udfff", "&".repeat(10_000), "&#".repeat(10_000), "é&lt;".repeat(5000), "a".repeat(50_000), "<end_of_text>".repeat(100), "\0\0"]) {
    const row = tokenizer.encode(text);
    assert.equal(row.length, 77);
    assert.ok(row[0] === 49406 && row.includes(49407) && row.every((id) => id >= 0 && id <= 49407));
  }
  assert.ok(performance.now() - begin < 5000, "in reasonable time");
  assert.equal(clean("  a \u3000 b&amp;amp;c\n"), "a b&c");
  assert.equal(unescape("&notit; &#x41; &#150; &unknown; &#999999999999999999;"), "¬it; A – &unknown; \uFFFD");
});

test("pictures must have all their pixels", () => {
  assert.throws(() => new Picture(2, 2, new Uint8Array(11)), RangeError);
  assert.throws(() => new Picture(0, 2, new Uint8Array(0)), RangeError);
  const grey = pixels(new Picture(20_000, 1, new Uint8Array(60_000).fill(7)), { resolution: 8, interpolation: "bicubic", resize: "shortest" });
  assert.ok(grey.length === 192 && grey.every((level) => level === 7), "only the part that the crop keeps is computed");
});

test("embeddings are compared, averaged and searched", () => {
  assert.deepEqual(rank([1, 0], [], 100, 5), []);
  assert.deepEqual(rank([1, 0], [[0, 1], [1, 0], [1, 0]], 1000, 9).map((p) => [p.label, p.probability]), [[1, 0.5], [2, 0.5], [0, 0]]);
  assert.throws(() => dot([1], [1, 2]), RangeError);
  assert.deepEqual([...normalized([0, 0])], [0, 0]);
  assert.deepEqual([...classEmbedding([[1, 0], [0, 1]])].map((x) => x.toFixed(6)), ["0.707107", "0.707107"]);
  assert.throws(() => classEmbedding([]), RangeError);
  const matrix = Uint16Array.from([1, 0, 0, 1, 1, 0], toHalf);
  assert.deepEqual(search(matrix, [1, 0], 2).map((m) => m.row), [0, 2]);
  assert.deepEqual(search(matrix, [0, 1], 0), []);
  assert.throws(() => search(matrix, [1, 0, 0, 0], 1), RangeError);
});

// --- a bundle around a model that is a function --------------------------------------------------------------------------------

const WIDTH = 4, SIDE = 2;

function made(changes = {}) {
  const tokenizer = kit.tokenizerFile(), golden = safetensors({
    "image.input": { dtype: "F32", shape: [2, 3, SIDE, SIDE], data_offsets: [0, 96] }, "image.embedding": { dtype: "F32", shape: [2, WIDTH], data_offsets: [96, 128] },
    "text.input": { dtype: "I32", shape: [1, 77], data_offsets: [128, 436] }, "text.embedding": { dtype: "F32", shape: [1, WIDTH], data_offsets: [436, 452] },
  }, new Uint8Array(new Float32Array([...Array(24).fill(0.5), 2, 2, 2, 2, 1, 1, 1, 1, ...Array(77).fill(0), 0, 0, 3, 0]).buffer));
  const files = { "tokenizer.json": utf8(tokenizer), "golden.safetensors": golden, "image.onnx": utf8("image"), "text.onnx": utf8("text") };
  const entry = (path) => ({ path, size_bytes: files[path].length, sha256: hashOf(files[path]) });
  const artifact = (tower, name, dtype, shape) => ({
    target: "onnx", tower, path: `${tower}.onnx`, files: [entry(`${tower}.onnx`)], input: { name, dtype, shape: [2, ...shape] },
    output: { name: "embedding", dtype: "float32", shape: [2, WIDTH] },
  });
  const manifest = {
    schema_version: 1, model: { name: "m", trained: true, logit_scale: 50 }, embedding_space: "a".repeat(64), embed_dim: WIDTH,
    options: { precision: "fp32", batch: 2, normalize: false },
    preprocess: { resolution: SIDE, mean: [0, 0, 0], std: [1, 1, 1], interpolation: "bilinear", resize: "shortest", baked: false },
    tokenizer: { file: entry("tokenizer.json"), context_length: 77 }, golden: entry("golden.safetensors"), reference: entry("golden.safetensors"),
    artifacts: [artifact("image", "image", "float32", [3, SIDE, SIDE]), artifact("text", "tokens", "int32", [77])], ...changes,
  };
  const { canonical } = parseCanonical(JSON.stringify(manifest), "manifest_sha256");
  files["manifest.json"] = utf8(JSON.stringify({ ...manifest, manifest_sha256: hashOf(canonical) }));
  return files;
}

const reading = (files) => async (path) => files[path];

test("a bundle is opened, and a changed one is not", async () => {
  const bundle = await Bundle.open(reading(made()));
  assert.equal(new TextDecoder().decode(bundle.model("text")), "text");
  for (const name of ["tokenizer.json", "golden.safetensors", "image.onnx", "text.onnx"]) {
    const files = made();
    files[name] = files[name].slice().fill(1, 0, 1);
    await assert.rejects(Bundle.open(reading(files)), saying(new RegExp(`${name} is not what was exported`)));
  }
  await assert.rejects(Bundle.open(reading(made({ artifacts: [] }))), saying(/no image tower for browsers/));
});

test("an encoder fills batches, ranks labels and checks itself", async () => {
  const bundle = await Bundle.open(reading(made())), seen = [];
  const encoder = new Encoder(bundle, async (tower, values) => {
    seen.push([tower, values.length]);
    return Float32Array.from(tower === "image" ? [3, 3, 3, 3, 9, 9, 9, 9] : values[1] === 2368 ? [1, 1, 1, 1, 0, 0, 0, 0] : [0, 0, 5, 0, 0, 0, 0, 0]);
  });
  const image = await encoder.embedPicture(new Picture(3, 3, new Uint8Array(27)));
  assert.deepEqual([...image], [0.5, 0.5, 0.5, 0.5]);
  const classes = [await encoder.classOf("$& dog"), await encoder.classOf("cat", ["{}"])];
  assert.deepEqual(encoder.classify(image, classes, 2).map((p) => [p.label, p.cosine]), [[1, 1], [0, 0.5]]);
  assert.deepEqual(seen, [["image", 2 * 12], ["text", 2 * 77], ["text", 2 * 77]]);
  assert.deepEqual(await encoder.reproduces(), { image: 1, text: 1 });
  const other = new Encoder(bundle, async (tower) => Float32Array.from(tower === "image" ? [1, 1, 0, 0] : [0, 0, 1, 0]));
  assert.deepEqual(Object.values(await other.reproduces()).map((x) => x.toFixed(6)), ["0.707107", "1.000000"]);
  for (const bad of [[0, 0, 0, 0], [NaN, 1, 1, 1], [Infinity, 0, 0, 0]]) {
    await assert.rejects(new Encoder(bundle, async () => Float32Array.from(bad)).embedCaption("x"), saying(/no numbers on this device/));
  }
});
