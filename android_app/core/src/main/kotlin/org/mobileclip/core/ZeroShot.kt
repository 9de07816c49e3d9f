package org.mobileclip.core

import kotlin.math.exp
import kotlin.math.max
import kotlin.math.sqrt

/** A label with what the model thinks of it. */
data class Prediction(val label: Int, val probability: Double, val cosine: Double)

/** Zero-shot classification (Radford et al. 2021, arXiv 2103.00020, section 3.1): embeddings of captions are the classes. */
object ZeroShot {
    /** The captions of a label: `{}` of each template stands for it. */
    fun captions(label: String, templates: List<String>): List<String> = templates.map { it.replace("{}", label) }

    /** The embedding of a class: the mean of its captions' normalised embeddings, normalised. */
    fun classEmbedding(captions: List<FloatArray>): FloatArray {
        require(captions.isNotEmpty()) { "a class needs a caption" }
        val mean = DoubleArray(captions[0].size)
        for (caption in captions) for (i in mean.indices) mean[i] += caption[i] / captions.size.toDouble()
        val norm = max(sqrt(mean.sumOf { it * it }), TINY)
        return FloatArray(mean.size) { (mean[it] / norm).toFloat() }
    }

    /** An embedding of unit length; zeros stay. */
    fun normalized(embedding: FloatArray): FloatArray {
        val norm = max(sqrt(embedding.sumOf { it.toDouble() * it }), TINY)
        return FloatArray(embedding.size) { (embedding[it] / norm).toFloat() }
    }

    /**
     * The most probable labels of a picture, best first; equal ones in the labels' order.
     *
     * @param image normalised embedding
     * @param classes normalised embedding of each label
     * @param logitScale factor of the cosines before the softmax
     */
    fun rank(image: FloatArray, classes: List<FloatArray>, logitScale: Double, top: Int): List<Prediction> {
        if (classes.isEmpty()) return emptyList()
        val cosines = DoubleArray(classes.size) { dot(classes[it], image) }
        val largest = cosines.max()
        val odds = DoubleArray(cosines.size) { exp(logitScale * (cosines[it] - largest)) }
        val sum = odds.sum()
        return cosines.indices.sortedByDescending { cosines[it] }.take(top).map { Prediction(it, odds[it] / sum, cosines[it]) }
    }

    internal fun dot(a: FloatArray, b: FloatArray): Double {
        require(a.size == b.size) { "embeddings of ${a.size} and ${b.size} values cannot be compared" }
        var sum = 0.0
        for (i in a.indices) sum += a[i].toDouble() * b[i]
        return sum
    }

    private const val TINY = 1e-12
}
