package org.mobileclip.core

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable

/** Version of `BenchPlan` and `BenchAnswer`; see `conformance/bench_plan.schema.json` and `bench_answer.schema.json`. */
const val BENCH_SCHEMA_VERSION = 3

@Serializable
data class BenchRequest(
    val bundle: String,
    val target: Target,
    val tower: Tower,
    val artifact: String,
    val input: TensorInfo,
    val output: TensorInfo,
    val rows: Int,
    val provider: String,
    val threads: Int,
    val mode: String = "burst",
    val warmupRuns: Int = 10,
    val minSamples: Int,
    val minSeconds: Double,
    val keep: List<Int>,
    val keepOf: Int,
    val perOp: Boolean = false,
) {
    /** Whether the output of a timed run is kept for the host to check. */
    fun keeps(sample: Int): Boolean = sample % keepOf == keep[sample / keepOf % keep.size]
}

@Serializable
data class PlannedMeasurement(val request: BenchRequest, val bundle: String, val inputs: String)

@Serializable
data class BenchPlan(
    val schemaVersion: Int,
    val measurements: List<PlannedMeasurement>,
    val orders: List<List<Int>>,
    val blockSeconds: Double,
    val blockSamples: Int,
    val coolSeconds: Double,
) {
    companion object {
        /** @throws MobileClipException not a plan, or not of this version */
        fun parse(text: String): BenchPlan {
            val plan = try {
                JSON.decodeFromString<BenchPlan>(text)
            } catch (e: IllegalArgumentException) {
                throw MobileClipException("the plan cannot be read (${e.reason()}); use the same version of toolkit and app", e)
            }
            if (plan.schemaVersion != BENCH_SCHEMA_VERSION) {
                throw MobileClipException("the plan has version ${plan.schemaVersion}, this app knows $BENCH_SCHEMA_VERSION; use the same version of toolkit and app")
            }
            val numbers = plan.measurements.indices.toList()
            if (plan.orders.isEmpty() || plan.orders.any { it.sorted() != numbers }) throw MobileClipException("the plan's orders do not fit its measurements")
            return plan
        }
    }
}

@Serializable
data class BenchDevice(
    val name: String,
    val model: String,
    val unit: String = "",
    val soc: String = "",
    val os: String,
    val architecture: String = "",
    val logicalCores: Int? = null,
    val memoryBytes: Long? = null,
    val emulated: Boolean = false,
)

@Serializable
enum class Thermal {
    @SerialName("nominal") NOMINAL,
    @SerialName("fair") FAIR,
    @SerialName("serious") SERIOUS,
    @SerialName("critical") CRITICAL,
    @SerialName("unknown") UNKNOWN,
}

@Serializable
data class BenchState(
    val moment: String,
    val thermal: Thermal = Thermal.UNKNOWN,
    val batteryPercent: Double? = null,
    val charging: Boolean? = null,
    val lowPower: Boolean? = null,
    val foreground: Boolean? = null,
)

@Serializable
data class KeptOutput(val sample: Int, val firstInput: Int, val values: String)

@Serializable
data class BenchSamples(
    val schemaVersion: Int = BENCH_SCHEMA_VERSION,
    val engine: String,
    val provider: String,
    val device: BenchDevice,
    val states: List<BenchState>,
    val loadMs: Double,
    val warmLoadMs: Double? = null,
    val firstRunMs: Double,
    val warmupMs: List<Double>,
    val latencyMs: List<Double>,
    val startMs: List<Double>,
    val blockSamples: List<Int>,
    val baselineMemoryBytes: Long? = null,
    val peakMemoryBytes: Long? = null,
    val endedEarly: String = "",
    val kept: List<KeptOutput>,
)

@Serializable
data class BenchAnswer(val schemaVersion: Int = BENCH_SCHEMA_VERSION, val samples: BenchSamples?, val error: String?)

/** A loaded tower. */
interface Session : AutoCloseable {
    /** What runs it, with its version. */
    val engine: String

    /** One run: an input of the artifact's type and shape, little-endian, to an embedding of its shape. */
    fun run(input: ByteBuffer): FloatArray
}

/** What the benchmark needs of the phone that it runs on. */
interface BenchHost {
    val device: BenchDevice

    fun state(moment: String): BenchState

    /** Load an artifact of a folder. */
    fun load(folder: File, request: BenchRequest): Session

    fun nanoTime(): Long = System.nanoTime()

    fun sleep(seconds: Double) = Thread.sleep((1000 * seconds).toLong())

    /** Largest memory of this process so far, or null. */
    fun peakMemoryBytes(): Long? = null

    /** Whether somebody wants it to end now; what is not finished ends with an error. */
    fun stopped(): Boolean = false
}

