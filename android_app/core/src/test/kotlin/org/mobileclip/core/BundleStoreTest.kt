package org.mobileclip.core

import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue

class BundleStoreTest {
    private val folder = File.createTempFile("bundles", "").also { it.delete() }
    private val store = BundleStore(folder)
    private val files = SmallBundle.files()

    @AfterTest
    fun remove() {
        folder.deleteRecursively()
    }

    private fun zip(files: Map<String, ByteArray>): ZipSource {
        val bytes = ByteArrayOutputStream().also { SmallBundle.zip(files, it) }.toByteArray()
        return ZipSource { ByteArrayInputStream(bytes) }
    }

    private fun refused(source: BundleSource, store: BundleStore = this.store): String {
        val message = assertFailsWith<MobileClipException> { store.add(source, "new") }.message.orEmpty()
        assertFalse('\n' in message)
        assertEquals(emptyList(), folder.list().orEmpty().toList(), "nothing is left")
        return message
    }

    @Test
    fun aZipIsCopiedAndOpened() {
        var copied = 0L
        val name = store.add(zip(files + ("holiday.jpg" to ByteArray(9))), "my bundle") { copied = it }
        assertEquals(listOf("my bundle"), store.names)
        assertTrue(copied > 0)
        assertEquals("mobileclip_nano", store.open(name, Target.ONNX).manifest.model.name)
        assertFalse(File(folder, "my bundle/holiday.jpg").exists(), "only what the manifest names is kept")
        assertTrue(File(folder, "my bundle").walk().none { it.name.endsWith(".mlpackage") }, "CoreML is not for this phone")
        store.remove(name)
        assertEquals(emptyList(), store.names)
    }

    @Test
    fun aZipOfTheFolderIsOneToo() {
        val finder = files.mapKeys { "nano/${it.key}" } + ("__MACOSX/nano/._manifest.json" to ByteArray(3)) + ("nano/.DS_Store" to ByteArray(3))
        assertEquals("nano", store.add(zip(finder), "nano"))
    }

    @Test
    fun theSameBundleIsKeptOnceAndAnotherGetsANumber() {
        assertEquals("nano", store.add(zip(files), "nano"))
        assertEquals("nano", store.add(zip(files), "nano"))
        File(folder, "nano/manifest.json").appendText(" ")
        assertEquals("nano-2", store.add(zip(files), "nano"))
        assertEquals("_etc_x", store.add(zip(files), "../etc/x"))
    }

    @Test
    fun aBundleThatWasDamagedIsRepairedByPickingItAgain() {
        store.add(zip(files), "nano")
        File(folder, "nano/text.onnx").writeText("damaged")
        assertFailsWith<MobileClipException> { store.open("nano", Target.ONNX) }
        assertEquals("nano", store.add(zip(files), "nano"))
        store.open("nano", Target.ONNX)
        assertEquals(listOf("nano"), folder.list().orEmpty().toList())
    }

    @Test
    fun pathsThatLeadOutAreRefused() {
        for (path in listOf("../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "C:evil")) {
            assertTrue("leads out of the bundle" in refused(zip(files + (path to ByteArray(1)))), path)
            assertFalse(File(folder.parentFile, "evil").exists())
        }
    }

    @Test
    fun whatIsTooLargeIsRefusedBeforeItFillsThePhone() {
        assertTrue("larger than 1 MiB" in refused(zip(files + ("zeros" to ByteArray(3 shl 20))), BundleStore(folder, BundleStore.Limits(bytes = 1 shl 20))))
        assertTrue("more than 3 files" in refused(zip(files), BundleStore(folder, BundleStore.Limits(files = 3))))
    }

    @Test
    fun whatIsNoBundleIsRefused() {
        assertTrue("has no manifest.json" in refused(ZipSource { ByteArrayInputStream("no zip".toByteArray()) }))
        assertTrue("has no manifest.json" in refused(zip(mapOf("a/b/manifest.json" to ByteArray(2)))))
        assertTrue("is not what was exported" in refused(zip(files + ("tokenizer.json" to "tokenizer.jsoN".toByteArray()))))
        assertTrue("is missing" in refused(zip(files - "golden.safetensors")))
        val whole = ByteArrayOutputStream().also { SmallBundle.zip(files, it) }.toByteArray()
        refused(ZipSource { ByteArrayInputStream(whole, 0, whole.size / 2) })
    }

    @Test
    fun aSourceThatBreaksOffIsToldOf() {
        val message = refused(
            BundleSource { take ->
                take("manifest.json", ByteArrayInputStream(ByteArray(3)))
                throw IOException("the card is gone")
            },
        )
        assertEquals("the bundle cannot be copied (the card is gone); free some storage, or pick it again", message)
        assertTrue("twice" in refused(BundleSource { take -> repeat(2) { take("a", ByteArrayInputStream(ByteArray(3))) } }))
    }
}
