package org.mobileclip.core

import java.text.Normalizer

/**
 * The clean-up of captions that CLIP was trained with: ftfy's repairs of single characters, HTML unescaped twice, white space collapsed.
 *
 * Text that was decoded with a wrong encoding is left as it is; nobody types it.
 */
internal object TextCleanup {
    private val entities: Map<String, String> by lazy { loadEntities() }

    fun clean(text: String): String = unescape(unescape(repair(text))).splitToWords().joinToString(" ")

    /** Each line by itself, as ftfy does: a `<` in one of them stops the unescaping there and in all that follow. */
    private fun repair(text: String): String {
        var unescaping = true
        val result = StringBuilder(text.length)
        var start = 0
        while (start < text.length) {
            val end = text.indexOf('\n', start).let { if (it < 0) text.length else it + 1 }
            val line = text.substring(start, end)
            if ('<' in line) unescaping = false
            result.append(repairLine(line, unescaping))
            start = end
        }
        return result.toString()
    }

    private fun repairLine(line: String, unescaping: Boolean): String {
        var text = line
        while (true) {
            val before = text
            if (unescaping) text = entity.replace(text) { strictEntity(it.value) }
            text = replaceCharacters(text)
            text = lineBreak.replace(text, "\n")
            text = terminalEscape.replace(text, "")
            text = text.filterCodePoints { !isControl(it) }
            text = Normalizer.normalize(text, Normalizer.Form.NFC)
            if (text == before) return text
        }
    }

    private fun replaceCharacters(text: String): String {
        val result = StringBuilder(text.length)
        text.forEachCodePoint { code ->
            val ligature = LIGATURES[code]
            when {
                code in 0x80..0x9F -> result.appendCodePoint(windows1252(code))
                ligature != null -> result.append(uncurled(ligature))
                code == 0x3000 -> result.append(' ')
                code in 0xFF01..0xFFEF -> result.append(Normalizer.normalize(String(Character.toChars(code)), Normalizer.Form.NFKC))
                code in 0xD800..0xDFFF -> result.append('\uFFFD')
                else -> result.append(uncurled(String(Character.toChars(code))))
            }
        }
        return result.toString()
    }

    private fun uncurled(text: String): String =
        buildString {
            for (c in text) {
                append(
                    when (c) {
                        '\u02BC', in '\u2018'..'\u201B' -> '\''
                        in '\u201C'..'\u201F' -> '"'
                        else -> c
                    },
                )
            }
        }

    private fun isControl(code: Int): Boolean =
        code in 0x00..0x08 || code == 0x0B || code in 0x0E..0x1F || code == 0x7F ||
            code in 0x206A..0x206F || code == 0xFEFF || code in 0xFFF9..0xFFFC

    /** ftfy's own unescaping: only what ends in a semicolon, and names in capitals as well. */
    private fun strictEntity(found: String): String {
        val name = found.substring(1)
        entities[name]?.let { return it }
        if (name.startsWith("#")) {
            val character = unescape(found)
            return if (';' in character) found else character
        }
        // a name in capitals is that of the capital letter, where no other name is written so
        val lower = entities[name.lowercase()]
        return if (name == name.uppercase() && lower != null && unescape(found) == found) lower.uppercase() else found
    }

    /** HTML5's character references, as a browser reads them. */
    fun unescape(text: String): String = if ('&' in text) reference.replace(text) { looseEntity(it.groupValues[1]) } else text

    private fun looseEntity(name: String): String {
        if (name.startsWith("#")) return numbered(name.substring(1).removeSuffix(";"))
        entities[name]?.let { return it }
        for (length in name.length - 1 downTo 2) {
            entities[name.substring(0, length)]?.let { return it + name.substring(length) }
        }
        return "&$name"
    }

