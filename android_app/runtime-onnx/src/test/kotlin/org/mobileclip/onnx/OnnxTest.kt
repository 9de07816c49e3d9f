package org.mobileclip.onnx

import java.io.File
import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonPrimitive
import org.mobileclip.core.Bundle
import org.mobileclip.core.Encoder
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.Picture
import org.mobileclip.core.SafeTensors
import org.mobileclip.core.Target
import org.mobileclip.core.Tower

/** The exported model in ONNX Runtime; `-Dbundle=FOLDER` is an fp32 bundle of `mobileclip_nano`. */
class OnnxTest {
    private val folder = File(System.getProperty("bundle"))
    private val kit = SafeTensors.open(File(System.getProperty("conformance"), "embeddings.safetensors"))

    private fun encoder(): Encoder = Bundle.open(folder, setOf(Target.ONNX)).let { bundle ->
        Encoder(bundle, Target.ONNX) { OnnxSession.load(bundle.folder, it) }
    }

    private fun rows(name: String): List<FloatArray> = kit[name].let { tensor ->
        tensor.floats().toList().chunked(tensor.shape[1]).map { it.toFloatArray() }
    }

    private fun furthest(a: FloatArray, b: FloatArray): Float = a.indices.maxOf { abs(a[it] - b[it]) }

    @Test
    fun captionsAreEmbeddedAsInPython() = encoder().use { encoder ->
        val captions = Json.parseToJsonElement(kit.metadata.getValue("captions")).jsonArray.map { it.jsonPrimitive.content }
        for ((caption, wanted) in captions.zip(rows("text"))) assertTrue(furthest(encoder.embed(caption), wanted) < 1e-5, caption)
    }

    @Test
    fun picturesAreEmbeddedAsInPython() = encoder().use { encoder ->
        rows("image").forEachIndexed { i, wanted ->
            val stored = kit["picture_$i"]
            assertTrue(furthest(encoder.embed(Picture(stored.shape[1], stored.shape[0], stored.bytes())), wanted) < 1e-5, "picture $i")
        }
    }

    @Test
    fun goldenInputsAreReproduced() = encoder().use { encoder ->
        val found = encoder.reproduces()
        assertEquals(2, found.size)
        assertTrue(found.values.all { it > 0.99999 }, "$found")
    }

    @Test
    fun aChangedFileIsNotOpened() {
        val copy = File.createTempFile("bundle", "").also { it.delete() }
        try {
            folder.copyRecursively(copy)
            File(copy, "text.onnx").appendBytes(byteArrayOf(0))
            val error = assertFailsWith<MobileClipException> { Bundle.open(copy, setOf(Target.ONNX)) }
            assertEquals("text.onnx is not what was exported (its sha256 differs); copy the bundle again", error.message)
        } finally {
            copy.deleteRecursively()
        }
    }

    @Test
    fun aBundleWithoutWhatIsNeededIsRefused() {
        val error = assertFailsWith<MobileClipException> { Bundle.open(folder, setOf(Target.COREML)) }
        assertEquals("the bundle has nothing for coreml; export it with: mobileclip export --target coreml", error.message)
    }

    @Test
    fun aModelThatIsNotWhatItsManifestSaysIsRefused() {
        val bundle = Bundle.open(folder, setOf(Target.ONNX))
        val (input, output) = bundle.manifest.artifact(Target.ONNX, Tower.TEXT)!!.let { it.input to it.output }
        OnnxSession.load(bundle.file("text.onnx"), input, output).close()
        for ((given, gives) in listOf(
            input.copy(dtype = "float32") to output, input.copy(shape = listOf(1, 76)) to output, input.copy(shape = listOf(77)) to output,
            input to output.copy(name = "other"), input to output.copy(dtype = "int32"), input to output.copy(shape = listOf(1, 3)),
        )) {
            val error = assertFailsWith<MobileClipException>("$given, $gives") { OnnxSession.load(bundle.file("text.onnx"), given, gives) }
            assertEquals("text.onnx is not what its manifest says; export the bundle again", error.message)
        }
    }

    @Test
    fun whatIsNoModelIsRefusedInOneLine() {
        val file = File.createTempFile("model", ".onnx").also { it.writeText("no model") }
        val artifact = Bundle.open(folder, setOf(Target.ONNX)).manifest.artifacts.first { it.target == Target.ONNX }
        val error = assertFailsWith<MobileClipException> { OnnxSession.load(file, artifact.input, artifact.output) }
        assertFalse('\n' in error.message!!)
    }
}
