package org.mobileclip.app.state

import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.Picture
import org.mobileclip.core.Settings

/** A label with its probability, 0 to 1. */
data class Guess(val label: String, val probability: Double)

data class ClassifierState(val guesses: List<Guess> = emptyList(), val milliseconds: Double? = null, val message: String? = null)

/** Says which of the user's labels a picture shows. */
class Classifier(private val model: ModelHolder) {
    private class Classes(val key: Any, val embeddings: List<FloatArray>)

    private var classes: Classes? = null
    private val mutableState = MutableStateFlow(ClassifierState())

    val state: StateFlow<ClassifierState> get() = mutableState

    /** Classify a picture; blocks, so that a camera drops the frames that come meanwhile. */
    @Synchronized
    fun frame(picture: Picture) {
        if (model.state.value !is ModelState.Ready) {
            mutableState.value = ClassifierState() // the screen says why there is no model
            return
        }
        val settings = model.settings.value
        mutableState.value = try {
            model.use { encoder ->
                val labels = embeddings(settings, encoder.embeddingSpace) { encoder.classes(settings.labels, listOf(settings.template)) }
                val began = System.nanoTime()
                val found = encoder.classify(picture, labels, TOP)
                ClassifierState(found.map { Guess(settings.labels[it.label], it.probability) }, (System.nanoTime() - began) / 1e6)
            }
        } catch (e: MobileClipException) {
            ClassifierState(message = e.message)
        }
    }

    /** A picked photo cannot be read. */
    fun unreadable() {
        mutableState.value = ClassifierState(message = "The photo cannot be read; pick another one.")
    }

    /** The labels' embeddings, computed once for the same labels and model. */
    private fun embeddings(settings: Settings, space: String, compute: () -> List<FloatArray>): List<FloatArray> {
        val key = listOf(settings.labels, settings.template, settings.target, settings.provider, space)
        classes?.takeIf { it.key == key }?.let { return it.embeddings }
        return compute().also { classes = Classes(key, it) }
    }

    private companion object {
        const val TOP = 5
    }
}
