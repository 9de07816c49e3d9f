// Zero-shot classification (Radford et al. 2021, arXiv 2103.00020, section 3.1), and search among embeddings.

import { HALVES } from "./half.mjs";

const TINY = 1e-12;

/** @typedef {{label: number, probability: number, cosine: number}} Prediction */

/** Dot product; of embeddings of unit length, their cosine. */
export function dot(a, b) {
  if (a.length !== b.length) throw new RangeError(`embeddings of ${a.length} and ${b.length} values cannot be compared`);
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** An embedding of unit length; zeros stay. */
export function normalized(embedding) {
  const norm = Math.max(Math.sqrt(dot(embedding, embedding)), TINY);
  return Float32Array.from(embedding, (x) => x / norm);
}

/** The embedding of a class: the mean of its captions' normalised embeddings, normalised. */
export function classEmbedding(captions) {
  if (!captions.length) throw new RangeError("a class needs a caption");
  const mean = new Float64Array(captions[0].length);
  for (const caption of captions) caption.forEach((x, i) => (mean[i] += x / captions.length));
  return normalized(mean);
}

/**
 * The most probable labels of a picture, best first; equal ones in the labels' order.
 *
 * @param {ArrayLike<number>} image normalised embedding
 * @param {ArrayLike<number>[]} classes normalised embedding of each label
 * @param {number} logitScale factor of the cosines before the softmax
 * @param {number} top how many, at most
 * @returns {Prediction[]}
 */
export function rank(image, classes, logitScale, top) {
  const cosines = classes.map((row) => dot(row, image)), largest = cosines.reduce((a, b) => Math.max(a, b), -Infinity);
  const odds = cosines.map((cosine) => Math.exp(logitScale * (cosine - largest))), sum = odds.reduce((a, b) => a + b, 0);
  const order = cosines.map((_, i) => i).sort((a, b) => cosines[b] - cosines[a]); // stable
  return order.slice(0, top).map((label) => ({ label, probability: odds[label] / sum, cosine: cosines[label] }));
}

/**
 * The rows that are nearest to a query, best first; equal ones by row.
 *
 * @param {Uint16Array} matrix rows in half precision, see half.mjs
 * @param {ArrayLike<number>} query as wide as a row
 * @param {number} top how many, at most
 * @returns {{row: number, score: number}[]}
 */
export function search(matrix, query, top) {
  const width = query.length;
  if (!width || matrix.length % width) throw new RangeError(`${matrix.length} values are no rows of ${width}`);
  const best = [];
  for (let row = 0; row < matrix.length / width; row++) {
    let score = 0;
    for (let i = 0; i < width; i++) score += HALVES[matrix[row * width + i]] * query[i];
    if (best.length >= top && !(score > best[top - 1]?.score)) continue;
    let at = best.length;
    while (at && best[at - 1].score < score) at--;
    best.splice(at, 0, { row, score });
    if (best.length > top) best.pop();
  }
  return best;
}
