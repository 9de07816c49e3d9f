package org.mobileclip.core

import java.io.File
import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.decodeFromJsonElement
import kotlinx.serialization.json.double
import kotlinx.serialization.json.float
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive

/** The whole conformance kit; `-Dconformance=FOLDER -Dtokenizer=FILE`. */
class ConformanceTest {
    private val kit = File(System.getProperty("conformance") ?: "../../conformance")
    private val tokenizer by lazy { Tokenizer.load(File(System.getProperty("tokenizer"))) }

    @Test
    fun captionsHaveTheirIds() {
        val wrong = kit.resolve("captions.jsonl").readLines().map { Json.parseToJsonElement(it).jsonObject }.filter { line ->
            line.getValue("ids").jsonArray.map { it.jsonPrimitive.int } != tokenizer.ids(line.getValue("text").jsonPrimitive.content)
        }
        assertEquals(emptyList(), wrong.map { it.getValue("text").toString() }.take(10), "${wrong.size} differ")
    }

    @Test
    fun rowsAreFilledWithPadding() {
        val row = tokenizer.encode("a cat")
        assertEquals(tokenizer.contextLength, row.size)
        assertEquals(listOf(49406, 320, 2368, 49407) + List(row.size - 4) { 0 }, row.toList())
    }

    @Test
    fun picturesBecomeTheirPixels() {
        val file = SafeTensors.open(kit.resolve("pixels.safetensors"))
        val cases = Json.parseToJsonElement(file.metadata.getValue("cases")).jsonArray
        assertTrue(cases.size >= 40)
        var unequal = 0
        cases.forEachIndexed { n, case ->
            val info = JSON.decodeFromJsonElement<PreprocessInfo>(case)
            val stored = file["picture_$n"]
            val picture = Picture(stored.shape[1], stored.shape[0], stored.bytes()).upright(case.jsonObject.getValue("orientation").jsonPrimitive.int)
            val got = Preprocessor(info).pixels(picture)
            val wanted = file["pixels_$n"].bytes()
            val furthest = got.indices.maxOf { abs((got[it].toInt() and 0xFF) - (wanted[it].toInt() and 0xFF)) }
            assertTrue(furthest <= 1, "case $n is off by $furthest: $case")
            if (!got.contentEquals(wanted)) unequal++
            if ("tensor_$n" in file.names) {
                val tensor = file["tensor_$n"].floats()
                val mine = Preprocessor(info).tensor(picture)
                assertTrue(mine.indices.all { abs(mine[it] - tensor[it]) <= 1.001f / 255 / info.std.min() }, "tensor of case $n")
            }
        }
        assertEquals(0, unequal, "pictures that are not equal to the bit")
    }

    @Test
    fun labelsHaveTheirRanks() {
        for (case in Json.parseToJsonElement(kit.resolve("ranking.json").readText()).jsonObject.getValue("rank").jsonArray.map { it.jsonObject }) {
            val got = ZeroShot.rank(
                floats(case, "image"), case.getValue("classes").jsonArray.map { row -> FloatArray(row.jsonArray.size) { row.jsonArray[it].jsonPrimitive.float } },
                case.getValue("logit_scale").jsonPrimitive.double, case.getValue("top").jsonPrimitive.int,
            )
            val wanted = case.getValue("expected").jsonArray.map { it.jsonObject }
            assertEquals(wanted.map { it.getValue("label").jsonPrimitive.int }, got.map { it.label })
            for ((a, b) in wanted.zip(got)) {
                assertEquals(a.getValue("probability").jsonPrimitive.double, b.probability, 1e-6)
                assertEquals(a.getValue("cosine").jsonPrimitive.double, b.cosine, 1e-6)
            }
        }
    }

    @Test
    fun searchFindsItsRows() {
        for (case in Json.parseToJsonElement(kit.resolve("ranking.json").readText()).jsonObject.getValue("search").jsonArray.map { it.jsonObject }) {
            val rows = case.getValue("matrix").jsonArray
            val file = File.createTempFile("index", ".mcix").also { it.delete() }
            EmbeddingIndex.open(file, "1".repeat(64), rows[0].jsonArray.size).use { index ->
                rows.forEachIndexed { i, row -> index.put(i.toLong(), FloatArray(row.jsonArray.size) { row.jsonArray[it].jsonPrimitive.float }) }
                val got = index.search(floats(case, "query"), case.getValue("top").jsonPrimitive.int)
                val wanted = case.getValue("expected").jsonArray.map { it.jsonObject }
                assertEquals(wanted.map { it.getValue("row").jsonPrimitive.int.toLong() }, got.map { it.id })
                for ((a, b) in wanted.zip(got)) assertEquals(a.getValue("score").jsonPrimitive.float, b.score, 1e-5f)
            }
            file.delete()
        }
    }

    @Test
    fun manifestsAreOpenedOrRefused() {
        for (case in Json.parseToJsonElement(kit.resolve("manifests.json").readText()).jsonArray.map { it.jsonObject }) {
            val name = case.getValue("name").jsonPrimitive.content
            val text = case.getValue("manifest").toString()
            if (case.getValue("valid").jsonPrimitive.boolean) {
                assertEquals("mobileclip_nano", Manifest.parse(text).model.name)
            } else {
                val error = assertFailsWith<MobileClipException>(name) { Manifest.parse(text) }
                assertFalse('\n' in error.message!!, name)
            }
        }
    }

    @Test
    fun thePlanIsRead() {
        val document = Json.parseToJsonElement(kit.resolve("answers.json").readText()).jsonObject
        val plan = BenchPlan.parse(document.getValue("plan").toString())
        assertEquals(listOf(Tower.IMAGE, Tower.TEXT), plan.measurements.map { it.request.tower })
        val request = plan.measurements[0].request
        assertEquals(listOf(0, 27, 59, 60), (0..79).filter(request::keeps))
    }

    @Test
    fun validAnswersAreReadAndWrittenAlike() {
        val cases = Json.parseToJsonElement(kit.resolve("answers.json").readText()).jsonObject.getValue("answers").jsonArray.map { it.jsonObject }
        for (case in cases.filter { it.getValue("valid").jsonPrimitive.boolean }) {
            val answer = JSON.decodeFromJsonElement<BenchAnswer>(withStarts(case.getValue("answer").jsonObject))
            val again = JSON.decodeFromString<BenchAnswer>(JSON.encodeToString(BenchAnswer.serializer(), answer))
            assertEquals(answer, again)
        }
    }

    private fun withStarts(answer: JsonObject): JsonObject {
        val samples = answer["samples"] as? JsonObject ?: return answer
        return JsonObject(answer + ("samples" to JsonObject(samples + ("start_ms" to Json.parseToJsonElement("[0, 1, 2]")))))
    }

    private fun floats(case: JsonObject, name: String) = case.getValue(name).jsonArray.let { values -> FloatArray(values.size) { values[it].jsonPrimitive.float } }
}
