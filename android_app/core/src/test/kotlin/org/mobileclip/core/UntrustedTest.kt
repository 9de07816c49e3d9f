package org.mobileclip.core

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.jsonObject

/** What somebody has made up, with right hashes throughout: it is refused in one line, and never ends the app. */
class UntrustedTest {
    private val file = File.createTempFile("untrusted", "").also { it.delete() }

    @AfterTest
    fun remove() {
        file.deleteRecursively()
    }

    private fun refused(what: String, action: () -> Unit): String {
        val message = assertFailsWith<MobileClipException>(what) { action() }.message.orEmpty()
        assertFalse('\n' in message || message.length > 400, what)
        return message
    }

    /** A safetensors file whose data are zeros. */
    private fun tensors(header: String, bytes: Int): ByteArray {
        val text = header.toByteArray()
        return ByteBuffer.allocate(8 + text.size + bytes).order(ByteOrder.LITTLE_ENDIAN).putLong(text.size.toLong()).put(text).array()
    }

    @Test
    fun tensorsLieInsideTheirFile() {
        fun open(about: String): SafeTensors {
            file.writeBytes(tensors("{\"x\": {$about}}", 8))
            return SafeTensors.open(file)
        }
        assertContentEquals(floatArrayOf(0f, 0f), open("\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]")["x"].floats())
        for (about in listOf(
            "\"dtype\": \"F32\", \"shape\": [3], \"data_offsets\": [0, 12]", "\"dtype\": \"F32\", \"shape\": [-2], \"data_offsets\": [0, 8]",
            "\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [8, 0]", "\"dtype\": \"F99\", \"shape\": [2], \"data_offsets\": [0, 8]",
            "\"dtype\": \"F32\", \"shape\": [2147483647, 2147483647, 2147483647], \"data_offsets\": [0, 8]",
            // 2^63 - 1 bytes: the end of the file and a little more, if a sum of it overflows
            "\"dtype\": \"U8\", \"shape\": [49, 73, 127, 337, 92737, 649657], \"data_offsets\": [0, 9223372036854775807]",
        )) {
            assertTrue("is damaged" in refused(about) { open(about) }, about)
        }
        file.writeBytes(tensors("{}", 0).also { it[7] = 0x7F })
        assertTrue("a header of" in refused("header") { SafeTensors.open(file) })
    }

    private val manifest = Json.parseToJsonElement(String(SmallBundle.files().getValue("manifest.json"))).jsonObject

    private fun sealed(changes: Map<String, JsonElement>): String {
        val changed = JsonObject(manifest - "manifest_sha256" + changes)
        return JsonObject(changed + ("manifest_sha256" to JsonPrimitive(sha256(Manifest.canonical(changed).toByteArray())))).toString()
    }

    @Test
    fun manifestsFitTogether() {
        Manifest.parse(sealed(emptyMap()))
        val dim = JsonPrimitive(1 shl 20)
        val artifacts = manifest.getValue("artifacts") as JsonArray
        val wide = artifacts.map { JsonObject(it.jsonObject + ("output" to JsonObject(it.jsonObject.getValue("output").jsonObject + ("shape" to JsonArray(listOf(JsonPrimitive(1), dim)))))) }
        assertTrue("embeddings of 1048576 numbers" in refused("width") { Manifest.parse(sealed(mapOf("embed_dim" to dim, "artifacts" to JsonArray(wide)))) })
        assertTrue("the embedding space" in refused("space") { Manifest.parse(sealed(mapOf("embedding_space" to JsonPrimitive("../../settings.json")))) })
        val batch = JsonObject(manifest.getValue("options").jsonObject + ("batch" to JsonPrimitive(1 shl 20)))
        val batches = artifacts.map { artifact ->
            JsonObject(
                artifact.jsonObject.mapValues { (name, value) ->
                    if (name !in setOf("input", "output")) return@mapValues value
                    JsonObject(value.jsonObject + ("shape" to JsonArray(listOf(JsonPrimitive(1 shl 20)) + (value.jsonObject.getValue("shape") as JsonArray).drop(1))))
                },
            )
        }
        assertTrue("takes" in refused("batch") { Manifest.parse(sealed(mapOf("options" to batch, "artifacts" to JsonArray(batches)))) })
    }

    @Test
    fun deepNestingIsNoCrash() {
        val deep = "[".repeat(200_000) + "]".repeat(200_000)
        refused("somewhere") { Manifest.parse("{\"schema_version\": 1, \"a\": $deep}") }
        refused("the version") { Manifest.parse("{\"schema_version\": $deep}") }
        file.writeText(deep)
        refused("tokenizer") { Tokenizer.load(file) }
        file.writeBytes(tensors("{\"x\": $deep}", 0))
        refused("tensors") { SafeTensors.open(file) }
    }

    @Test
    fun otherTokenizersAreRefused() {
        val clip = Json.parseToJsonElement(File(System.getProperty("tokenizer")).readText()).jsonObject
        fun refusedWith(part: String, change: Pair<String, String>) = refused("$change") {
            file.writeText(JsonObject(clip + (part to JsonObject(clip.getValue(part).jsonObject + (change.first to Json.parseToJsonElement(change.second))))).toString())
            Tokenizer.load(file)
        }
        assertTrue("splits text in another way" in refusedWith("pre_tokenizer", "pretokenizers" to "[{\"type\": \"Whitespace\"}]"))
        assertTrue("a merge of 1" in refusedWith("model", "merges" to "[[\"a\"]]"))
        assertTrue("a merge has no id" in refusedWith("model", "merges" to "[[\"q q\", \"q\"]]"))
        assertTrue("context length" in refusedWith("truncation", "max_length" to "1"))
    }

    @Test
    fun goldenInputsMustFitTheTower() {
        val bundleFiles = SmallBundle.files()
        fun refusedWith(header: String, bytes: Int) = refused(header) {
            val folder = file.also { it.deleteRecursively() }
            for ((path, content) in bundleFiles) File(folder, path).apply { parentFile.mkdirs() }.writeBytes(content)
            val golden = tensors(header, bytes)
            File(folder, "golden.safetensors").writeBytes(golden)
            val entry = JsonObject(mapOf("path" to JsonPrimitive("golden.safetensors"), "size_bytes" to JsonPrimitive(golden.size), "sha256" to JsonPrimitive(sha256(golden))))
            File(folder, "manifest.json").writeText(sealed(mapOf("golden" to entry)))
            Encoder(Bundle.open(folder, BundleStore.ON_PHONES), Target.ONNX) { error("is not reached") }.reproduces()
        }
        for ((input, embedding) in listOf("[]" to "[1]", "[0, 3, 1]" to "[0, 1]", "[1]" to "[1]")) {
            val header = listOf("image", "text").joinToString(",", "{", "}") { "\"$it.input\": ${about(input)}, \"$it.embedding\": ${about(embedding)}" }
            assertTrue("golden inputs of the" in refusedWith(header, 4), header)
        }
    }

    private fun about(shape: String) = "{\"dtype\": \"F32\", \"shape\": $shape, \"data_offsets\": [0, ${if ("0," in shape) 0 else 4}]}"
}
