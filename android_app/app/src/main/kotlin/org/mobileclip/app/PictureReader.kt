package org.mobileclip.app

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.ColorSpace
import android.graphics.ImageDecoder
import android.graphics.Matrix
import android.media.ExifInterface
import android.net.Uri
import android.os.Build
import java.io.IOException
import java.io.InputStream
import org.mobileclip.core.Picture
import org.mobileclip.core.reason
import org.mobileclip.core.sampleSize

/** Reads pictures upright, in sRGB, and no larger than needed. */
class PictureReader(private val resolver: ContentResolver) {
    /** @throws IOException it is damaged, gone, or of a kind that the phone cannot read */
    fun picture(place: Uri): Picture = bitmap(place, LEAST_SIDE).let(::pictureOf)

    /**
     * A bitmap whose short side has at least `least` pixels, if the picture has them.
     *
     * @throws IOException as above
     */
    fun bitmap(place: Uri, least: Int): Bitmap = try {
        if (Build.VERSION.SDK_INT >= 28) {
            ImageDecoder.decodeBitmap(ImageDecoder.createSource(resolver, place)) { decoder, info, _ ->
                decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // its pixels are read
                decoder.setTargetColorSpace(ColorSpace.get(ColorSpace.Named.SRGB))
                decoder.setTargetSampleSize(sampleSize(info.size.width, info.size.height, least))
            }
        } else {
            older(place, least)
        }
    } catch (e: RuntimeException) { // the permission was taken back meanwhile, or a decoder or another app stumbled over it
        throw IOException(e.reason(), e)
    }

    /** Android 8, which turns nothing by itself. */
    private fun older(place: Uri, least: Int): Bitmap {
        val options = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        open(place).use { BitmapFactory.decodeStream(it, null, options) }
        options.inSampleSize = sampleSize(options.outWidth, options.outHeight, least)
        options.inJustDecodeBounds = false
        val bitmap = open(place).use { BitmapFactory.decodeStream(it, null, options) } ?: throw IOException("it is no picture")
        val orientation = open(place).use { ExifInterface(it).getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL) }
        return Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, upright(orientation), true)
    }

    private fun upright(orientation: Int) = Matrix().apply {
        when (orientation) {
            ExifInterface.ORIENTATION_ROTATE_90, ExifInterface.ORIENTATION_TRANSPOSE -> postRotate(90f)
            ExifInterface.ORIENTATION_ROTATE_180, ExifInterface.ORIENTATION_FLIP_VERTICAL -> postRotate(180f)
            ExifInterface.ORIENTATION_ROTATE_270, ExifInterface.ORIENTATION_TRANSVERSE -> postRotate(270f)
        }
        if (orientation in MIRRORED) postScale(-1f, 1f)
    }

    private fun open(place: Uri): InputStream = resolver.openInputStream(place) ?: throw IOException("it cannot be opened")

    companion object {
        /** Twice what the largest models take: the model's own resize does the rest. */
        private const val LEAST_SIDE = 768
        private val MIRRORED = setOf(
            ExifInterface.ORIENTATION_FLIP_HORIZONTAL, ExifInterface.ORIENTATION_FLIP_VERTICAL,
            ExifInterface.ORIENTATION_TRANSPOSE, ExifInterface.ORIENTATION_TRANSVERSE,
        )

        fun pictureOf(bitmap: Bitmap): Picture {
            val argb = IntArray(bitmap.width * bitmap.height)
            bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
            return Picture.ofArgb(bitmap.width, bitmap.height, argb)
        }
    }
}
