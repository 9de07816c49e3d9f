package org.mobileclip.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.sqrt

/**
 * What this phone makes of a bundle's golden inputs.
 *
 * @property cosines of each tower the smallest cosine with the exported model's own embeddings
 * @property bar what the toolkit asks of an export of this precision
 */
data class Golden(val cosines: Map<Tower, Double>, val bar: Double) {
    val reproduced: Boolean get() = cosines.isNotEmpty() && cosines.values.all { it >= bar }
}

/** The two towers of a bundle: pictures and captions to embeddings of unit length. */
class Encoder(private val bundle: Bundle, private val target: Target, private val load: (Artifact) -> Session) : AutoCloseable {
    private val manifest = bundle.manifest
    private val preprocessor = Preprocessor(manifest.preprocess)
    private val sessions = HashMap<Tower, Session>()

    val embeddingSpace: String get() = manifest.embeddingSpace
    val width: Int get() = manifest.embedDim

    fun embed(picture: Picture): FloatArray = if (manifest.preprocess.baked) {
        run(Tower.IMAGE, buffer(3 * manifest.preprocess.resolution * manifest.preprocess.resolution) { put(preprocessor.pixels(picture)) })
    } else {
        val tensor = preprocessor.tensor(picture)
        run(Tower.IMAGE, buffer(4 * tensor.size) { asFloatBuffer().put(tensor) })
    }

    fun embed(caption: String): FloatArray {
        val row = bundle.tokenizer.encode(caption)
        return run(Tower.TEXT, buffer(4 * row.size) { asIntBuffer().put(row) })
    }

    /** Zero-shot classes: one embedding a label. */
    fun classes(labels: List<String>, templates: List<String>): List<FloatArray> =
        labels.map { label -> ZeroShot.classEmbedding(ZeroShot.captions(label, templates).map(::embed)) }

    /** The labels of a picture, best first. */
    fun classify(picture: Picture, classes: List<FloatArray>, top: Int): List<Prediction> =
        ZeroShot.rank(embed(picture), classes, manifest.model.logitScale, top)

    /**
     * Whether this phone computes what the exported model did: the smallest cosine over the bundle's golden inputs.
     *
     * @return the tower with its smallest cosine
     */
    fun reproduces(): Map<Tower, Double> {
        val golden = SafeTensors.open(bundle.file(manifest.golden.path))
        return Tower.entries.filter { manifest.artifact(target, it) != null }.associateWith { tower ->
            val name = tower.name.lowercase()
            val inputs = golden["$name.input"]
            val outputs = golden["$name.embedding"]
            val rows = inputs.shape.firstOrNull() ?: 0
            val input = checkNotNull(manifest.artifact(target, tower)).input
            if (rows < 1 || inputs.dtype != DTYPES[input.dtype] || inputs.shape.drop(1) != input.shape.drop(1) || outputs.dtype != "F32" || outputs.shape != listOf(rows, width)) {
                throw MobileClipException("the golden inputs of the $name tower are not what it takes and gives; export the bundle again")
            }
            val wanted = outputs.floats()
            val rowBytes = inputs.data.remaining() / rows
            (0 until rows).minOf { i ->
                val part = inputs.data
                part.limit((i + 1) * rowBytes)
                part.position(i * rowBytes)
                val got = run(tower, buffer(rowBytes) { put(part) })
                ZeroShot.dot(got, ZeroShot.normalized(wanted.copyOfRange(i * width, (i + 1) * width)))
            }
        }
    }

    /** Run the bundle's golden inputs. */
    fun golden(): Golden = Golden(reproduces(), if (manifest.options.precision == "fp32") 0.99999 else 0.999)

    /** One input through a tower; a batch is filled with copies of it. */
    private fun run(tower: Tower, input: ByteBuffer): FloatArray {
        val artifact = manifest.artifact(target, tower)
            ?: throw MobileClipException("the bundle has no ${tower.name.lowercase()} tower for ${target.name.lowercase()}; export it with both")
        val session = sessions.getOrPut(tower) { load(artifact) }
        val batch = manifest.options.batch
        val value = if (batch == 1) input else buffer(batch * input.remaining()) { repeat(batch) { put(input.duplicate()) } }
        val embedding = session.run(value).copyOf(width)
        val norm = sqrt(embedding.sumOf { it.toDouble() * it })
        if (!norm.isFinite() || norm == 0.0) throw MobileClipException("the model gives no numbers on this phone; export the bundle in fp32")
        return ZeroShot.normalized(embedding)
    }

    private inline fun buffer(bytes: Int, fill: ByteBuffer.() -> Unit): ByteBuffer {
        val buffer = ByteBuffer.allocateDirect(bytes).order(ByteOrder.LITTLE_ENDIAN)
        buffer.fill()
        buffer.clear()
        return buffer
    }

    override fun close() = sessions.values.forEach { it.close() }

    private companion object {
        val DTYPES = mapOf("float32" to "F32", "int32" to "I32", "uint8" to "U8")
    }
}
