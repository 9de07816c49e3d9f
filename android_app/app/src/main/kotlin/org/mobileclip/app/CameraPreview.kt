package org.mobileclip.app

import android.content.Context
import android.content.pm.PackageManager
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.ImageProxy
import androidx.camera.view.CameraController
import androidx.camera.view.LifecycleCameraController
import androidx.camera.view.PreviewView
import androidx.compose.runtime.Composable
import androidx.compose.runtime.DisposableEffect
import androidx.compose.runtime.remember
import androidx.compose.ui.Modifier
import androidx.compose.ui.viewinterop.AndroidView
import androidx.lifecycle.LifecycleOwner
import java.util.concurrent.Executors
import org.mobileclip.core.Picture

/**
 * What the camera sees, with its frames for a model.
 *
 * @param onFrame gets a frame on a thread of its own; those that come while it works are dropped
 * @param onFailure there is no camera that works
 */
@Composable
fun CameraPreview(context: Context, owner: LifecycleOwner, onFrame: (Picture) -> Unit, onFailure: () -> Unit, modifier: Modifier) {
    val controller = remember(owner) { LifecycleCameraController(context) }
    DisposableEffect(controller) {
        val frames = Executors.newSingleThreadExecutor()
        controller.setEnabledUseCases(CameraController.IMAGE_ANALYSIS)
        controller.cameraSelector = selector(context)
        controller.imageAnalysisBackpressureStrategy = ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST
        controller.imageAnalysisOutputImageFormat = ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888
        controller.setImageAnalysisAnalyzer(frames) { frame -> frame.use { onFrame(pictureOf(it)) } }
        try {
            controller.bindToLifecycle(owner)
        } catch (_: IllegalStateException) {
            onFailure()
        } catch (_: IllegalArgumentException) {
            onFailure()
        }
        onDispose {
            controller.clearImageAnalysisAnalyzer()
            controller.unbind()
            frames.shutdown()
        }
    }
    AndroidView(factory = { PreviewView(it).also { view -> view.controller = controller } }, modifier = modifier)
}

/** The one at the back where there is one. */
private fun selector(context: Context): CameraSelector =
    if (context.packageManager.hasSystemFeature(PackageManager.FEATURE_CAMERA)) CameraSelector.DEFAULT_BACK_CAMERA else CameraSelector.DEFAULT_FRONT_CAMERA

private fun pictureOf(frame: ImageProxy): Picture {
    val plane = frame.planes[0]
    return Picture.ofRgba(frame.width, frame.height, plane.buffer, plane.rowStride, frame.imageInfo.rotationDegrees)
}
