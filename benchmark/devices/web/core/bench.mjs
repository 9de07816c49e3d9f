// What a measurement does besides running the model; see conformance/bench_request.schema.json.

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

/**
 * @typedef {{input: import("./manifest.mjs").TensorInfo, rows: number, keep: number[], keep_of: number}} BenchRequest the fields used here
 */

/** Whether the output of a timed run is kept for the host to check. */
export function keeps({ keep, keep_of: of }, sample) {
  return sample % of === keep[Math.floor(sample / of) % keep.length];
}

/**
 * The inputs of a request, batch by batch; the last one begins again with the first rows.
 *
 * @param {BenchRequest} request
 * @param {Uint8Array} bytes all rows
 * @throws {RangeError} another size than the request says
 */
export function batches({ input: { dtype, shape }, rows: count }, bytes) {
  const size = shape.slice(1).reduce((a, b) => a * b, 1), Values = ARRAYS[dtype];
  if (bytes.length !== size * count * Values.BYTES_PER_ELEMENT) throw new RangeError("the inputs have another size than the request says");
  const rows = new Values(/** @type {ArrayBuffer} */ (bytes.buffer), bytes.byteOffset, size * count), made = [];
  for (let first = 0; first < count; first += shape[0]) {
    const batch = new Values(size * shape[0]);
    for (let i = 0; i < shape[0]; i++) {
      const row = (first + i) % count;
      batch.set(rows.subarray(row * size, (row + 1) * size), i * size);
    }
    made.push(batch);
  }
  return made;
}

/** The bytes of a typed array, little-endian, as base64. */
export function base64(values) {
  let text = "";
  for (const byte of new Uint8Array(values.buffer, values.byteOffset, values.byteLength)) text += String.fromCharCode(byte);
  return btoa(text);
}
