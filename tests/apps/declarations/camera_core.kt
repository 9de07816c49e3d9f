/* Declarations of what the app uses of androidx.camera (CameraX), as activity.kt. */
package androidx.camera.core

import java.nio.ByteBuffer

class CameraSelector private constructor() {
    companion object {
        val DEFAULT_BACK_CAMERA: CameraSelector get() = throw NotImplementedError()
        val DEFAULT_FRONT_CAMERA: CameraSelector get() = throw NotImplementedError()
    }
}

interface ImageInfo {
    val rotationDegrees: Int
}

interface ImageProxy : AutoCloseable {
    interface PlaneProxy {
        val rowStride: Int
        val buffer: ByteBuffer
    }

    val planes: Array<PlaneProxy>
    val width: Int
    val height: Int
    val imageInfo: ImageInfo

    override fun close()
}

class ImageAnalysis private constructor() {
    fun interface Analyzer {
        fun analyze(image: ImageProxy)
    }

    companion object {
        const val STRATEGY_KEEP_ONLY_LATEST: Int = 0
        const val OUTPUT_IMAGE_FORMAT_RGBA_8888: Int = 2
    }
}
