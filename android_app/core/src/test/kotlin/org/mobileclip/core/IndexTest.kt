package org.mobileclip.core

import java.io.File
import java.io.RandomAccessFile
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue

class IndexTest {
    private val file = File.createTempFile("index", ".mcix").also { it.delete() }
    private val space = "a".repeat(64)

    private fun open(space: String = this.space, width: Int = 2) = EmbeddingIndex.open(file, space, width)

    @AfterTest
    fun remove() {
        file.delete()
    }

    @Test
    fun whatWasPutIsThereAgain() {
        open().use { index ->
            index.put(7, floatArrayOf(1f, 0f))
            index.put(9, floatArrayOf(0f, 1f))
            index.put(7, floatArrayOf(0f, -1f))
        }
        open().use { index ->
            assertEquals(setOf(7L, 9L), index.ids)
            assertEquals(listOf(Match(9, 1f), Match(7, -1f)), index.search(floatArrayOf(0f, 1f), 5))
            assertTrue(index.remove(9))
            assertFalse(index.remove(9))
        }
        open().use { index ->
            val before = file.length()
            index.compact()
            assertTrue(file.length() < before)
            assertEquals(listOf(Match(7, -1f)), index.search(floatArrayOf(0f, 1f), 5))
        }
        open().use { assertEquals(setOf(7L), it.ids) }
    }

    @Test
    fun aRecordThatWasHalfWrittenIsCutOff() {
        open().use { it.put(1, floatArrayOf(1f, 0f)) }
        file.appendBytes(ByteArray(5))
        open().use { index ->
            index.put(2, floatArrayOf(0f, 1f))
            assertEquals(setOf(1L, 2L), index.ids)
        }
        open().use { assertEquals(2L, it.search(floatArrayOf(0f, 1f), 1).single().id) }
    }

    @Test
    fun whatACompactionThatWasKilledLeftTwiceIsFoundOnce() {
        open().use { index ->
            index.put(1, floatArrayOf(1f, 0f))
            index.put(2, floatArrayOf(0f, 1f))
        }
        val bytes = file.readBytes()
        file.appendBytes(bytes.copyOfRange(bytes.size - 12, bytes.size))
        open().use { assertEquals(listOf(Match(2, 1f), Match(1, 0f)), it.search(floatArrayOf(0f, 1f), 5)) }
        open().use { it.compact() }
        assertEquals(bytes.size.toLong(), file.length(), "the next one removes it")
        open().use { it.remove(2) }
        open().use { assertEquals(setOf(1L), it.ids, "what was removed does not come back") }
    }

    @Test
    fun anIndexOfAnotherModelIsNotSearched() {
        open().close()
        for (other in listOf({ open("b".repeat(64)) }, { open(width = 3) })) {
            assertEquals("the index was made with another model; delete it and index the photos again", assertFailsWith<MobileClipException> { other() }.message)
        }
        RandomAccessFile(file, "rw").use { it.write(0) }
        assertFailsWith<MobileClipException> { open() }
    }

    @Test
    fun aHundredThousandPhotosAreSearchedInChunks() {
        open().use { index ->
            for (i in 0L until 100_000) index.put(i, floatArrayOf((i % 1000) / 1000f, 0f))
            val found = index.search(floatArrayOf(1f, 0f), 3)
            assertEquals(listOf(999L, 1999L, 2999L), found.map { it.id })
        }
    }

    @Test
    fun halfPrecisionRoundsToEven() {
        for ((value, half) in listOf(
            0f to 0x0000, -0f to 0x8000, 1f to 0x3C00, 65504f to 0x7BFF, 65520f to 0x7C00, 1e-8f to 0x0000, 5.9604645e-8f to 0x0001,
            6.1035156e-5f to 0x0400, 1.00048828125f to 0x3C00, 1.0014648f to 0x3C02, 0.333f to 0x3554, Float.NaN to 0x7E00,
        )) {
            assertEquals(half, Half.fromFloat(value).toInt() and 0xFFFF, "$value")
        }
        for (bits in 0..0xFFFF) {
            val value = Half.toFloat(bits.toShort())
            if (!value.isNaN()) assertEquals(bits, Half.fromFloat(value).toInt() and 0xFFFF)
        }
    }
}
