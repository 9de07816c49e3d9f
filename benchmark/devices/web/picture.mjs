// Picture files to pixels by the browser's own decoder, which turns them upright.

import { Picture } from "./core/preprocess.mjs";

/** Phones limit a canvas to fewer pixels than their cameras have. */
const STRIP_PIXELS = 1 << 22;

/**
 * The pixels of a picture file as they are stored: no colour profile is applied, and what lies below alpha stays, as in the models' training.
 *
 * @param {Blob} file
 * @returns {Promise<{picture: Picture, blackened: boolean}>} whether what is transparent has become black, where the browser has no other way
 */
export async function decode(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" }).catch(() => null);
  if (!bitmap) throw new Error("this browser cannot read that file as a picture; choose another one");
  try {
    const { width, height } = bitmap, rgb = new Uint8Array(3 * width * height);
    if (drawn(bitmap, rgb)) return { picture: new Picture(width, height, rgb), blackened: false };
    return { picture: new Picture(width, height, rgb), blackened: !belowAlpha(bitmap, rgb) };
  } finally {
    bitmap.close();
  }
}

/** Read a picture from a canvas, strip by strip; false if it is transparent somewhere, which a canvas keeps as black. */
function drawn(bitmap, rgb) {
  const { width, height } = bitmap, rows = Math.max(1, Math.min(height, Math.floor(STRIP_PIXELS / width))), context = contextOf(width, rows);
  let opaque = true;
  for (let top = 0; top < height; top += rows) {
    context.clearRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, Math.min(rows, height - top));
    opaque = withoutAlpha(data, rgb, 3 * top * width) && opaque;
  }
  return opaque;
}

/** Read a picture from a texture, which leaves colours below alpha alone; false if the browser has none of that size. */
function belowAlpha(bitmap, rgb) {
  const { width, height } = bitmap, gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return false;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const data = new Uint8Array(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  const done = gl.getError() === gl.NO_ERROR;
  gl.getExtension("WEBGL_lose_context")?.loseContext(); // browsers allow a few contexts only
  if (done) withoutAlpha(data, rgb, 0);
  return done;
}

/** Copy red, green and blue; whether all of it is opaque. */
function withoutAlpha(data, rgb, to) {
  let opaque = true;
  for (let i = 0; i < data.length; i += 4) {
    rgb[to++] = data[i];
    rgb[to++] = data[i + 1];
    rgb[to++] = data[i + 2];
    opaque &&= data[i + 3] === 255;
  }
  return opaque;
}

/** Whether a page reads the pixels that it has drawn: some browsers change them, against those who would recognise the device by them. */
export function readsTruly() {
  const side = 16, context = contextOf(side, side), drawn = context.createImageData(side, side);
  for (let i = 0; i < drawn.data.length; i++) drawn.data[i] = i % 4 === 3 ? 255 : (37 * i) % 256;
  context.putImageData(drawn, 0, 0);
  return context.getImageData(0, 0, side, side).data.every((value, i) => value === drawn.data[i]);
}

function contextOf(width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("this browser gives no memory for a picture of that size; choose a smaller one");
  return context;
}
