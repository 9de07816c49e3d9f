package org.mobileclip.executorch

import java.io.File
import java.nio.ByteBuffer
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.Session
import org.mobileclip.core.TensorInfo
import org.mobileclip.core.reason
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** A tower in ExecuTorch, with the XNNPACK that its library holds. */
class ExecuTorchSession private constructor(private val module: Module, private val input: TensorInfo) : Session {
    /** The library does not tell its version; which delegates it used is what matters. */
    override val engine: String = "executorch (${module.getMethodMetadata(METHOD).backends.joinToString().ifEmpty { "portable" }})"
    private val shape = LongArray(input.shape.size) { input.shape[it].toLong() }

    override fun run(input: ByteBuffer): FloatArray = try {
        module.execute(METHOD, EValue.from(tensor(input)))[0].toTensor().dataAsFloatArray
    } catch (e: RuntimeException) { // ExecutorchRuntimeException is one; its methods also throw plain ones
        throw MobileClipException("ExecuTorch failed (${e.reason()}); restart the app", e)
    }

    private fun tensor(value: ByteBuffer): Tensor = when (input.dtype) {
        "float32" -> Tensor.fromBlob(value.asFloatBuffer(), shape)
        "int32" -> Tensor.fromBlob(value.asIntBuffer(), shape)
        "uint8" -> Tensor.fromBlobUnsigned(value, shape)
        else -> throw MobileClipException("inputs of ${input.dtype} are not known; update the app")
    }

    override fun close() = module.destroy()

    companion object {
        private const val METHOD = "forward"

        /**
         * @param threads of XNNPACK's pool
         * @throws MobileClipException the runtime refuses the file
         */
        fun load(file: File, input: TensorInfo, provider: String, threads: Int): ExecuTorchSession {
            if (provider != "xnnpack") throw MobileClipException("$provider is no backend of this app's ExecuTorch; export the bundle with --backend xnnpack")
            try {
                val module = Module.load(file.path, Module.LOAD_MODE_MMAP, threads)
                val code = module.loadMethod(METHOD) // now and not in the first run, so that it counts as loading
                if (code == 0) return ExecuTorchSession(module, input)
                module.destroy()
                throw MobileClipException("ExecuTorch refuses ${file.name} (error 0x${code.toString(16)}); export the bundle again")
            } catch (e: RuntimeException) {
                throw MobileClipException("ExecuTorch refuses ${file.name} (${e.reason()}); export the bundle again", e)
            }
        }
    }
}