/**
 * Does a plan: loads all, lets the device cool down, warms all up, then goes round and round; leaves an answer for each measurement.
 *
 * @param folder holds `plan.json` and what it names; the answers go there
 * @param tell a line for the host after `MOBILECLIP`
 */
class BenchRunner(private val folder: File, private val host: BenchHost, private val tell: (String) -> Unit) {
    private class Measurement(val number: Int, val request: BenchRequest, val bundle: File, val inputs: ByteBuffer) {
        var session: Session? = null
        var baseline: Long? = null
        var loadMs = 0.0
        var firstRunMs = 0.0
        var next = 0
        val warmupMs = ArrayList<Double>()
        val latencyMs = ArrayList<Double>()
        val startMs = ArrayList<Double>()
        val blocks = ArrayList<Int>()
        val kept = ArrayList<KeptOutput>()
        val states = ArrayList<BenchState>()
        var begin = 0L

        fun enough(): Boolean = latencyMs.size >= request.minSamples && latencyMs.sum() >= 1000 * request.minSeconds
    }

    fun run() {
        folder.parentFile?.listFiles { other -> other.isDirectory && other != folder && other.name.startsWith("mobileclip-") }?.forEach { it.deleteRecursively() }
        val plan = BenchPlan.parse(File(folder, "plan.json").readText())
        val open = ArrayList<Measurement>()
        plan.measurements.forEachIndexed { number, planned ->
            attempt(number, null) {
                val measurement = Measurement(number, planned.request, inside(planned.bundle), inputs(planned))
                tellProgress("loading ${label(planned.request)}")
                measurement.baseline = host.peakMemoryBytes()
                measurement.loadMs = milliseconds { measurement.session = host.load(measurement.bundle, planned.request) }
                opened(measurement) { measurement.firstRunMs = once(measurement).first }
                open.add(measurement)
            }
        }
        coolDown(plan.coolSeconds)
        open.removeAll { m -> !attempt(m.number, m) { repeat(m.request.warmupRuns) { m.warmupMs.add(once(m).first) } } }
        var round = 0
        while (open.isNotEmpty()) {
            for (number in plan.orders[round % plan.orders.size]) {
                val measurement = open.firstOrNull { it.number == number } ?: continue
                if (!attempt(number, measurement) { turn(plan, measurement) }) {
                    open.remove(measurement)
                } else if (measurement.enough()) {
                    attempt(number, measurement) { finish(measurement) }
                    open.remove(measurement)
                }
            }
            round++
        }
        tell("{\"done\": true}")
    }

    private fun turn(plan: BenchPlan, m: Measurement) {
        if (m.latencyMs.isEmpty()) {
            tellProgress("timing ${label(m.request)}")
            if (m.request.mode != "burst") coolDown(plan.coolSeconds)
            m.states.add(host.state("before"))
        }
        val refreshUntil = host.nanoTime() + REFRESH_NANOS // others may have taken the caches
        do once(m) while (host.nanoTime() < refreshUntil)
        var timed = 0
        var milliseconds = 0.0
        var looked = host.nanoTime()
        m.blocks.add(0)
        val burst = m.request.mode == "burst"
        while (if (burst) timed < plan.blockSamples || milliseconds < 1000 * plan.blockSeconds else !m.enough()) {
            val first = m.next
            val start = host.nanoTime()
            if (m.begin == 0L) m.begin = start
            val (ms, output) = once(m)
            val sample = m.latencyMs.size
            m.startMs.add((start - m.begin) / 1e6)
            m.latencyMs.add(ms)
            m.blocks[m.blocks.size - 1] = ++timed
            milliseconds += ms
            if (m.request.keeps(sample)) m.kept.add(KeptOutput(sample, first, encoded(output)))
            if (host.nanoTime() - looked > STATE_NANOS) {
                m.states.add(host.state("during"))
                looked = host.nanoTime()
            }
        }
    }

    private fun finish(m: Measurement) {
        m.states.add(host.state("after"))
        val peak = host.peakMemoryBytes()
        m.session?.close()
        m.session = null
        val warm = milliseconds { m.session = host.load(m.bundle, m.request) }
        m.session?.close()
        answer(m.number, BenchAnswer(samples = samples(m, "").copy(warmLoadMs = warm, peakMemoryBytes = peak), error = null))
    }

    /** Do a step of a measurement; false if it failed, with its answer written. */
    private fun attempt(number: Int, m: Measurement?, step: () -> Unit): Boolean {
        try {
            step()
            return true
        } catch (e: Throwable) {
            if (e !is Exception && e !is LinkageError && e !is OutOfMemoryError) throw e // a runtime that is not there leaves the others alone
            val error = e.reason(MAX_ERROR_CHARS)
            val samples = if (m != null && m.latencyMs.isNotEmpty()) samples(m, error) else null
            runCatching { m?.session?.close() }
            answer(number, BenchAnswer(samples = samples, error = error))
            return false
        }
    }

