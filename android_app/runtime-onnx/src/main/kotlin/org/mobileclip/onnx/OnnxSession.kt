package org.mobileclip.onnx

import ai.onnxruntime.NodeInfo
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.io.File
import java.nio.ByteBuffer
import org.mobileclip.core.Artifact
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.Session
import org.mobileclip.core.TensorInfo as Tensor
import org.mobileclip.core.reason

/**
 * A tower in ONNX Runtime.
 *
 * `ORT_DISABLE_TELEMETRY=1` must be in the environment before this class is touched: the library reads it when it is loaded.
 *
 * @param provider `cpu`, `xnnpack`, `nnapi` or `qnn`, where the library was built with it
 */
class OnnxSession private constructor(private val session: OrtSession, private val input: Tensor, private val output: Tensor) : Session {
    override val engine: String = "onnxruntime ${environment.version}"

    override fun run(input: ByteBuffer): FloatArray = try {
        tensor(input).use { value ->
            session.run(mapOf(this.input.name to value), setOf(output.name)).use { result ->
                val values = (result.get(0) as OnnxTensor).floatBuffer
                FloatArray(values.remaining()).also { values.get(it) }
            }
        }
    } catch (e: OrtException) {
        throw MobileClipException("ONNX Runtime failed (${e.reason()}); restart the app", e)
    }

    private fun tensor(value: ByteBuffer): OnnxTensor {
        val shape = LongArray(input.shape.size) { input.shape[it].toLong() }
        return when (input.dtype) {
            "float32" -> OnnxTensor.createTensor(environment, value.asFloatBuffer(), shape)
            "int32" -> OnnxTensor.createTensor(environment, value.asIntBuffer(), shape)
            "uint8" -> OnnxTensor.createTensor(environment, value, shape, OnnxJavaType.UINT8)
            else -> throw MobileClipException("inputs of ${input.dtype} are not known; update the app")
        }
    }

    override fun close() = session.close()

    companion object {
        private val TYPES = mapOf("float32" to OnnxJavaType.FLOAT, "int32" to OnnxJavaType.INT32, "uint8" to OnnxJavaType.UINT8)
        private val environment: OrtEnvironment by lazy { OrtEnvironment.getEnvironment() }

        fun load(folder: File, artifact: Artifact, provider: String = "cpu", threads: Int = 1): OnnxSession =
            load(File(folder, artifact.path), artifact.input, artifact.output, provider, threads)

        /** @throws MobileClipException the runtime refuses the file, or it is not what its description says */
        fun load(file: File, input: Tensor, output: Tensor, provider: String = "cpu", threads: Int = 1): OnnxSession {
            try {
                OrtSession.SessionOptions().use { options ->
                    options.setIntraOpNumThreads(threads)
                    options.setInterOpNumThreads(1)
                    add(provider, options, threads)
                    val session = environment.createSession(file.path, options)
                    if (!fits(session.inputInfo[input.name], input) || !fits(session.outputInfo[output.name], output)) {
                        session.close()
                        throw MobileClipException("${file.name} is not what its manifest says; export the bundle again")
                    }
                    return OnnxSession(session, input, output)
                }
            } catch (e: OrtException) {
                throw MobileClipException("ONNX Runtime refuses ${file.name} (${e.reason()}); export the bundle again", e)
            }
        }

        /** Whether a tensor of the graph is what the manifest says; a size may be left open. */
        private fun fits(node: NodeInfo?, wanted: Tensor): Boolean {
            val given = node?.info as? TensorInfo ?: return false
            return given.type == TYPES[wanted.dtype] && given.shape.size == wanted.shape.size && given.shape.indices.all { given.shape[it] in setOf(-1L, wanted.shape[it].toLong()) }
        }

        private fun add(provider: String, options: OrtSession.SessionOptions, threads: Int) = try {
            when (provider) {
                "cpu" -> Unit
                "xnnpack" -> options.addXnnpack(mapOf("intra_op_num_threads" to threads.toString()))
                "nnapi" -> options.addNnapi()
                "qnn" -> options.addQnn(mapOf("backend_path" to "libQnnHtp.so"))
                else -> throw MobileClipException("unknown provider $provider; cpu, xnnpack, nnapi and qnn are known")
            }
        } catch (e: OrtException) {
            throw MobileClipException("this ONNX Runtime was built without $provider; choose another provider", e)
        }
    }
}
