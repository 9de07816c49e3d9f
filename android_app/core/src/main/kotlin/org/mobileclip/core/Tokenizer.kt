package org.mobileclip.core

import java.io.File
import java.io.IOException
import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive

/**
 * Captions to token ids with CLIP's vocabulary (Radford et al. 2021, arXiv 2103.00020, section 2.4), equal to the Python reference's.
 *
 * It may be used by several threads.
 *
 * @property contextLength ids in a row, padding included
 */
class Tokenizer private constructor(
    private val vocabulary: Map<String, Int>,
    private val ranks: Map<Pair<String, String>, Int>,
    val contextLength: Int,
    private val padId: Int,
) {
    private val startId = vocabulary.getValue(START)
    private val endId = vocabulary.getValue(END)
    private val known = object : LinkedHashMap<String, IntArray>(256, 0.75f, true) {
        override fun removeEldestEntry(eldest: MutableMap.MutableEntry<String, IntArray>) = size > CACHED_WORDS
    }

    /** The row of a caption: start, its ids, end, padding; what is too long is cut, and the last id is the end all the same. */
    fun encode(text: String): IntArray {
        val row = IntArray(contextLength) { padId }
        ids(text).forEachIndexed { i, id -> row[i] = id }
        return row
    }

    /** The ids of a caption from start to end, without padding. */
    fun ids(text: String): List<Int> {
        val ids = arrayListOf(startId)
        for (word in WORDS.findAll(TextCleanup.clean(text).lowercase())) {
            for (id in idsOfWord(word.value)) ids.add(id)
            if (ids.size >= contextLength) break
        }
        while (ids.size > contextLength - 1) ids.removeAt(ids.size - 1)
        ids.add(endId)
        return ids
    }

    private fun idsOfWord(word: String): IntArray {
        synchronized(known) { known[word] }?.let { return it }
        val ids = when (word) {
            START -> intArrayOf(startId)
            END -> intArrayOf(endId)
            else -> merge(word).map(vocabulary::getValue).toIntArray()
        }
        if (word.length <= CACHED_LENGTH) synchronized(known) { known[word] = ids }
        return ids
    }

    /** Byte-pair encoding: the pair of the lowest rank is joined everywhere, until no pair has a rank. */
    private fun merge(word: String): List<String> {
        var parts = word.toByteArray(Charsets.UTF_8).mapTo(ArrayList()) { BYTE_SYMBOLS[it.toInt() and 0xFF] }
        parts[parts.size - 1] = parts.last() + WORD_END
        while (parts.size > 1) {
            var best: Pair<String, String>? = null
            var bestRank = Int.MAX_VALUE
            for (i in 0 until parts.size - 1) {
                val pair = parts[i] to parts[i + 1]
                val rank = ranks[pair] ?: continue
                if (rank < bestRank) {
                    best = pair
                    bestRank = rank
                }
            }
            val (first, second) = best ?: break
            val joined = ArrayList<String>(parts.size)
            var i = 0
            while (i < parts.size) {
                if (i + 1 < parts.size && parts[i] == first && parts[i + 1] == second) {
                    joined.add(first + second)
                    i += 2
                } else {
                    joined.add(parts[i])
                    i++
                }
            }
            parts = joined
        }
        return parts
    }

    companion object {
        private const val START = "<start_of_text>"
        private const val END = "<end_of_text>"
        private const val WORD_END = "</w>"
        private const val CACHED_WORDS = 10_000
        private const val CACHED_LENGTH = 64
        private const val MAX_FILE_BYTES = 128L shl 20

        /** U+0345 is no letter but would be one in capitals, so that the reference's pattern, which ignores case, knows it nowhere. */
        private const val SPLIT = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"

        // The same for text in lower case, with what the reference's disregard of case adds: a long s is an s, and U+0345, which is a
        // letter in capitals only, falls through. Java's own disregard of case treats that one in another way, and Android's in a third.
        private val WORDS = Regex("<[s\\u017F]tart_of_text>|$END|'[s\\u017F]|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|[^$SPACES\\u0345\\p{L}\\p{N}]+")
        private val BYTE_SYMBOLS: Array<String> = byteSymbols()

        /** Read the tokenizer file of a bundle. */
        fun load(file: File): Tokenizer {
            if (file.length() > MAX_FILE_BYTES) throw MobileClipException("${file.name} is too large for a tokenizer; export the bundle again")
            val text = try {
                file.readText()
            } catch (e: IOException) {
                throw MobileClipException("${file.name} cannot be read (${e.reason()}); copy the bundle again", e)
            }
            return try {
                parse(jsonObject(text))
            } catch (e: SerializationException) {
                throw unusable(file, e)
            } catch (e: IllegalArgumentException) {
                throw unusable(file, e)
            } catch (e: NoSuchElementException) {
                throw unusable(file, e)
            }
        }

        private fun unusable(file: File, e: Exception) =
            MobileClipException("${file.name} is no tokenizer that this app knows (${e.reason()}); export the bundle again", e)

        private fun parse(document: JsonObject): Tokenizer {
            val model = document.getValue("model").jsonObject
            require((model["type"] as? JsonPrimitive)?.content == "BPE") { "its model is not BPE" }
            require((model["end_of_word_suffix"] as? JsonPrimitive)?.content == WORD_END) { "its words have no end" }
            val words = (document.getValue("pre_tokenizer").jsonObject["pretokenizers"] as? JsonArray)?.firstOrNull() as? JsonObject
            require(((words?.get("pattern") as? JsonObject)?.get("Regex") as? JsonPrimitive)?.content == SPLIT) { "it splits text in another way than CLIP" }
            val vocabulary = model.getValue("vocab").jsonObject.mapValues { it.value.jsonPrimitive.int }
            require(START in vocabulary && END in vocabulary) { "it has another start or end than CLIP's" }
            require(BYTE_SYMBOLS.all { it in vocabulary && it + WORD_END in vocabulary }) { "a byte has no id" }
            val merges = model.getValue("merges").jsonArray
            val ranks = HashMap<Pair<String, String>, Int>(2 * merges.size)
            merges.forEachIndexed { rank, pair ->
                require(pair.jsonArray.size == 2) { "a merge of ${pair.jsonArray.size}" }
                val (first, second) = pair.jsonArray.map { it.jsonPrimitive.content }
                require(first + second in vocabulary) { "a merge has no id" }
                ranks[first to second] = rank
            }
            val contextLength = document.getValue("truncation").jsonObject.getValue("max_length").jsonPrimitive.int
            require(contextLength in 2..65_536) { "a context length of $contextLength" }
            return Tokenizer(vocabulary, ranks, contextLength, document.getValue("padding").jsonObject.getValue("pad_id").jsonPrimitive.int)
        }

        /** The characters that stand for bytes: printable ones for themselves, the others from U+0100 on. */
        private fun byteSymbols(): Array<String> {
            var next = 0x100
            return Array(256) { byte ->
                val printable = byte in 0x21..0x7E || byte in 0xA1..0xAC || byte in 0xAE..0xFF
                String(Character.toChars(if (printable) byte else next++))
            }
        }
    }
}

/** `isSpace` as a part of a pattern's class. */
private const val SPACES = "\\u0009-\\u000D\\u001C-\\u0020\\u0085\\u00A0\\u1680\\u2000-\\u200A\\u2028\\u2029\\u202F\\u205F\\u3000"
