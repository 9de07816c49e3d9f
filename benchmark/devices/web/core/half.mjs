// IEEE 754 half precision. Float16Array is too new to count on.

const bits = new Int32Array(1), float = new Float32Array(bits.buffer);

/** Every half's value, by its bits. */
export const HALVES = Float32Array.from({ length: 1 << 16 }, (_, half) => {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 0x1f, fraction = half & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
});

/** The bits of the half that is nearest to a number; of two that are equally near, the even one. */
export function toHalf(value) {
  float[0] = value;
  const sign = (bits[0] >>> 16) & 0x8000, magnitude = bits[0] & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude >= 0x38800000) return sign | rounded(magnitude - (112 << 23), 13);
  return magnitude > 0x33000000 ? sign | rounded((magnitude & 0x7fffff) | 0x800000, 126 - (magnitude >>> 23)) : sign;
}

function rounded(value, dropped) {
  const kept = value >>> dropped, rest = value & ((1 << dropped) - 1), middle = 1 << (dropped - 1);
  return kept + (rest > middle || (rest === middle && kept & 1) ? 1 : 0);
}