    /** Do the first step with a session; it must not stay behind where that fails. */
    private fun opened(m: Measurement, step: () -> Unit) {
        try {
            step()
        } catch (e: Throwable) {
            runCatching { m.session?.close() }
            throw e
        }
    }

    private fun samples(m: Measurement, ended: String): BenchSamples {
        val engine = m.session?.engine ?: engineOf[m.number] ?: "unknown"
        return BenchSamples(
            engine = engine, provider = m.request.provider, device = host.device, states = m.states, loadMs = m.loadMs,
            firstRunMs = m.firstRunMs, warmupMs = m.warmupMs, latencyMs = m.latencyMs, startMs = m.startMs,
            blockSamples = m.blocks.filter { it > 0 }, baselineMemoryBytes = m.baseline, endedEarly = ended, kept = m.kept,
        )
    }

    private val engineOf = HashMap<Int, String>()

    /** When the host heard of it last: it stops an app that is silent. */
    private var told = 0L

    /** One run on the next input: its latency in ms, and the output. */
    private fun once(m: Measurement): Pair<Double, FloatArray> {
        if (host.stopped()) throw MobileClipException("it was stopped")
        val session = checkNotNull(m.session)
        engineOf[m.number] = session.engine
        val batch = m.request.input.shape[0]
        val rowBytes = m.inputs.capacity() / m.request.rows
        val input = ByteBuffer.allocateDirect(batch * rowBytes).order(ByteOrder.LITTLE_ENDIAN)
        for (i in 0 until batch) {
            val row = (m.next + i) % m.request.rows
            val part = m.inputs.duplicate()
            part.limit((row + 1) * rowBytes)
            part.position(row * rowBytes)
            input.put(part)
        }
        input.rewind()
        m.next = if (m.next + batch >= m.request.rows) 0 else m.next + batch
        if (host.nanoTime() - told > SILENCE_NANOS) tellProgress("running ${label(m.request)}")
        val start = host.nanoTime()
        val output = session.run(input)
        return maxOf((host.nanoTime() - start) / 1e6, SHORTEST_MS) to output
    }

    private fun coolDown(seconds: Double) {
        val until = host.nanoTime() + (1e9 * seconds).toLong()
        while (host.state("before").thermal !in listOf(Thermal.NOMINAL, Thermal.UNKNOWN) && host.nanoTime() < until && !host.stopped()) {
            tellProgress("the device is warm; it may cool down")
            host.sleep(COOL_STEP_SECONDS)
        }
    }

    private fun inputs(planned: PlannedMeasurement): ByteBuffer {
        val request = planned.request
        val width = mapOf("float32" to 4, "int32" to 4, "uint8" to 1)[request.input.dtype] ?: throw MobileClipException("inputs of ${request.input.dtype} are not known")
        val wanted = request.rows.toLong() * width * request.input.shape.drop(1).fold(1L) { a, b -> a * b }
        val file = inside(planned.inputs)
        if (request.rows < 1 || request.input.shape.any { it < 1 } || file.length() != wanted) throw MobileClipException("the inputs have not the size of ${request.rows} rows")
        return ByteBuffer.wrap(file.readBytes())
    }

    private fun inside(path: String): File {
        val file = File(folder, path)
        if (!file.canonicalPath.startsWith(folder.canonicalPath + File.separator)) throw MobileClipException("$path leads out of the plan's folder")
        return file
    }

    private fun answer(number: Int, answer: BenchAnswer) {
        val half = File(folder, "half")
        half.writeText(JSON.encodeToString(BenchAnswer.serializer(), answer))
        if (!half.renameTo(File(folder, "answer-$number.json"))) throw MobileClipException("the answer cannot be written; free some storage")
    }

    private fun tellProgress(text: String) {
        told = host.nanoTime()
        tell(JSON.encodeToString(mapOf("progress" to text)))
    }

    private fun label(request: BenchRequest) = "${request.bundle} ${request.target.name.lowercase()} ${request.tower.name.lowercase()}"

    private fun encoded(output: FloatArray): String {
        val bytes = ByteBuffer.allocate(4 * output.size).order(ByteOrder.LITTLE_ENDIAN)
        bytes.asFloatBuffer().put(output)
        return Base64.getEncoder().encodeToString(bytes.array())
    }

    private inline fun milliseconds(action: () -> Unit): Double {
        val start = host.nanoTime()
        action()
        return (host.nanoTime() - start) / 1e6
    }

    private companion object {
        const val REFRESH_NANOS = 20_000_000L
        const val STATE_NANOS = 30_000_000_000L
        const val SILENCE_NANOS = 30_000_000_000L
        const val COOL_STEP_SECONDS = 5.0
        const val SHORTEST_MS = 1e-4
        const val MAX_ERROR_CHARS = 500
    }
}
