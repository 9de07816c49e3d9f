// The whole conformance kit; MOBILECLIP_TOKENIZER names a tokenizer file.

import assert from "node:assert/strict";
import { test } from "node:test";
import * as kit from "./kit.mjs";

const { Tokenizer } = await kit.core("tokenizer");
const { SafeTensors } = await kit.core("safetensors");
const { Picture, pixels, tensor } = await kit.core("preprocess");
const { rank, search } = await kit.core("zeroshot");
const { HALVES, toHalf } = await kit.core("half");
const { parseManifest } = await kit.core("manifest");
const { MobileClipError } = await kit.core("error");
const { base64, batches, keeps } = await kit.core("bench");

const near = (got, wanted, most, what) => assert.ok(Math.abs(got - wanted) <= most, `${what}: ${got}, not ${wanted}`);
const oneLine = (e) => e instanceof MobileClipError && !e.message.includes("\n") && e.message.length < 300;

test("captions have their ids", () => {
  const tokenizer = new Tokenizer(kit.tokenizerFile()), lines = kit.text("captions.jsonl").trim().split("\n").map((line) => JSON.parse(line));
  assert.ok(lines.length >= 2251, `${lines.length} captions`);
  const wrong = lines.filter(({ text, ids }) => tokenizer.ids(text).join() !== ids.join());
  assert.deepEqual(wrong.slice(0, 10).map(({ text, ids }) => [text, ids, tokenizer.ids(text)]), [], `${wrong.length} differ`);
  const row = tokenizer.encode("a cat");
  assert.deepEqual([...row], [49406, 320, 2368, 49407, ...Array(tokenizer.contextLength - 4).fill(0)]);
});

test("pictures become their pixels, to the bit, and their tensors", () => {
  const file = new SafeTensors(kit.bytes("pixels.safetensors")), cases = JSON.parse(file.metadata.cases);
  assert.ok(cases.length >= 40, `${cases.length} cases`);
  let tensors = 0;
  cases.forEach((info, n) => {
    const { shape, values } = file.get(`picture_${n}`, "U8"), picture = new Picture(shape[1], shape[0], values).upright(info.orientation);
    const got = pixels(picture, info), wanted = file.get(`pixels_${n}`, "U8").values;
    assert.equal(Buffer.compare(got, wanted), 0, `case ${n}: ${JSON.stringify(info)}`);
    if (!file.tensors.has(`tensor_${n}`)) return;
    const mine = tensor(got, info);
    file.get(`tensor_${n}`, "F32").values.forEach((x, i) => near(mine[i], x, 1e-6, `tensor of case ${n}`));
    tensors++;
  });
  assert.ok(tensors >= 5, `${tensors} tensors`);
});

test("labels have their ranks", () => {
  const cases = kit.json("ranking.json").rank;
  assert.ok(cases.length >= 4);
  for (const { image, classes, logit_scale: scale, top, expected } of cases) {
    const got = rank(image, classes, scale, top);
    assert.deepEqual(got.map((p) => p.label), expected.map((p) => p.label));
    got.forEach((p, i) => ["probability", "cosine"].forEach((name) => near(p[name], expected[i][name], 1e-6, name)));
  }
});

test("search finds its rows", () => {
  const cases = kit.json("ranking.json").search;
  assert.ok(cases.length >= 3);
  for (const { matrix, query, top, expected } of cases) {
    const halves = Uint16Array.from(matrix.flat(), toHalf);
    assert.deepEqual(Array.from(halves, (half) => HALVES[half]), matrix.flat(), "the kit's numbers are halves");
    const got = search(halves, query, top);
    assert.deepEqual(got.map((m) => m.row), expected.map((m) => m.row));
    got.forEach((m, i) => near(m.score, expected[i].score, 1e-6, "score"));
  }
});

test("manifests are opened or refused", () => {
  const cases = elements(kit.text("manifests.json"));
  assert.ok(cases.length >= 20);
  assert.equal(cases.filter(({ valid }) => valid).length, 1);
  for (const { name, valid, manifest } of cases) {
    if (valid) {
      const read = parseManifest(manifest);
      assert.deepEqual([read.model.name, read.embedding_space, read.artifacts.length], ["mobileclip_nano", "2".repeat(64), 2]);
    } else {
      assert.throws(() => parseManifest(manifest), oneLine, name);
    }
  }
});

test("measurements are done as the plan asks, and told as the answers do", () => {
  const { plan, answers } = kit.json("answers.json"), requests = plan.measurements.map((m) => m.request);
  assert.deepEqual(requests.map((r) => r.tower), ["image", "text"]);
  for (const request of requests) {
    assert.deepEqual([...Array(80).keys()].filter((sample) => keeps(request, sample)), [0, 27, 59, 60]);
    const { shape, dtype } = request.input, row = shape.slice(1).reduce((a, b) => a * b);
    const rows = Float32Array.from({ length: request.rows * row }, (_, i) => Math.floor(i / row)), all = dtype === "int32" ? Int32Array.from(rows) : rows;
    const made = batches(request, new Uint8Array(all.buffer));
    assert.deepEqual(made.map((batch) => [batch.length, batch[0]]), [...Array(request.rows).keys()].map((i) => [row, i]));
    const inThrees = batches({ ...request, input: { ...request.input, shape: [2, ...shape.slice(1)] } }, new Uint8Array(all.buffer));
    assert.equal(inThrees.at(-1).at(-1), (2 * inThrees.length - 1) % request.rows, "the last batch begins again with the first rows");
    assert.throws(() => batches(request, new Uint8Array(4)), RangeError);
  }
  const [{ answer }] = answers;
  for (const { values } of answer.samples.kept) assert.equal(base64(new Float32Array(16).fill(0.25)), values);
});

/** The elements of a list of cases, each with its `manifest` as it stands: JSON.parse would write its numbers anew. */
function elements(list) {
  const cases = JSON.parse(list), places = [...list.matchAll(/^  "manifest": /gm)].map((m) => m.index + m[0].length);
  assert.equal(places.length, cases.length);
  return cases.map((found, i) => ({ ...found, manifest: list.slice(places[i], list.indexOf("\n  }\n", places[i]) + 4) }));
}

test("the kit's schemas are those of the versions that are read here", async () => {
  const { SCHEMA_VERSION } = await kit.core("manifest");
  assert.equal(kit.json("manifest.schema.json").properties.schema_version.const, SCHEMA_VERSION);
});
