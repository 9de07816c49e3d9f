package org.mobileclip.phone

import android.system.Os
import java.io.File
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.Session
import org.mobileclip.core.Target
import org.mobileclip.core.TensorInfo
import org.mobileclip.executorch.ExecuTorchSession
import org.mobileclip.onnx.OnnxSession

/** The runtimes that are built into the app. */
object Runtimes {
    init {
        // ONNX Runtime reads it when its library is loaded: nothing else in the apps loads it
        Os.setenv("ORT_DISABLE_TELEMETRY", "1", true)
    }

    /**
     * Load a tower.
     *
     * @param provider one of `Settings.providers`
     * @throws MobileClipException the runtime refuses it
     */
    fun load(target: Target, file: File, input: TensorInfo, output: TensorInfo, provider: String, threads: Int): Session = when (target) {
        Target.ONNX -> OnnxSession.load(file, input, output, provider, threads)
        Target.EXECUTORCH -> ExecuTorchSession.load(file, input, provider, threads)
        Target.COREML -> throw MobileClipException("CoreML runs on a Mac or an iPhone only; export the bundle with --target onnx")
    }
}
