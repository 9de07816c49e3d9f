package org.mobileclip.core

import java.io.IOException

/**
 * A photo of the phone's library.
 *
 * @property id the system's number for it
 * @property modifiedSeconds since 1970; an edited photo has another one
 */
data class Photo(val id: Long, val modifiedSeconds: Long) {
    /** What it has in the index: a photo that was edited is another one. */
    val key: Long get() = (id shl 32) or (modifiedSeconds and 0xFFFFFFFFL)

    companion object {
        const val MAX_ID: Long = Int.MAX_VALUE.toLong()

        fun ofKey(key: Long): Photo = Photo(key ushr 32, key and 0xFFFFFFFFL)
    }
}

/** The photos that the app may see. */
interface PhotoLibrary {
    /** Whether they are all photos of the phone; if not, those that are missing may come back. */
    val complete: Boolean

    /**
     * All of them, newest first.
     *
     * @throws MobileClipException they may not be seen
     */
    fun photos(): List<Photo>

    /**
     * A photo, upright, no smaller than the model needs.
     *
     * @throws IOException it is damaged, gone, or of a kind that the phone cannot read
     */
    fun picture(id: Long): Picture
}

/** By which power of two a picture may be made smaller while it is read, for its short side to keep `least` pixels. */
fun sampleSize(width: Int, height: Int, least: Int): Int {
    var size = 1
    while (minOf(width, height) / (2 * size) >= least) size *= 2
    return size
}

/** @property unreadable photos that were left out; they are tried again the next time */
data class IndexProgress(val done: Int, val total: Int, val unreadable: Int) {
    val finished: Boolean get() = done >= total
}

/**
 * Brings an index up to date with the library: adds what is new or was edited, forgets what is gone. What is in the index already costs
 * nothing, so that it goes on where it was when the app was closed or killed.
 */
class PhotoIndexer(private val index: EmbeddingIndex, private val library: PhotoLibrary, private val embed: (Picture) -> FloatArray) {
    /**
     * @param goOn asked before each photo
     * @param progress told after each photo, and at the beginning
     * @throws MobileClipException the library may not be seen, the model fails, or storage is full; what is done stays
     */
    fun run(goOn: () -> Boolean, progress: (IndexProgress) -> Unit): IndexProgress {
        val photos = library.photos().filter { it.id in 0..Photo.MAX_ID }
        if (library.complete) forget(photos)
        var now = IndexProgress(photos.count { it.key in index.ids }, photos.size, 0)
        progress(now)
        for (photo in photos) {
            if (photo.key in index.ids) continue
            if (!goOn()) return now
            val picture = read(photo.id)
            if (picture != null) index.put(photo.key, embed(picture))
            now = now.copy(done = now.done + 1, unreadable = now.unreadable + if (picture == null) 1 else 0)
            progress(now)
        }
        return now
    }

    private fun read(id: Long): Picture? = try {
        library.picture(id)
    } catch (_: IOException) {
        null
    } catch (_: OutOfMemoryError) { // a single huge picture must not end the work
        null
    }

    private fun forget(photos: List<Photo>) {
        val there = photos.mapTo(HashSet(2 * photos.size)) { it.key }
        val gone = index.ids.filter { it !in there }
        gone.forEach(index::remove)
        if (gone.isNotEmpty()) index.compact()
    }
}
