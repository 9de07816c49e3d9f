package org.mobileclip.core

import java.nio.ByteBuffer
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import kotlin.math.round

/** An RGB picture, 8 bits a channel, rows from the top, three bytes a pixel. */
class Picture(val width: Int, val height: Int, val rgb: ByteArray) {
    init {
        require(width > 0 && height > 0 && rgb.size == 3 * width * height) { "a picture of $width x $height needs ${3L * width * height} bytes, not ${rgb.size}" }
    }

    /** The picture as a viewer shows it, by its EXIF orientation (1 to 8; others need nothing). */
    fun upright(orientation: Int): Picture {
        if (orientation !in 2..8) return this
        val turned = orientation >= 5
        val w = if (turned) height else width
        val h = if (turned) width else height
        val last = width * height - 1
        // where the first pixel comes from, and how far from it lie the next one and that of the next row
        val (first, across, down) = when (orientation) {
            2 -> Triple(width - 1, -1, width)
            3 -> Triple(last, -1, -width)
            4 -> Triple(last - width + 1, 1, -width)
            5 -> Triple(0, width, 1)
            6 -> Triple(last - width + 1, -width, 1)
            7 -> Triple(last, -width, -1)
            else -> Triple(width - 1, width, -1)
        }
        val out = ByteArray(rgb.size)
        var to = 0
        for (y in 0 until h) {
            var from = 3 * (first + y * down)
            for (x in 0 until w) {
                for (channel in 0..2) out[to++] = rgb[from + channel]
                from += 3 * across
            }
        }
        return Picture(w, h, out)
    }

    companion object {
        /** From Android's packed colours, 0xAARRGGBB; alpha is dropped, as in the models' training. */
        fun ofArgb(width: Int, height: Int, argb: IntArray): Picture {
            val rgb = ByteArray(3 * width * height)
            for (i in 0 until width * height) {
                rgb[3 * i] = (argb[i] shr 16).toByte()
                rgb[3 * i + 1] = (argb[i] shr 8).toByte()
                rgb[3 * i + 2] = argb[i].toByte()
            }
            return Picture(width, height, rgb)
        }

        /**
         * From a camera's frame.
         *
         * @param rgba rows of red, green, blue and alpha, a byte each
         * @param rowStride bytes from a row to the next; at least 4 * width
         * @param clockwise how many degrees it must be turned to stand upright: 0, 90, 180 or 270
         */
        fun ofRgba(width: Int, height: Int, rgba: ByteBuffer, rowStride: Int, clockwise: Int): Picture {
            val rgb = ByteArray(3 * width * height)
            val row = ByteArray(4 * width)
            for (y in 0 until height) {
                rgba.position(y * rowStride)
                rgba.get(row)
                for (x in 0 until width) row.copyInto(rgb, 3 * (y * width + x), 4 * x, 4 * x + 3)
            }
            return Picture(width, height, rgb).upright(mapOf(90 to 6, 180 to 3, 270 to 8)[clockwise] ?: 1)
        }
    }
}

/**
 * A picture as the image tower takes it. The numbers are Pillow's, whose resize the models were trained with: two passes with an
 * anti-aliased filter, 8 bits in between, weights in fixed point.
 */
class Preprocessor(private val info: PreprocessInfo) {
    /** (R, R, 3) RGB: resized and cropped. */
    fun pixels(picture: Picture): ByteArray {
        val size = info.resolution
        if (info.resize == Resize.SQUASH) return resize(picture, size, size).rgb
        val wide = picture.width >= picture.height
        val long = (size.toLong() * max(picture.width, picture.height) / min(picture.width, picture.height)).toInt()
        val offset = round((long - size) / 2.0).toInt() // half to even, as torchvision does
        // only what the crop keeps is computed: rows and columns do not depend on their neighbours
        return if (wide) resize(picture, long, size, offset, 0, size, size).rgb else resize(picture, size, long, 0, offset, size, size).rgb
    }

    /** (3, R, R): `pixels` in [0, 1], minus mean, over standard deviation. */
    fun tensor(picture: Picture): FloatArray {
        val pixels = pixels(picture)
        val area = info.resolution * info.resolution
        return FloatArray(3 * area) { i ->
            val channel = i / area
            ((pixels[3 * (i % area) + channel].toInt() and 0xFF) / 255f - info.mean[channel]) / info.std[channel]
        }
    }

