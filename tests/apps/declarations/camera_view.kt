/* As camera_core.kt. */
package androidx.camera.view

import android.content.Context
import android.widget.FrameLayout
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.lifecycle.LifecycleOwner
import java.util.concurrent.Executor

abstract class CameraController {
    var cameraSelector: CameraSelector
        get() = throw NotImplementedError()
        set(_) = throw NotImplementedError()
    var imageAnalysisBackpressureStrategy: Int = 0
    var imageAnalysisOutputImageFormat: Int = 0

    fun setEnabledUseCases(enabledUseCases: Int): Unit = throw NotImplementedError()

    fun setImageAnalysisAnalyzer(executor: Executor, analyzer: ImageAnalysis.Analyzer): Unit = throw NotImplementedError()

    fun clearImageAnalysisAnalyzer(): Unit = throw NotImplementedError()

    companion object {
        const val IMAGE_ANALYSIS: Int = 2
    }
}

class LifecycleCameraController(context: Context) : CameraController() {
    fun bindToLifecycle(lifecycleOwner: LifecycleOwner): Unit = throw NotImplementedError()

    fun unbind(): Unit = throw NotImplementedError()
}

class PreviewView(context: Context) : FrameLayout(context) {
    var controller: CameraController? = null
}
