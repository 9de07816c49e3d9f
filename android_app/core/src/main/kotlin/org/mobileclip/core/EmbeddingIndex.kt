package org.mobileclip.core

import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import java.util.PriorityQueue

/** A row of the index that matches a query. */
data class Match(val id: Long, val score: Float)

/**
 * Embeddings of a photo library, half precision, in one file that is mapped into memory and searched in chunks, so that the memory that
 * is needed does not grow with it.
 *
 * The file: `MCIX`, version, width (int32), then the 32 bytes of the embedding space, all little-endian; then records of an id (int64)
 * and a row of float16. A record that was half written when the app was killed is cut off when the file is opened. What was removed has
 * the id -1; `compact` gives its room back.
 */
class EmbeddingIndex private constructor(private val file: File, private val access: RandomAccessFile, val width: Int) : Closeable {
    private val recordBytes = 8L + 2L * width
    private val places = HashMap<Long, Long>()

    /** Ids of everything that can be found. */
    val ids: Set<Long> get() = places.keys
    val size: Int get() = places.size

    init {
        val channel = access.channel
        val whole = (channel.size() - HEADER_BYTES) / recordBytes
        channel.truncate(HEADER_BYTES + whole * recordBytes)
        forEachChunk { record, buffer, count ->
            for (i in 0 until count) {
                val id = buffer.getLong((i * recordBytes).toInt())
                if (id != REMOVED) places[id] = record + i
            }
        }
    }

    /** Add a photo or replace its embedding. */
    @Synchronized
    fun put(id: Long, embedding: FloatArray) {
        require(embedding.size == width) { "the index holds rows of $width values, not ${embedding.size}" }
        require(id >= 0) { "an id of $id" }
        val record = ByteBuffer.allocate(recordBytes.toInt()).order(ByteOrder.LITTLE_ENDIAN).putLong(id)
        for (value in embedding) record.putShort(Half.fromFloat(value))
        record.flip()
        remove(id)
        val place = (access.channel.size() - HEADER_BYTES) / recordBytes
        var at = HEADER_BYTES + place * recordBytes
        try {
            while (record.hasRemaining()) at += access.channel.write(record, at)
        } catch (e: IOException) {
            access.channel.truncate(HEADER_BYTES + place * recordBytes)
            throw MobileClipException("the index cannot be written (${e.reason()}); free some storage", e)
        }
        places[id] = place
    }

    /** Forget a photo; false if it is not there. */
    @Synchronized
    fun remove(id: Long): Boolean {
        val place = places.remove(id) ?: return false
        try {
            access.channel.write(ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(0, REMOVED), HEADER_BYTES + place * recordBytes)
        } catch (e: IOException) {
            throw MobileClipException("the index cannot be written (${e.reason()}); free some storage", e)
        }
        return true
    }

    /**
     * The photos nearest to a query, best first; equal ones in the order in which they were added.
     *
     * @param accept whether a photo may be found
     */
    @Synchronized
    fun search(query: FloatArray, top: Int, accept: (Long) -> Boolean = { true }): List<Match> {
        require(query.size == width) { "the index holds rows of $width values, not ${query.size}" }
        // worst first: a smaller score, or the same score and a later place
        val best = PriorityQueue<Triple<Float, Long, Long>>(compareBy<Triple<Float, Long, Long>> { it.first }.thenByDescending { it.second })
        forEachChunk { record, buffer, count ->
            for (i in 0 until count) {
                val start = (i * recordBytes).toInt()
                val id = buffer.getLong(start)
                if (places[id] != record + i || !accept(id)) continue // removed, or left twice by a compaction that was killed
                var score = 0f
                for (k in 0 until width) score += Half.toFloat(buffer.getShort(start + 8 + 2 * k)) * query[k]
                val worst = best.peek()
                if (best.size < top) {
                    best.add(Triple(score, record + i, id))
                } else if (worst != null && score > worst.first) {
                    best.poll()
                    best.add(Triple(score, record + i, id))
                }
            }
        }
        return best.sortedWith(compareByDescending<Triple<Float, Long, Long>> { it.first }.thenBy { it.second }).map { Match(it.third, it.first) }
    }

    /** Write the file anew without what was removed. */
    @Synchronized
    fun compact() {
        val channel = access.channel
        var kept = 0L
        val total = (channel.size() - HEADER_BYTES) / recordBytes
        val record = ByteBuffer.allocate(recordBytes.toInt()).order(ByteOrder.LITTLE_ENDIAN)
        for (place in 0 until total) {
            record.clear()
            channel.read(record, HEADER_BYTES + place * recordBytes)
            val id = record.getLong(0)
            if (places[id] != place) continue // removed, or left twice by a compaction that was killed
            if (kept != place) {
                record.flip()
                channel.write(record, HEADER_BYTES + kept * recordBytes)
                places[id] = kept
            }
            kept++
        }
        channel.truncate(HEADER_BYTES + kept * recordBytes)
    }

