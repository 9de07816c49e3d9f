// The clean-up of captions that CLIP was trained with: ftfy's repairs of single characters, HTML unescaped twice, white space collapsed.
// Text that was decoded with a wrong encoding is left as it is; nobody types it.

import { ENTITIES } from "./entities.mjs";

/** White space as Python has it, for the inside of a pattern's class; JavaScript's own \s lacks some of it. */
export const SPACES = "\\u0009-\\u000D\\u001C-\\u0020\\u0085\\u00A0\\u1680\\u2000-\\u200A\\u2028\\u2029\\u202F\\u205F\\u3000";

const SPACE = new RegExp(`[${SPACES}]+`, "u");
const STRICT = /&#?[0-9A-Za-z]{1,24};/g;
const LOOSE = /&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)/gu;
const LINE_BREAK = /\r\n|[\r\u2028\u2029\u0085]/g;
const TERMINAL_ESCAPE = /\u001B\[[0-9;]*[a-zA-Z]/g;
const CONTROL = /[\u0000-\u0008\u000B\u000E-\u001F\u007F\u206A-\u206F\uFEFF\uFFF9-\uFFFC]/g;
/** Windows-1252 from 0x80 on; an underscore where it has no character. */
const WINDOWS_1252 = "€_‚ƒ„…†‡ˆ‰Š‹Œ_Ž__‘’“”•–—˜™š›œ_žŸ";
const LIGATURES = {
  "Ĳ": "IJ", "ĳ": "ij", "ŉ": "'n", "Ǳ": "DZ", "ǲ": "Dz", "ǳ": "dz", "Ǆ": "DŽ", "ǅ": "Dž", "ǆ": "dž", "Ǉ": "LJ", "ǈ": "Lj", "ǉ": "lj",
  "Ǌ": "NJ", "ǋ": "Nj", "ǌ": "nj", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st",
};
const REPLACED = /[\u0080-\u009F\u02BC\u2018-\u201F\u3000\uFF01-\uFFEF\u{D800}-\u{DFFF}ĲĳŉǱ-ǳǄ-ǌﬀ-ﬆ]/gu;

/** A caption without what differs between writers of the same text. */
export function clean(text) {
  return unescape(unescape(repair(text))).split(SPACE).filter(Boolean).join(" ");
}

/** Each line by itself, as ftfy does: a `<` in one of them stops the unescaping there and in all that follow. */
function repair(text) {
  let unescaping = true;
  return text.replace(/[^\n]*\n|[^\n]+/g, (line) => repairLine(line, (unescaping &&= !line.includes("<"))));
}

function repairLine(line, unescaping) {
  for (let text = line; ; ) {
    const before = text;
    if (unescaping) text = text.replace(STRICT, strictEntity);
    text = text.replace(REPLACED, replacement).replace(LINE_BREAK, "\n").replace(TERMINAL_ESCAPE, "").replace(CONTROL, "").normalize("NFC");
    if (text === before) return text;
  }
}

function replacement(character) {
  const code = character.codePointAt(0);
  if (code <= 0x9f) return windows1252(code);
  if (code === 0x3000) return " ";
  if (code >= 0xff01) return character.normalize("NFKC");
  if (code >= 0xd800 && code <= 0xdfff) return "\uFFFD";
  return LIGATURES[character] ?? (code >= 0x201c && code <= 0x201f ? '"' : "'");
}

function windows1252(code) {
  const character = WINDOWS_1252[code - 0x80];
  return character === "_" ? String.fromCharCode(code) : character;
}

/** ftfy's own unescaping: only what ends in a semicolon, and names in capitals as well. */
function strictEntity(found) {
  const name = found.slice(1);
  if (ENTITIES.has(name)) return ENTITIES.get(name);
  if (name.startsWith("#")) {
    const character = unescape(found);
    return character.includes(";") ? found : character;
  }
  // a name in capitals is that of the capital letter, where no other name is written so
  const lower = ENTITIES.get(name.toLowerCase());
  return lower !== undefined && name === name.toUpperCase() && unescape(found) === found ? lower.toUpperCase() : found;
}

/** HTML5's character references, as a browser reads them. */
export function unescape(text) {
  return text.replace(LOOSE, (whole, name) => {
    if (name.startsWith("#")) return numbered(name.slice(1).replace(";", ""));
    for (let length = name.length; length >= 2; length--) {
      const found = ENTITIES.get(name.slice(0, length));
      if (found !== undefined) return found + name.slice(length);
    }
    return whole;
  });
}

function numbered(digits) {
  const code = /^x/i.test(digits) ? parseInt(digits.slice(1), 16) : parseInt(digits, 10);
  if (code === 0x0d) return "\r";
  if (code >= 0x80 && code <= 0x9f) return windows1252(code);
  if (code === 0 || (code >= 0xd800 && code <= 0xdfff) || code > 0x10ffff) return "\uFFFD";
  return isNoCharacter(code) ? "" : String.fromCodePoint(code);
}

function isNoCharacter(code) {
  return code <= 0x8 || code === 0xb || (code >= 0xe && code <= 0x1f) || code === 0x7f || (code >= 0xfdd0 && code <= 0xfdef) || (code & 0xfffe) === 0xfffe;
}
