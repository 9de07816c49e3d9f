/** What went wrong and what to do about it, in one line for a person. */
export class MobileClipError extends Error {
  name = "MobileClipError";
}

/** The first line of whatever was thrown that says anything, for a message. */
export function reason(e, most = 160) {
  return String(e?.message?.trim() || e).trim().split("\n", 1)[0].slice(0, most);
}
