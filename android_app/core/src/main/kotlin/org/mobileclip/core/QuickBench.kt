package org.mobileclip.core

import java.io.File
import java.nio.file.Files
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.jsonObject

/** What to time: a tower by one provider. */
data class QuickTask(val tower: Tower, val provider: String)

/** What came of it: latencies in ms in the order in which they were taken, or an error. */
data class QuickResult(val task: QuickTask, val engine: String, val loadMs: Double, val firstRunMs: Double, val latencyMs: List<Double>, val error: String?) {
    val p50: Double get() = quantile(0.5)
    val p90: Double get() = quantile(0.9)

    /** Linear between the two nearest, as the toolkit's host computes it. */
    private fun quantile(q: Double): Double {
        val sorted = latencyMs.sorted()
        val place = q * (sorted.size - 1)
        val below = sorted[place.toInt()]
        return below + (place - place.toInt()) * (sorted[minOf(place.toInt() + 1, sorted.size - 1)] - below)
    }
}

/**
 * The toolkit's protocol without a host: a plan over a bundle's golden inputs, done by `BenchRunner`. It is for a look; numbers to report
 * come from `mobileclip bench`, which checks the outputs and whether the phone was cool.
 */
object QuickBench {
    private const val SECONDS = 3.0
    private const val SAMPLES = 50

    /**
     * @param scratch an empty place of the app's own, removed afterwards
     * @param tell what is being done, for people
     */
    fun run(
        bundle: Bundle, target: Target, tasks: List<QuickTask>, threads: Int, host: BenchHost, scratch: File, tell: (String) -> Unit,
        seconds: Double = SECONDS,
    ): List<QuickResult> {
        val golden = SafeTensors.open(bundle.file(bundle.manifest.golden.path))
        val folder = File(scratch, "mobileclip-quick")
        try {
            folder.deleteRecursively()
            Files.createDirectories(folder.toPath())
            val planned = tasks.mapIndexed { i, task -> planned(bundle, target, task, threads, golden, folder, i, seconds) }
            val orders = tasks.indices.map { shift -> tasks.indices.map { (it + shift) % tasks.size } }
            val plan = BenchPlan(BENCH_SCHEMA_VERSION, planned, orders, blockSeconds = 0.5, blockSamples = 4, coolSeconds = 0.0)
            File(folder, "plan.json").writeText(JSON.encodeToString(BenchPlan.serializer(), plan))
            BenchRunner(folder, Here(host, bundle)) { line ->
                (Json.parseToJsonElement(line).jsonObject["progress"] as? JsonPrimitive)?.let { tell(it.content) }
            }.run()
            return tasks.mapIndexed { i, task -> result(task, File(folder, "answer-$i.json")) }
        } finally {
            folder.deleteRecursively()
        }
    }

    /** Loads from the bundle's own folder: nothing is copied. */
    private class Here(private val host: BenchHost, private val bundle: Bundle) : BenchHost by host {
        override fun load(folder: File, request: BenchRequest): Session = host.load(bundle.folder, request)
    }

    private fun planned(
        bundle: Bundle, target: Target, task: QuickTask, threads: Int, golden: SafeTensors, folder: File, number: Int, seconds: Double,
    ): PlannedMeasurement {
        val artifact = bundle.manifest.artifact(target, task.tower)
            ?: throw MobileClipException("the bundle has no ${task.tower.name.lowercase()} tower for ${target.name.lowercase()}; export it with both")
        val inputs = golden["${task.tower.name.lowercase()}.input"]
        File(folder, "$number.inputs").outputStream().channel.use { it.write(inputs.data) }
        val request = BenchRequest(
            bundle = bundle.folder.name, target = target, tower = task.tower, artifact = artifact.path, input = artifact.input,
            output = artifact.output, rows = inputs.shape[0], provider = task.provider, threads = threads, warmupRuns = 10,
            minSamples = SAMPLES, minSeconds = seconds, keep = listOf(0), keepOf = Int.MAX_VALUE,
        )
        return PlannedMeasurement(request, "$number", "$number.inputs")
    }

    private fun result(task: QuickTask, answer: File): QuickResult {
        val read = JSON.decodeFromString<BenchAnswer>(answer.readText())
        val samples = read.samples
        return QuickResult(task, samples?.engine.orEmpty(), samples?.loadMs ?: 0.0, samples?.firstRunMs ?: 0.0, samples?.latencyMs.orEmpty(), read.error)
    }
}
