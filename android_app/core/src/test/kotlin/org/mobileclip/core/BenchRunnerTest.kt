package org.mobileclip.core

import java.io.File
import java.nio.ByteBuffer
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

/** What the benchmark does where a runtime fails. */
class BenchRunnerTest {
    private val home = File.createTempFile("bench", "").also { it.delete() }
    private val folder = File(home, "mobileclip-plan").also { it.mkdirs() }
    private var open = 0

    @AfterTest
    fun remove() {
        home.deleteRecursively()
    }

    /** A session whose runs fail from `failsAt` on. */
    private fun session(failsAt: Int, seconds: Double = 0.03, failure: () -> Throwable) = object : Session {
        private var runs = 0
        override val engine = "none"

        init {
            open++
        }

        override fun run(input: ByteBuffer): FloatArray {
            clock += (1e9 * seconds).toLong()
            return if (runs++ < failsAt) floatArrayOf(1f) else throw failure()
        }

        override fun close() {
            open--
        }
    }

    private var clock = 0L
    private val toldAt = mutableListOf<Long>()

    private fun answers(vararg sessions: () -> Session, mode: String = "burst", seconds: Double = 0.0): List<BenchAnswer> {
        val tensor = TensorInfo("tokens", "int32", listOf(1, 1))
        val planned = sessions.indices.map { i ->
            val request = BenchRequest(
                "b", Target.ONNX, Tower.TEXT, "$i", tensor, TensorInfo("embedding", "float32", listOf(1, 1)), rows = 1, provider = "cpu", threads = 1,
                mode = mode, minSamples = 5, minSeconds = seconds, keep = listOf(0), keepOf = 2,
            )
            File(folder, "$i.inputs").writeBytes(ByteArray(4))
            PlannedMeasurement(request, "b", "$i.inputs")
        }
        val plan = BenchPlan(BENCH_SCHEMA_VERSION, planned, listOf(sessions.indices.toList()), blockSeconds = 0.0, blockSamples = 2, coolSeconds = 0.0)
        File(folder, "plan.json").writeText(JSON.encodeToString(BenchPlan.serializer(), plan))
        val host = object : BenchHost {
            override val device = BenchDevice(name = "x", model = "x", os = "x")
            override fun state(moment: String) = BenchState(moment)
            override fun load(folder: File, request: BenchRequest) = sessions[request.artifact.toInt()]()
            override fun nanoTime() = clock
        }
        BenchRunner(folder, host) { toldAt += clock }.run()
        return sessions.indices.map { JSON.decodeFromString<BenchAnswer>(File(folder, "answer-$it.json").readText()) }
    }

    @Test
    fun whatFailsLeavesTheOthersAloneAndNothingBehind() {
        val never = { AssertionError() }
        val found = answers(
            { session(Int.MAX_VALUE, failure = never) }, { session(0) { MobileClipException("at once") } }, { throw UnsatisfiedLinkError("no library") },
            { session(14) { OutOfMemoryError("no room") } }, { session(3) { IllegalStateException("\n") } },
        )
        assertEquals(listOf(null, "at once", "no library", "no room", "IllegalStateException"), found.map { it.error })
        assertTrue(found[0].samples!!.latencyMs.size >= 5)
        assertEquals(0, open, "no session stays loaded")
        for (answer in found) assertEquals(answer.error.orEmpty(), answer.samples?.endedEarly ?: answer.error, "as the host wants it")
    }

    @Test
    fun aLongMeasurementTellsThatItGoesOn() {
        for (mode in listOf("burst", "sustained")) answers({ session(Int.MAX_VALUE, seconds = 8.0) { AssertionError() } }, mode = mode, seconds = 600.0)
        assertTrue(toldAt.zipWithNext { a, b -> b - a }.max() <= 40_000_000_000L, "a host stops an app that is silent for long: $toldAt")
    }

    @Test
    fun whatIsABugIsNotHidden() {
        assertFailsWith<AssertionError> { answers({ session(0) { AssertionError() } }) }
    }
}
