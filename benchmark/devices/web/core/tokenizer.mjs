import { clean, SPACES } from "./cleanup.mjs";
import { MobileClipError, reason } from "./error.mjs";

const START = "<start_of_text>", END = "<end_of_text>", WORD_END = "</w>";
const SPLIT = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";
// The same for text in lower case, with what the reference's disregard of case adds: a long s is an s, and U+0345, which is a letter
// in capitals only, falls through. JavaScript's own disregard of case treats that one in another way.
const WORDS = new RegExp(`<[sſ]tart_of_text>|${END}|'[sſ]|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|[^${SPACES}\\u0345\\p{L}\\p{N}]+`, "gu");
const CACHED_WORDS = 10_000, CACHED_LENGTH = 64, MAX_CONTEXT = 65_536;

/** The characters that stand for bytes: printable ones for themselves, the others from U+0100 on. */
const BYTE_SYMBOLS = (() => {
  let next = 0x100;
  const printable = (byte) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();

/** Captions to token ids with CLIP's vocabulary (Radford et al. 2021, arXiv 2103.00020, section 2.4), equal to the Python reference's. */
export class Tokenizer {
  #vocabulary = new Map();
  #ranks = new Map();
  #known = new Map();
  #padId;

  /**
   * @param {string} json content of a bundle's tokenizer file
   * @throws {MobileClipError} it is damaged, or no tokenizer that is known here
   */
  constructor(json) {
    try {
      this.#read(JSON.parse(json));
    } catch (e) {
      throw new MobileClipError(`the tokenizer file is none that is known here (${reason(e, 120)}); export the bundle again`);
    }
  }

  /** The row of a caption: start, its ids, end, padding; what is too long is cut, and the last id is the end all the same. */
  encode(text) {
    const row = new Int32Array(this.contextLength).fill(this.#padId);
    row.set(this.ids(text));
    return row;
  }

  /** The ids of a caption from start to end, without padding. */
  ids(text) {
    const ids = [this.#vocabulary.get(START)];
    for (const [word] of clean(text).toLowerCase().matchAll(WORDS)) {
      for (const id of this.#idsOf(word)) ids.push(id);
      if (ids.length >= this.contextLength) break;
    }
    ids.length = Math.min(ids.length, this.contextLength - 1);
    return [...ids, this.#vocabulary.get(END)];
  }

  #idsOf(word) {
    let ids = this.#known.get(word);
    if (!ids) {
      ids = (word === START || word === END ? [word] : this.#merge(word)).map((part) => this.#vocabulary.get(part));
      if (this.#known.size >= CACHED_WORDS) this.#known.clear();
      if (word.length <= CACHED_LENGTH) this.#known.set(word, ids);
    }
    return ids;
  }

  /** Byte-pair encoding: the pair of the lowest rank is joined everywhere, until no pair has a rank. */
  #merge(word) {
    let parts = Array.from(new TextEncoder().encode(word), (byte) => BYTE_SYMBOLS[byte]);
    parts.push(parts.pop() + WORD_END);
    for (;;) {
      let best = Infinity, first = "", second = "";
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.#ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, first, second] = [rank, parts[i], parts[i + 1]];
      }
      if (best === Infinity) return parts;
      const joined = [];
      for (let i = 0; i < parts.length; i++) {
        if (parts[i] === first && parts[i + 1] === second) joined.push(parts[i++] + second);
        else joined.push(parts[i]);
      }
      parts = joined;
    }
  }

  #read({ model, truncation, padding, pre_tokenizer: words }) {
    const need = (right, what) => {
      if (!right) throw new TypeError(what);
    };
    need(model.type === "BPE" && model.end_of_word_suffix === WORD_END, "its model is not CLIP's");
    need(words?.pretokenizers?.[0]?.pattern?.Regex === SPLIT, "it splits text in another way than CLIP");
    for (const [token, id] of Object.entries(model.vocab)) {
      need(Number.isInteger(id) && id >= 0 && id < 2 ** 31, "an id is no number");
      this.#vocabulary.set(token, id);
    }
    need(this.#vocabulary.has(START) && this.#vocabulary.has(END), "it has another start or end than CLIP's");
    need(BYTE_SYMBOLS.every((s) => this.#vocabulary.has(s) && this.#vocabulary.has(s + WORD_END)), "a byte has no id");
    model.merges.forEach((pair, rank) => {
      need(pair.length === 2 && this.#vocabulary.has(pair[0] + pair[1]), "a merge has no id");
      this.#ranks.set(pair.join(" "), rank);
    });
    /** Ids in a row, padding included. */
    this.contextLength = truncation.max_length;
    need(Number.isInteger(this.contextLength) && this.contextLength >= 2 && this.contextLength <= MAX_CONTEXT, "a context length that is none");
    this.#padId = padding.pad_id;
    need(Number.isInteger(this.#padId), "no padding");
  }
}
