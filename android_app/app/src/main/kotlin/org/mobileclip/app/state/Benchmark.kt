package org.mobileclip.app.state

import java.io.File
import java.io.IOException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import org.mobileclip.core.BenchHost
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.QuickBench
import org.mobileclip.core.QuickResult
import org.mobileclip.core.QuickTask
import org.mobileclip.core.Tower
import org.mobileclip.core.reason

data class BenchmarkState(
    val running: Boolean = false, val step: String = "", val results: List<QuickResult> = emptyList(), val message: String? = null,
)

/** Times the chosen model on this phone. */
class Benchmark(private val model: ModelHolder, private val host: BenchHost, private val scratch: File, private val background: CoroutineScope) {
    @Volatile
    private var stop = false
    private var running: Job? = null
    private val mutableState = MutableStateFlow(BenchmarkState())

    val state: StateFlow<BenchmarkState> get() = mutableState

    /** What is measured on, for people. */
    val device: String get() = host.device.model

    /** Time both towers with each provider. */
    @Synchronized
    fun start(providers: List<String>): Job? {
        val ready = model.state.value as? ModelState.Ready
        if (ready == null || providers.isEmpty() || running?.isActive == true) return running
        stop = false
        mutableState.value = BenchmarkState(running = true, step = "starting")
        model.trim() // its own sessions would only take memory
        val tasks = providers.flatMap { provider -> Tower.entries.map { QuickTask(it, provider) } }
        val stoppable = object : BenchHost by host {
            override fun stopped() = stop
        }
        return background.launch {
            try {
                val results = QuickBench.run(ready.bundle, ready.settings.target, tasks, ready.settings.threads, stoppable, scratch, { step ->
                    mutableState.update { it.copy(step = step) }
                })
                mutableState.value = BenchmarkState(results = results)
            } catch (e: MobileClipException) {
                mutableState.value = BenchmarkState(message = e.message)
            } catch (e: IOException) {
                mutableState.value = BenchmarkState(message = "the measurement cannot be kept (${e.reason()}); free some storage")
            }
        }.also { running = it }
    }

    fun stop() {
        stop = true
    }
}
