import { MobileClipError, reason } from "./error.mjs";

const MAX_HEADER_BYTES = 16 << 20;
const TYPES = { F32: Float32Array, I32: Int32Array, F16: Uint16Array, U8: Uint8Array, I64: BigInt64Array };

/**
 * @typedef {{dtype: "F32" | "I32" | "F16" | "U8" | "I64", shape: number[],
 *   values: Float32Array | Int32Array | Uint16Array | Uint8Array | BigInt64Array}} Tensor F16 as bits, see half.mjs
 */

/** What a safetensors file holds; every offset was checked. */
export class SafeTensors {
  /**
   * @param {Uint8Array} bytes
   * @param {string} name what errors call the file
   * @throws {MobileClipError} it is damaged
   */
  constructor(bytes, name = "the safetensors file") {
    this.name = name;
    /** @type {Map<string, Tensor>} */
    this.tensors = new Map();
    try {
      /** @type {Record<string, string>} */
      this.metadata = this.#read(bytes);
    } catch (e) {
      throw new MobileClipError(`${name} is damaged (${reason(e, 120)}); copy the bundle again`);
    }
  }

  /**
   * @param {string} name
   * @param {string} [dtype] refuse others
   * @returns {Tensor}
   */
  get(name, dtype) {
    const tensor = this.tensors.get(name);
    if (!tensor || (dtype && tensor.dtype !== dtype)) {
      throw new MobileClipError(`${this.name} holds no ${name}${dtype ? ` of type ${dtype}` : ""}; export the bundle again`);
    }
    return tensor;
  }

  #read(bytes) {
    if (bytes.length < 8) throw new RangeError(`a size of ${bytes.length} bytes`);
    const length = new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true);
    if (length < 2n || length > BigInt(Math.min(MAX_HEADER_BYTES, bytes.length - 8))) throw new RangeError(`a header of ${length} bytes`);
    const start = 8 + Number(length);
    const header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, start)));
    for (const [name, about] of Object.entries(header)) {
      if (name !== "__metadata__") this.tensors.set(name, tensor(name, about, bytes, start));
    }
    return header.__metadata__ ?? {};
  }
}

function tensor(name, { dtype, shape, data_offsets: offsets }, bytes, start) {
  const Values = Object.hasOwn(TYPES, dtype) ? TYPES[dtype] : null;
  if (!Values) throw new TypeError(`${name} is of type ${dtype}`);
  const counts = (list) => Array.isArray(list) && list.every((n) => Number.isSafeInteger(n) && n >= 0);
  if (!counts(shape) || !counts(offsets) || offsets.length !== 2) throw new TypeError(`${name} has no shape or place`);
  const [first, last] = offsets;
  if (first > last || start + last > bytes.length) throw new RangeError(`${name} lies outside`);
  if (shape.reduce((a, b) => a * b, Values.BYTES_PER_ELEMENT) !== last - first) throw new RangeError(`${name} has another size than its shape`);
  // a copy: values need not lie at a multiple of their width
  return { dtype, shape, values: new Values(bytes.slice(start + first, start + last).buffer) };
}
