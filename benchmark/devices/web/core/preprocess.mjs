// A picture as the image tower takes it. The numbers are Pillow's, whose resize the models were trained with: two passes with an
// anti-aliased filter, 8 bits in between, weights in fixed point.

/** Of the fraction; 8 bits of value and two of overshoot fit beside it. */
const BITS = 32 - 8 - 2, ONE = 1 << BITS, HALF = 1 << (BITS - 1), SHARP = -0.5;
const FILTERS = {
  bilinear: { support: 1, at: (x) => (x < 1 ? 1 - x : 0) },
  bicubic: {
    support: 2,
    at: (x) => (x < 1 ? ((SHARP + 2) * x - (SHARP + 3)) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * SHARP : 0),
  },
};

/** An RGB picture, 8 bits a channel, rows from the top, three bytes a pixel. */
export class Picture {
  /**
   * @param {number} width
   * @param {number} height
   * @param {Uint8Array | Uint8ClampedArray} rgb
   */
  constructor(width, height, rgb) {
    if (!(width > 0 && height > 0 && rgb.length === 3 * width * height)) {
      throw new RangeError(`a picture of ${width} x ${height} needs ${3 * width * height} bytes, not ${rgb.length}`);
    }
    this.width = width;
    this.height = height;
    this.rgb = rgb;
  }

  /** The picture as a viewer shows it, by its EXIF orientation (1 to 8; others need nothing). */
  upright(orientation) {
    const { width, height } = this;
    const source = {
      2: (x, y) => [width - 1 - x, y], 3: (x, y) => [width - 1 - x, height - 1 - y], 4: (x, y) => [x, height - 1 - y], 5: (x, y) => [y, x],
      6: (x, y) => [y, height - 1 - x], 7: (x, y) => [width - 1 - y, height - 1 - x], 8: (x, y) => [width - 1 - y, x],
    }[orientation];
    if (!source) return this;
    const [w, h] = orientation >= 5 ? [height, width] : [width, height], out = new Uint8Array(this.rgb.length);
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const [sx, sy] = source(x, y), from = 3 * (sy * width + sx), to = 3 * (y * w + x);
        for (let c = 0; c < 3; c++) out[to + c] = this.rgb[from + c];
      }
    }
    return new Picture(w, h, out);
  }
}

/**
 * Resized and cropped.
 *
 * @param {Picture} picture
 * @param {import("./manifest.mjs").PreprocessInfo} info
 * @returns {Uint8Array} (R, R, 3) RGB
 */
export function pixels(picture, { resolution: size, resize: how, interpolation }) {
  const { width, height } = picture;
  if (how === "squash") return resize(picture, axis(width, size, 0, size, interpolation), axis(height, size, 0, size, interpolation));
  const long = Math.floor((size * Math.max(width, height)) / Math.min(width, height)), offset = halfToEven(long - size);
  // only what the crop keeps is computed: rows and columns do not depend on their neighbours
  const [across, down] = width >= height ? [long, size] : [size, long];
  return resize(
    picture, axis(width, across, width >= height ? offset : 0, size, interpolation), axis(height, down, width >= height ? 0 : offset, size, interpolation),
  );
}

/**
 * `pixels` in [0, 1], minus mean, over standard deviation, in float32 throughout.
 *
 * @param {Uint8Array} values (R, R, 3)
 * @param {import("./manifest.mjs").PreprocessInfo} info
 * @returns {Float32Array} (3, R, R)
 */
export function tensor(values, { resolution, mean, std }) {
  const f = Math.fround, area = resolution * resolution, out = new Float32Array(3 * area);
  for (let c = 0; c < 3; c++) {
    const scaled = Float32Array.from({ length: 256 }, (_, level) => f(f(level / 255) - f(mean[c])) / f(std[c]));
    for (let i = 0; i < area; i++) out[c * area + i] = scaled[values[3 * i + c]];
  }
  return out;
}

/** Half of a whole number, rounded to even where it is not one, as Python and torchvision do. */
function halfToEven(twice) {
  const down = Math.floor(twice / 2);
  return twice % 2 ? down + (down % 2) : down;
}

/**
 * Of each place from `offset` on, of which source values it is made and with what weights, in fixed point.
 *
 * @typedef {{count: number, from: number, starts: Int32Array, weights: Int32Array[]}} Axis
 * @returns {Axis}
 */
function axis(from, to, offset, count, interpolation) {
  const { support, at } = FILTERS[interpolation], scale = from / to, stretch = Math.max(scale, 1);
  const starts = new Int32Array(count), weights = [];
  for (let i = 0; i < count; i++) {
    if (from === to) { // nothing to resize: Pillow leaves these values alone
      starts[i] = offset + i;
      weights.push(Int32Array.of(ONE));
      continue;
    }
    const center = (offset + i + 0.5) * scale, reach = stretch * support;
    const first = Math.max(Math.trunc(center - reach + 0.5), 0), last = Math.min(Math.trunc(center + reach + 0.5), from);
    const raw = Float64Array.from({ length: last - first }, (_, k) => at(Math.abs((first + k - center + 0.5) / stretch)));
    const sum = raw.reduce((a, b) => a + b, 0) || 1;
    starts[i] = first;
    weights.push(Int32Array.from(raw, (weight) => Math.trunc((weight / sum) * ONE + (weight < 0 ? -0.5 : 0.5))));
  }
  return { count, from, starts, weights };
}

/** Columns first, of the rows alone that the second pass needs. */
function resize(picture, columns, rows) {
  const first = rows.starts[0], last = rows.starts[rows.count - 1] + rows.weights[rows.count - 1].length, step = 3 * columns.count;
  const narrow = new Uint8Array(step * (last - first)), out = new Uint8Array(step * rows.count);
  for (let y = first; y < last; y++) {
    for (let x = 0; x < columns.count; x++) {
      weigh(columns.weights[x], picture.rgb, 3 * (y * picture.width + columns.starts[x]), 3, narrow, (y - first) * step + 3 * x);
    }
  }
  for (let y = 0; y < rows.count; y++) {
    for (let x = 0; x < columns.count; x++) {
      weigh(rows.weights[y], narrow, (rows.starts[y] - first) * step + 3 * x, step, out, y * step + 3 * x);
    }
  }
  return out;
}

/** One pixel of three channels; source values are `step` apart. */
function weigh(weights, source, at, step, target, to) {
  let red = HALF, green = HALF, blue = HALF;
  for (let i = 0; i < weights.length; i++, at += step) {
    red += source[at] * weights[i];
    green += source[at + 1] * weights[i];
    blue += source[at + 2] * weights[i];
  }
  target[to] = level(red);
  target[to + 1] = level(green);
  target[to + 2] = level(blue);
}

function level(sum) {
  return Math.min(Math.max(sum >> BITS, 0), 255);
}