    private inline fun forEachChunk(action: (firstRecord: Long, buffer: ByteBuffer, records: Int) -> Unit) {
        val channel = access.channel
        val total = (channel.size() - HEADER_BYTES) / recordBytes
        var record = 0L
        while (record < total) {
            val count = minOf(CHUNK_RECORDS.toLong(), total - record).toInt()
            val buffer = channel.map(FileChannel.MapMode.READ_ONLY, HEADER_BYTES + record * recordBytes, count * recordBytes).order(ByteOrder.LITTLE_ENDIAN)
            action(record, buffer, count)
            record += count
        }
    }

    override fun close() = access.close()

    companion object {
        private const val MAGIC = 0x5849434D // MCIX
        private const val VERSION = 1
        private const val HEADER_BYTES = 4L + 4 + 4 + 32
        private const val REMOVED = -1L
        private const val CHUNK_RECORDS = 4096
        internal const val MAX_WIDTH = 1 shl 14

        /**
         * Open an index, or make an empty one.
         *
         * @throws MobileClipException it is none, or of another embedding space: search would mean nothing
         */
        fun open(file: File, embeddingSpace: String, width: Int): EmbeddingIndex {
            require(width in 1..MAX_WIDTH) { "a width of $width" }
            require(Regex("[0-9a-f]{64}").matches(embeddingSpace)) { "an embedding space is 64 hexadecimal digits" }
            val access = try {
                file.parentFile?.mkdirs()
                RandomAccessFile(file, "rw")
            } catch (e: IOException) {
                throw MobileClipException("the index cannot be opened (${e.reason()}); free some storage", e)
            }
            try {
                val space = embeddingSpace.chunked(2).map { it.toInt(16).toByte() }.toByteArray()
                val header = ByteBuffer.allocate(HEADER_BYTES.toInt()).order(ByteOrder.LITTLE_ENDIAN).putInt(MAGIC).putInt(VERSION).putInt(width).put(space)
                if (access.length() < HEADER_BYTES) {
                    access.setLength(0)
                    access.write(header.array())
                } else {
                    val found = ByteArray(HEADER_BYTES.toInt()).also { access.seek(0); access.readFully(it) }
                    if (!found.contentEquals(header.array())) {
                        throw MobileClipException("the index was made with another model; delete it and index the photos again")
                    }
                }
                return EmbeddingIndex(file, access, width)
            } catch (e: IOException) {
                access.close()
                throw MobileClipException("the index cannot be read (${e.reason()}); delete it and index the photos again", e)
            } catch (e: MobileClipException) {
                access.close()
                throw e
            }
        }
    }
}

/** IEEE 754 half precision, rounded to nearest even. */
internal object Half {
    fun toFloat(half: Short): Float {
        val bits = half.toInt() and 0xFFFF
        val sign = bits and 0x8000 shl 16
        val exponent = bits shr 10 and 0x1F
        val fraction = bits and 0x3FF
        return when {
            exponent == 0x1F -> Float.fromBits(sign or 0x7F800000 or (fraction shl 13))
            exponent != 0 -> Float.fromBits(sign or (exponent + 112 shl 23) or (fraction shl 13))
            else -> fraction * SMALLEST * if (sign == 0) 1 else -1
        }
    }

    fun fromFloat(value: Float): Short {
        val bits = value.toRawBits()
        val sign = bits ushr 16 and 0x8000
        val magnitude = bits and 0x7FFFFFFF
        val half = when {
            magnitude > 0x7F800000 -> 0x7E00
            magnitude >= 0x477FF000 -> 0x7C00
            magnitude >= 0x38800000 -> rounded(magnitude - (112 shl 23), 13)
            magnitude > 0x33000000 -> rounded(magnitude and 0x7FFFFF or 0x800000, 126 - (magnitude ushr 23))
            else -> 0
        }
        return (sign or half).toShort()
    }

    private fun rounded(bits: Int, dropped: Int): Int {
        val kept = bits ushr dropped
        val rest = bits and ((1 shl dropped) - 1)
        val middle = 1 shl (dropped - 1)
        return if (rest > middle || (rest == middle && kept and 1 == 1)) kept + 1 else kept
    }

    private const val SMALLEST = 5.9604645e-8f
}
