import { MobileClipError } from "./error.mjs";
import { pixels, tensor } from "./preprocess.mjs";
import { classEmbedding, dot, normalized, rank } from "./zeroshot.mjs";

/** The two towers of a bundle: pictures and captions to embeddings of unit length. */
export class Encoder {
  #run;

  /**
   * @param {import("./bundle.mjs").Bundle} bundle
   * @param {(tower: "image" | "text", values: Float32Array | Int32Array | Uint8Array) => Promise<Float32Array>} run one batch through a tower
   */
  constructor(bundle, run) {
    this.bundle = bundle;
    this.#run = run;
  }

  /** What the image tower takes of a picture. */
  input(picture) {
    const { preprocess } = this.bundle.manifest, values = pixels(picture, preprocess);
    return preprocess.baked ? values : tensor(values, preprocess);
  }

  /** @param {import("./preprocess.mjs").Picture} picture */
  embedPicture(picture) {
    return this.embed("image", this.input(picture));
  }

  /** @param {string} caption */
  embedCaption(caption) {
    return this.embed("text", this.bundle.tokenizer.encode(caption));
  }

  /** The class embedding of a label, from templates with `{}` for the label. */
  async classOf(label, templates = ["{}"]) {
    const captions = [];
    for (const template of templates) captions.push(await this.embedCaption(template.replaceAll("{}", () => label)));
    return classEmbedding(captions);
  }

  /** The labels of an embedding, best first; see `rank`. */
  classify(image, classes, top) {
    return rank(image, classes, this.bundle.manifest.model.logit_scale, top);
  }

  /**
   * Whether this machine computes what the exported model did: of each tower the smallest cosine over the bundle's golden inputs.
   *
   * @returns {Promise<{image: number, text: number}>}
   */
  async reproduces() {
    const golden = this.bundle.golden(), smallest = { image: 1, text: 1 };
    for (const tower of ["image", "text"]) {
      const { values, shape } = golden.get(`${tower}.input`), wanted = golden.get(`${tower}.embedding`, "F32"), rows = shape[0];
      if (!rows || wanted.shape[0] !== rows) throw new MobileClipError("the golden inputs have not an output each; export the bundle again");
      const width = values.length / rows, outputs = wanted.values.length / rows;
      for (let i = 0; i < rows; i++) {
        const got = await this.embed(tower, values.slice(i * width, (i + 1) * width));
        smallest[tower] = Math.min(smallest[tower], dot(got, normalized(wanted.values.slice(i * outputs, (i + 1) * outputs))));
      }
    }
    return smallest;
  }

  /** One input through a tower; a batch is filled with copies of it. */
  async embed(tower, input) {
    const { options, embed_dim: width } = this.bundle.manifest, batch = new input.constructor(options.batch * input.length);
    for (let i = 0; i < options.batch; i++) batch.set(input, i * input.length);
    const embedding = Float64Array.from((await this.#run(tower, batch)).subarray(0, width)), norm = Math.sqrt(dot(embedding, embedding));
    if (!(norm > 0 && norm < Infinity)) throw new MobileClipError("the model gives no numbers on this device; export the bundle in fp32");
    return normalized(embedding);
  }
}