    /** Resize to `width` x `height` and keep the part of it at `left`, `top`. */
    private fun resize(
        picture: Picture, width: Int, height: Int, left: Int = 0, top: Int = 0, keptWidth: Int = width, keptHeight: Int = height,
    ): Picture {
        val columns = if (width == picture.width) null else Weights(picture.width, width, left, keptWidth, info.interpolation)
        val rows = if (height == picture.height) null else Weights(picture.height, height, top, keptHeight, info.interpolation)
        val firstRow = rows?.first ?: top
        val lastRow = rows?.last ?: (top + keptHeight)
        // columns first, of the rows alone that the second pass needs
        val narrow = ByteArray(3 * keptWidth * (lastRow - firstRow))
        for (y in firstRow until lastRow) {
            for (x in 0 until keptWidth) {
                val to = 3 * ((y - firstRow) * keptWidth + x)
                if (columns == null) {
                    val from = 3 * (y * picture.width + left + x)
                    picture.rgb.copyInto(narrow, to, from, from + 3)
                } else {
                    columns.apply(x, picture.rgb, 3 * y * picture.width, 3, narrow, to)
                }
            }
        }
        if (rows == null) return Picture(keptWidth, keptHeight, narrow)
        val out = ByteArray(3 * keptWidth * keptHeight)
        for (y in 0 until keptHeight) {
            for (x in 0 until keptWidth) {
                rows.apply(y, narrow, 3 * (x - firstRow * keptWidth), 3 * keptWidth, out, 3 * (y * keptWidth + x))
            }
        }
        return Picture(keptWidth, keptHeight, out)
    }

    /** Of each place from `offset` on, which source values it is made of and with what weights, in fixed point. */
    private class Weights(from: Int, to: Int, offset: Int, count: Int, interpolation: Interpolation) {
        private val starts = IntArray(count)
        private val values: Array<IntArray>

        init {
            val scale = from.toDouble() / to
            val stretch = max(scale, 1.0)
            val support = stretch * if (interpolation == Interpolation.BICUBIC) 2.0 else 1.0
            values = Array(count) { i ->
                val center = (offset + i + 0.5) * scale
                val first = max((center - support + 0.5).toInt(), 0)
                val last = min((center + support + 0.5).toInt(), from)
                starts[i] = first
                val raw = DoubleArray(last - first) { filter((it + first - center + 0.5) / stretch, interpolation) }
                val sum = raw.sum()
                IntArray(raw.size) { fixed(if (sum == 0.0) raw[it] else raw[it] / sum) }
            }
        }

        val first: Int get() = starts.first()
        val last: Int get() = starts.last() + values.last().size

        /** One pixel of three channels; `base` is where source value 0 lies, `step` how far apart they are. */
        fun apply(place: Int, source: ByteArray, base: Int, step: Int, target: ByteArray, to: Int) {
            val weights = values[place]
            var red = HALF
            var green = HALF
            var blue = HALF
            var at = base + starts[place] * step
            for (weight in weights) {
                red += (source[at].toInt() and 0xFF) * weight
                green += (source[at + 1].toInt() and 0xFF) * weight
                blue += (source[at + 2].toInt() and 0xFF) * weight
                at += step
            }
            target[to] = level(red)
            target[to + 1] = level(green)
            target[to + 2] = level(blue)
        }

        private fun level(sum: Int): Byte = (sum shr BITS).coerceIn(0, 255).toByte()

        private fun fixed(weight: Double): Int = if (weight < 0) ceil(weight * ONE - 0.5).toInt() else floor(weight * ONE + 0.5).toInt()

        private fun filter(distance: Double, interpolation: Interpolation): Double {
            val x = abs(distance)
            return when {
                interpolation == Interpolation.BILINEAR -> if (x < 1) 1 - x else 0.0
                x < 1 -> ((SHARP + 2) * x - (SHARP + 3)) * x * x + 1
                x < 2 -> (((x - 5) * x + 8) * x - 4) * SHARP
                else -> 0.0
            }
        }
    }

    private companion object {
        /** Of the fraction; 8 bits of value and two of overshoot fit beside it. */
        const val BITS = 32 - 8 - 2
        const val ONE = 1 shl BITS
        const val HALF = 1 shl (BITS - 1)
        const val SHARP = -0.5
    }
}
