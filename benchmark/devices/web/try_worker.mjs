// The model that was measured, for the pictures and labels of whoever holds the device. Nothing is sent anywhere.

import { Bundle } from "./core/bundle.mjs";
import { Encoder } from "./core/encoder.mjs";
import { reason } from "./core/error.mjs";
import { pixels } from "./core/preprocess.mjs";
import { decode, readsTruly } from "./picture.mjs";
import { bytesOf, messageOf, start } from "./runtime.mjs";

/** The gate's least cosine, see the README. */
const LEAST = { fp32: 0.99999, fp16: 0.999 };

let bundle, encoder, image;
const classes = new Map();

async function timed(action) {
  const begin = performance.now();
  return [await action(), performance.now() - begin];
}

async function open({ provider: asked, threads }) {
  bundle = await Bundle.open((path) => bytesOf(`bundle/${path}`));
  const { ort, options, engine, provider } = await start(asked, threads), { manifest } = bundle, towers = {};
  for (const { tower, target, path, input, output } of manifest.artifacts) {
    if (target !== "onnx" || !bundle.files.has(path) || towers[tower]) continue;
    towers[tower] = { input, output, session: await ort.InferenceSession.create(bundle.files.get(path), options) };
    bundle.files.delete(path); // the session has its own copy
  }
  encoder = new Encoder(bundle, async (tower, values) => {
    const { input, output, session } = towers[tower];
    return (await session.run({ [input.name]: new ort.Tensor(input.dtype, values, input.shape) }))[output.name].data;
  });
  const { model, options: exported } = manifest;
  return { name: model.name, trained: model.trained, precision: exported.precision, engine, provider, threads };
}

/** Whether this browser computes what the exported model did. */
async function check() {
  const least = LEAST[bundle.manifest.options.precision], truly = readsTruly();
  try {
    const cosines = await encoder.reproduces();
    return { least, truly, cosines, passed: Object.values(cosines).every((cosine) => cosine >= least) };
  } catch (e) {
    return { least, truly, cosines: null, passed: false, why: reason(e) };
  }
}

/** Take a picture, a file or a decoded one; gives what the model sees of it. */
async function look({ file, picture: given }) {
  image = undefined;
  const { preprocess } = bundle.manifest, [{ picture, blackened }, decode_ms] = await timed(() => (file ? decode(file) : { picture: given, blackened: false }));
  const [input, input_ms] = await timed(() => encoder.input(picture));
  const [embedding, run_ms] = await timed(() => encoder.embed("image", input));
  image = embedding;
  return { embedding, blackened, seen: pixels(picture, preprocess), side: preprocess.resolution, decode_ms, input_ms, run_ms };
}

/** A caption's embedding. */
async function embed({ caption }) {
  return { embedding: await encoder.embedCaption(caption) };
}

/** The labels of the picture, best first; each label is embedded once. */
async function rank({ labels, top }) {
  let embedded = 0;
  const [rows, text_ms] = await timed(async () => {
    const found = [];
    for (const label of labels) {
      if (!classes.has(label) && ++embedded) classes.set(label, await encoder.classOf(label));
      found.push(classes.get(label));
    }
    return found;
  });
  const ranked = encoder.classify(image, rows, top).map(({ label, ...rest }) => ({ label: labels[label], ...rest }));
  return { ranked, embedded, text_ms };
}

const COMMANDS = { open, check, look, embed, rank };

onmessage = async ({ data: command }) => {
  try {
    postMessage(await COMMANDS[command.do](command));
  } catch (e) {
    postMessage({ error: messageOf(e) });
  }
};
