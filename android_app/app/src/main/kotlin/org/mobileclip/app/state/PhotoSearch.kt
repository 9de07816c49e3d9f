package org.mobileclip.app.state

import java.io.File
import java.io.IOException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import org.mobileclip.core.EmbeddingIndex
import org.mobileclip.core.Encoder
import org.mobileclip.core.IndexProgress
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.Photo
import org.mobileclip.core.PhotoAccess
import org.mobileclip.core.PhotoIndexer
import org.mobileclip.core.PhotoLibrary
import org.mobileclip.core.reason

/** @property score cosine of photo and query, -1 to 1 */
data class Found(val photo: Photo, val score: Float)

data class SearchState(
    val access: PhotoAccess = PhotoAccess.NONE,
    val indexing: Boolean = false,
    val progress: IndexProgress? = null,
    val query: String = "",
    /** Null before the first search. */
    val found: List<Found>? = null,
    val message: String? = null,
    /** The index cannot be opened; deleting it helps. */
    val damaged: Boolean = false,
)

/**
 * Finds photos by what they show. Each model has an index of its own, so that going back to an earlier one costs nothing.
 *
 * @param folder holds the indexes
 */
class PhotoSearch(private val model: ModelHolder, private val library: PhotoLibrary, private val folder: File, private val background: CoroutineScope) {
    private class Open(val space: String, val index: EmbeddingIndex)

    private val opening = Any()
    private var open: Open? = null
    private var indexing: Job? = null
    private var searching: Job? = null

    @Volatile
    private var goOn = false
    private val mutableState = MutableStateFlow(SearchState())

    val state: StateFlow<SearchState> get() = mutableState

    /** Told at every return to the app: the user may have changed it in the system's settings. */
    fun accessIs(access: PhotoAccess) {
        mutableState.update { if (access == it.access) it else it.copy(access = access, found = null, message = null) }
        if (access == PhotoAccess.NONE) pause()
    }

    /** The user was asked for photos; the system stops asking after a few refusals and answers by itself. */
    fun accessAnswered() {
        if (state.value.access != PhotoAccess.NONE) return
        mutableState.update { it.copy(message = "Your photos were not allowed. If you are not asked again, allow them in the system's settings.") }
    }

    /** Index what is not indexed yet. */
    @Synchronized
    fun start(): Job? {
        if (indexing?.isActive == true || state.value.access == PhotoAccess.NONE) return indexing
        goOn = true
        mutableState.update { it.copy(indexing = true, message = null, damaged = false) }
        return background.launch {
            val message = told {
                val space = model.use { it.embeddingSpace }
                val index = index()
                PhotoIndexer(index, library) { picture -> model.use { same(it, space).embed(picture) } }
                    .run({ goOn }) { progress -> mutableState.update { it.copy(progress = progress) } }
            }
            mutableState.update { it.copy(indexing = false, message = message ?: it.message) }
        }.also { indexing = it }
    }

    /** Delete an index that cannot be opened, and begin an empty one. */
    fun deleteIndex(): Job = background.launch {
        pause()
        indexing?.join()
        val message = told {
            val space = model.use { it.embeddingSpace }
            synchronized(opening) {
                open?.index?.close()
                open = null
                place(space).delete()
            }
        }
        mutableState.update { it.copy(progress = null, found = null, message = message, damaged = false) }
        start()?.join()
    }

    fun pause() {
        goOn = false
    }

    /** The phone is low on memory: indexing can wait. */
    fun trim() {
        if (!state.value.indexing) return
        pause()
        mutableState.update { it.copy(message = "Indexing was paused: the phone is low on memory. It goes on where it was.") }
    }

    fun search(query: String): Job {
        searching?.cancel()
        mutableState.update { it.copy(query = query, message = null) }
        return background.launch {
            var found: List<Found>? = null
            val message = told {
                if (query.isNotBlank()) {
                    val embedding = model.use { it.embed(query.trim()) }
                    val seen = if (library.complete) null else library.photos().mapTo(HashSet()) { it.key }
                    found = index().search(embedding, TOP) { seen == null || it in seen }.map { Found(Photo.ofKey(it.id), it.score) }
                }
            }
            mutableState.update { if (it.query == query) it.copy(found = found, message = message) else it } // a later one has overtaken it
        }.also { searching = it }
    }

    /** The model's index; `start`, which the screen calls, never waits for it. */
    private fun index(): EmbeddingIndex {
        val (space, width) = model.use { it.embeddingSpace to it.width }
        return synchronized(opening) {
            open?.let { if (it.space == space) return it.index }
            val index = try {
                EmbeddingIndex.open(place(space), space, width)
            } catch (e: MobileClipException) {
                mutableState.update { it.copy(damaged = true) }
                throw e
            }
            open?.index?.close()
            open = Open(space, index)
            index
        }
    }

    private fun place(space: String) = File(folder, "${space.take(16)}.mcix")

    private fun same(encoder: Encoder, space: String): Encoder {
        if (encoder.embeddingSpace != space) throw MobileClipException("the model was changed; start the indexing again")
        return encoder
    }

    private fun told(action: () -> Unit): String? = try {
        action()
        null
    } catch (e: MobileClipException) {
        e.message
    } catch (e: IOException) {
        "the index cannot be read (${e.reason()}); restart the app"
    }

    private companion object {
        const val TOP = 60
    }
}
