import { MobileClipError } from "./error.mjs";
import { checkFile, parseManifest } from "./manifest.mjs";
import { SafeTensors } from "./safetensors.mjs";
import { Tokenizer } from "./tokenizer.mjs";

/** A bundle with its ONNX towers; the manifest and every file that is used were checked. */
export class Bundle {
  /**
   * @param {import("./manifest.mjs").Manifest} manifest
   * @param {Map<string, Uint8Array>} files by path
   */
  constructor(manifest, files) {
    this.manifest = manifest;
    this.files = files;
    this.tokenizer = new Tokenizer(new TextDecoder().decode(files.get(manifest.tokenizer.file.path)));
  }

  /**
   * @param {(path: string) => Promise<Uint8Array>} read gives a file of the bundle
   * @returns {Promise<Bundle>}
   * @throws {MobileClipError} damaged, incomplete, or without a tower that a browser can run
   */
  static async open(read) {
    const manifest = parseManifest(new TextDecoder().decode(await read("manifest.json"))), files = new Map();
    const towers = ["image", "text"].map((tower) => artifact(manifest, tower).files[0]);
    for (const entry of [manifest.tokenizer.file, manifest.golden, ...towers]) {
      const bytes = await read(entry.path);
      checkFile(entry, bytes);
      files.set(entry.path, bytes);
    }
    return new Bundle(manifest, files);
  }

  /** The ONNX file of a tower. */
  model(tower) {
    return this.files.get(artifact(this.manifest, tower).path);
  }

  /** A few inputs with the model's outputs. */
  golden() {
    return new SafeTensors(this.files.get(this.manifest.golden.path), this.manifest.golden.path);
  }
}

function artifact(manifest, tower) {
  const found = manifest.artifacts.find((a) => a.target === "onnx" && a.tower === tower && a.files.length === 1);
  if (!found) throw new MobileClipError(`the bundle has no ${tower} tower for browsers; export it with: mobileclip export --target onnx`);
  return found;
}
