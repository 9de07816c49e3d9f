// JSON as the manifest's hash needs it: JSON.parse loses how a number was written (1.0, 1e-06), and the hash is over that.

const TOKEN = /[ \t\n\r]*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[[\]{}:,])/y;
const MAX_DEPTH = 100;

/**
 * The canonical text of a JSON object without one of its keys: sorted keys, no spaces, numbers as they stand.
 *
 * @param {string} text a JSON object
 * @param {string} without the key that is left out
 * @returns {{value: any, canonical: string}} the parsed object, and the text without the key
 * @throws {SyntaxError} it is no JSON object, or a key is there twice
 */
export function parseCanonical(text, without) {
  const value = JSON.parse(text); // from here on the syntax is known to be right
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new SyntaxError("not an object");
  let at = 0;

  function take() {
    TOKEN.lastIndex = at;
    const [, token] = TOKEN.exec(text);
    at = TOKEN.lastIndex;
    return token;
  }

  function canonical(token, depth) {
    if (depth > MAX_DEPTH) throw new SyntaxError("nested too deeply");
    if (token[0] === '"') return JSON.stringify(JSON.parse(token));
    if (token === "[") return list(depth);
    if (token === "{") return object(depth, null);
    return token;
  }

  function list(depth) {
    const items = [];
    for (let token = take(); token !== "]"; token = take()) if (token !== ",") items.push(canonical(token, depth + 1));
    return `[${items.join()}]`;
  }

  function object(depth, skipped) {
    const entries = new Map();
    for (let token = take(); token !== "}"; token = take()) {
      if (token === ",") continue;
      const key = JSON.parse(token);
      if (entries.has(key)) throw new SyntaxError(`the key ${key.slice(0, 40)} is there twice`);
      take(); // the colon
      entries.set(key, canonical(take(), depth + 1));
    }
    const keys = [...entries.keys()].filter((key) => key !== skipped).sort(byCodePoints);
    return `{${keys.map((key) => `${JSON.stringify(key)}:${entries.get(key)}`).join()}}`;
  }

  take();
  return { value, canonical: object(0, without) };
}

/** As other languages sort: JavaScript's own order is by UTF-16 units. */
function byCodePoints(a, b) {
  const x = Array.from(a, (c) => c.codePointAt(0)), y = Array.from(b, (c) => c.codePointAt(0));
  const i = x.findIndex((code, i) => code !== y[i]);
  return i < 0 ? x.length - y.length : x[i] - (y[i] ?? -1);
}
