package org.mobileclip.core

import java.io.File
import java.io.IOException
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

class PhotoIndexerTest {
    private val file = File.createTempFile("index", ".mcix").also { it.delete() }

    private class Library(var shown: List<Photo>, override var complete: Boolean = true) : PhotoLibrary {
        val read = ArrayList<Long>()
        val damaged = HashSet<Long>()

        override fun photos() = shown

        override fun picture(id: Long): Picture {
            read.add(id)
            if (id in damaged) throw IOException("no picture")
            if (id == HUGE) throw OutOfMemoryError()
            return Picture(1, 1, byteArrayOf(id.toByte(), 0, 0))
        }
    }

    private val library = Library((1L..10).map { Photo(it, 100) })

    private fun open() = EmbeddingIndex.open(file, "a".repeat(64), 2)

    private fun run(index: EmbeddingIndex, goOn: () -> Boolean = { true }) =
        PhotoIndexer(index, library) { floatArrayOf(it.rgb[0] / 127f, 1f) }.run(goOn) {}

    @AfterTest
    fun remove() {
        file.delete()
    }

    @Test
    fun itGoesOnWhereItWas() {
        var left = 4
        open().use { assertEquals(IndexProgress(4, 10, 0), run(it) { left-- > 0 }) }
        open().use { assertEquals(IndexProgress(10, 10, 0), run(it)) }
        assertEquals((1L..10).toList(), library.read)
    }

    @Test
    fun editedPhotosAreReadAgainAndThoseThatAreGoneForgotten() = open().use { index ->
        run(index)
        library.read.clear()
        library.shown = listOf(Photo(1, 100), Photo(2, 200), Photo(11, 100))
        assertEquals(IndexProgress(3, 3, 0), run(index))
        assertEquals(listOf(2L, 11L), library.read)
        assertEquals(setOf(Photo(1, 100), Photo(2, 200), Photo(11, 100)), index.ids.map(Photo::ofKey).toSet())
    }

    @Test
    fun photosThatMayNotBeSeenForNowAreKept() = open().use { index ->
        run(index)
        library.complete = false
        library.shown = listOf(Photo(3, 100))
        run(index)
        assertEquals(10, index.size)
        val seen = library.shown.map { it.key }.toSet()
        assertEquals(listOf(3L), index.search(floatArrayOf(1f, 0f), 5) { it in seen }.map { Photo.ofKey(it.id).id })
    }

    @Test
    fun damagedAndHugePhotosAreLeftOutAndTriedAgain() = open().use { index ->
        library.shown = listOf(Photo(1, 1), Photo(2, 1), Photo(HUGE, 1))
        library.damaged += 1
        assertEquals(IndexProgress(3, 3, unreadable = 2), run(index))
        library.damaged.clear()
        assertEquals(IndexProgress(3, 3, unreadable = 1), run(index))
    }

    @Test
    fun aModelThatFailsEndsItWithItsMessage() = open().use { index ->
        val indexer = PhotoIndexer(index, library) { throw MobileClipException("the model fails") }
        assertEquals("the model fails", assertFailsWith<MobileClipException> { indexer.run({ true }) {} }.message)
    }

    @Test
    fun aHundredThousandPhotosGoOnAtOnce() {
        library.shown = (0L until 100_000).map { Photo(it, it % 7) }
        open().use { index -> assertTrue(run(index).finished) }
        library.read.clear()
        open().use { index ->
            val began = System.nanoTime()
            assertEquals(100_000, run(index).done)
            assertTrue(System.nanoTime() - began < 5e9, "nothing is read again")
            assertEquals(0, library.read.size)
        }
    }

    private companion object {
        const val HUGE = 999_999L
    }
}
