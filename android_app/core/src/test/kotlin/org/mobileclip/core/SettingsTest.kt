package org.mobileclip.core

import java.io.File
import java.nio.ByteBuffer
import java.util.concurrent.ConcurrentLinkedQueue
import kotlin.concurrent.thread
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class SettingsTest {
    private val file = File.createTempFile("settings", ".json").also { it.delete() }

    @Test
    fun whatWasSavedIsThereAgain() {
        val store = SettingsStore(file)
        assertEquals(Settings(), store.load())
        val mine = Settings(bundle = "nano", target = Target.EXECUTORCH, provider = "xnnpack", threads = 2, labels = listOf("a", "b"))
        store.save(mine)
        assertEquals(mine, store.load())
        file.writeText("{\"threads\": \"many\"")
        assertEquals(Settings(), store.load())
        store.save(mine.copy(provider = "nnapi"))
        assertEquals("xnnpack", store.load().provider, "a provider of another runtime")
        file.delete()
    }

    @Test
    fun whoeverSavesAtTheSameTimeDoesNotDisturb() {
        val store = SettingsStore(file)
        val failures = ConcurrentLinkedQueue<Throwable>()
        val savers = (1..8).map { n -> thread { repeat(50) { runCatching { store.save(Settings(threads = n)) }.onFailure(failures::add) } } }
        savers.forEach(Thread::join)
        assertEquals(null, failures.peek())
        assertEquals(true, store.load().threads in 1..8)
    }

    @Test
    fun thatTheAppEndedWhileItOpenedAModelIsKnownOnce() {
        val store = SettingsStore(file)
        store.opening { assertEquals(true, SettingsStore(file).endedWhileOpening()) } // as if it had been killed here
        store.opening {}
        assertFailsWith<MobileClipException> { store.opening { throw MobileClipException("refused") } }
        assertEquals(false, store.endedWhileOpening())
    }

    @Test
    fun fullStorageIsToldOf() {
        val blocked = File(File.createTempFile("blocked", ""), "settings.json")
        assertFailsWith<MobileClipException> { SettingsStore(blocked).save(Settings()) }
    }

    @Test
    fun labelsAreReadAsTheyAreTyped() {
        assertEquals(listOf("a cat", "a dog", "a bus"), Settings.labelsOf(" a cat, a dog\n\na cat\n a bus ,"))
        assertEquals(Settings.MAX_LABELS, Settings.labelsOf((1..2000).joinToString("\n")).size)
    }

    @Test
    fun accessToPhotosDependsOnTheVersionOfAndroid() {
        fun of(api: Int, vararg granted: String) = PhotoAccess.of(api) { name -> granted.any { name.endsWith(it) } }
        assertEquals(PhotoAccess.ALL, of(29, "READ_EXTERNAL_STORAGE"))
        assertEquals(PhotoAccess.NONE, of(33, "READ_EXTERNAL_STORAGE"))
        assertEquals(PhotoAccess.ALL, of(33, "READ_MEDIA_IMAGES"))
        assertEquals(PhotoAccess.SOME, of(34, "READ_MEDIA_VISUAL_USER_SELECTED"))
        assertEquals(PhotoAccess.ALL, of(35, "READ_MEDIA_IMAGES", "READ_MEDIA_VISUAL_USER_SELECTED"))
        assertEquals(PhotoAccess.NONE, of(33, "READ_MEDIA_VISUAL_USER_SELECTED"))
        assertEquals(listOf(1, 1, 2), listOf(26, 33, 34).map { PhotoAccess.permissions(it).size })
    }

    @Test
    fun cameraFramesAreTurnedUpright() {
        // two pixels beside each other, rows of 12 bytes with a gap
        val frame = ByteBuffer.wrap(byteArrayOf(1, 2, 3, -1, 4, 5, 6, -1, 0, 0, 0, 0))
        assertContentEquals(byteArrayOf(1, 2, 3, 4, 5, 6), Picture.ofRgba(2, 1, frame, 12, 0).rgb)
        val turned = Picture.ofRgba(2, 1, frame, 12, 90)
        assertEquals(1 to 2, turned.width to turned.height)
        assertContentEquals(byteArrayOf(1, 2, 3, 4, 5, 6), turned.rgb)
        assertContentEquals(byteArrayOf(4, 5, 6, 1, 2, 3), Picture.ofRgba(2, 1, frame, 12, 180).rgb)
    }

    @Test
    fun largePicturesAreReadSmaller() {
        assertEquals(listOf(1, 1, 2, 4), listOf(100 to 9000, 1535 to 2000, 1536 to 1536, 4000 to 3072).map { (w, h) -> sampleSize(w, h, 768) })
    }

    @Test
    fun androidsFactsAreTheProtocols() {
        assertEquals("unknown nominal fair fair serious critical critical critical unknown", (-1..7).joinToString(" ") { AndroidFacts.thermal(it).name.lowercase() })
        assertEquals(123_904L, AndroidFacts.peakMemoryBytes("VmPeak:\t  9 kB\nVmHWM:\t     121 kB\nVmRSS:\t 1 kB\n"))
        assertEquals(null, AndroidFacts.peakMemoryBytes("nothing"))
        assertEquals(listOf(true, true, false), listOf("ranchu" to "x", "x" to "sdk_gphone64", "qcom" to "shiba").map { (a, b) -> AndroidFacts.emulated(a, b) })
    }

    @Test
    fun otherLibrariesAreQuotedShortly() {
        assertEquals("first", Exception("first\nsecond").reason())
        assertEquals(160, Exception("x".repeat(999)).reason().length)
        assertEquals("IllegalStateException", IllegalStateException().reason())
        assertEquals(listOf("second", "IllegalStateException"), listOf("\n second", " \n").map { IllegalStateException(it).reason().trim() }, "an error is never empty")
    }
}
