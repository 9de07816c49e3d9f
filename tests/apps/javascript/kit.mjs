// Where the tests find the conformance kit and a tokenizer file, and the core that they test.

import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const folder = process.env.MOBILECLIP_CONFORMANCE ?? path.join(root, "conformance");

export const bytes = (name) => new Uint8Array(readFileSync(path.join(folder, name)));
export const text = (name) => readFileSync(path.join(folder, name), "utf8");
export const json = (name) => JSON.parse(text(name));

/** The tokenizer file of a bundle, in Python by Tokenizer.clip().save(). */
export const tokenizerFile = () => readFileSync(process.env.MOBILECLIP_TOKENIZER, "utf8");

/** A module of the core. */
export const core = (name) => import(pathToFileURL(path.join(root, "benchmark/devices/web/core", `${name}.mjs`)).href);
