package org.mobileclip.app.state

import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import org.mobileclip.core.BenchHost
import org.mobileclip.core.BundleStore
import org.mobileclip.core.PhotoLibrary
import org.mobileclip.core.SettingsStore

/**
 * Everything that the app knows, for as long as its process lives.
 *
 * @param files the app's own folder
 * @param cache a folder that the system may empty
 * @param background runs what blocks
 */
class AppState(files: File, cache: File, towers: Towers, library: PhotoLibrary, host: BenchHost, background: CoroutineScope) {
    val model = ModelHolder(BundleStore(File(files, "bundles")), SettingsStore(File(files, "settings.json")), towers, background)
    val classifier = Classifier(model)
    val search = PhotoSearch(model, library, File(files, "index"), background)
    val benchmark = Benchmark(model, host, cache, background)

    /** Time the model, with nothing else going on. */
    fun startBenchmark(providers: List<String>): Job? {
        search.pause()
        return benchmark.start(providers)
    }

    /** The system wants memory back. */
    fun trim() {
        search.trim()
        model.trim()
    }

    companion object {
        private const val RUNNING_LOW = 10
        private const val UI_HIDDEN = 20

        /** Whether a level of Android's `onTrimMemory` asks for more than what is on the screen. */
        fun asksForMemory(level: Int): Boolean = level >= RUNNING_LOW && level != UI_HIDDEN
    }
}