    private fun numbered(digits: String): String {
        val hexadecimal = digits.startsWith("x", ignoreCase = true)
        val significant = (if (hexadecimal) digits.substring(1) else digits).trimStart('0')
        val code = if (significant.length > 8) Int.MAX_VALUE else significant.ifEmpty { "0" }.toLong(if (hexadecimal) 16 else 10)
            .coerceAtMost(Int.MAX_VALUE.toLong()).toInt()
        return when {
            code == 0x0D -> "\r"
            code in 0x80..0x9F -> String(Character.toChars(windows1252(code)))
            code == 0 || code in 0xD800..0xDFFF || code > 0x10FFFF -> "\uFFFD"
            isNoCharacter(code) -> ""
            else -> String(Character.toChars(code))
        }
    }

    private fun isNoCharacter(code: Int): Boolean =
        code in 0x1..0x8 || code == 0xB || code in 0xE..0x1F || code in 0x7F..0x9F || code in 0xFDD0..0xFDEF || code and 0xFFFE == 0xFFFE

    private fun windows1252(code: Int): Int = WINDOWS_1252[code - 0x80].code.let { if (it == 0) code else it }

    private fun loadEntities(): Map<String, String> {
        // the whole path: R8 may move the class to another package
        val resource = TextCleanup::class.java.getResourceAsStream("/org/mobileclip/core/entities.tsv")
            ?: throw MobileClipException("the table of HTML entities is missing from the app; install it again")
        return resource.bufferedReader(Charsets.UTF_8).useLines { lines ->
            lines.associate { line ->
                val (name, codes) = line.split('\t')
                name to codes.split(' ').joinToString("") { String(Character.toChars(it.toInt(16))) }
            }
        }
    }

    private val entity = Regex("&#?[0-9A-Za-z]{1,24};")
    private val reference = Regex("&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\\t\\n\\f <&#;]{1,32};?)")
    private val lineBreak = Regex("\\r\\n|[\\r\\u2028\\u2029\\u0085]")
    private val terminalEscape = Regex("\\u001B\\[[0-9;]*[a-zA-Z]")

    /** Windows-1252 from 0x80 on; 0 where it has no character. */
    private const val WINDOWS_1252 =
        "\u20AC\u0000\u201A\u0192\u201E\u2026\u2020\u2021\u02C6\u2030\u0160\u2039\u0152\u0000\u017D\u0000" +
            "\u0000\u2018\u2019\u201C\u201D\u2022\u2013\u2014\u02DC\u2122\u0161\u203A\u0153\u0000\u017E\u0178"

    private val LIGATURES = mapOf(
        0x0132 to "IJ", 0x0133 to "ij", 0x0149 to "\u02BCn", 0x01F1 to "DZ", 0x01F2 to "Dz", 0x01F3 to "dz", 0x01C4 to "D\u017D",
        0x01C5 to "D\u017E", 0x01C6 to "d\u017E", 0x01C7 to "LJ", 0x01C8 to "Lj", 0x01C9 to "lj", 0x01CA to "NJ", 0x01CB to "Nj",
        0x01CC to "nj", 0xFB00 to "ff", 0xFB01 to "fi", 0xFB02 to "fl", 0xFB03 to "ffi", 0xFB04 to "ffl", 0xFB05 to "\u017Ft", 0xFB06 to "st",
    )
}

internal inline fun String.forEachCodePoint(action: (Int) -> Unit) {
    var i = 0
    while (i < length) {
        val code = codePointAt(i)
        action(code)
        i += Character.charCount(code)
    }
}

private inline fun String.filterCodePoints(keep: (Int) -> Boolean): String {
    val result = StringBuilder(length)
    forEachCodePoint { if (keep(it)) result.appendCodePoint(it) }
    return result.toString()
}

/** White space as Python and CLIP's pattern have it; Java's own classes lack some of it. */
internal fun isSpace(code: Int): Boolean =
    code in 0x09..0x0D || code in 0x1C..0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 || code in 0x2000..0x200A ||
        code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000

private fun String.splitToWords(): List<String> {
    val words = ArrayList<String>()
    val word = StringBuilder()
    forEachCodePoint { code ->
        if (!isSpace(code)) {
            word.appendCodePoint(code)
        } else if (word.isNotEmpty()) {
            words.add(word.toString())
            word.setLength(0)
        }
    }
    if (word.isNotEmpty()) words.add(word.toString())
    return words
}
