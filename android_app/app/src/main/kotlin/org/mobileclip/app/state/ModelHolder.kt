package org.mobileclip.app.state

import java.io.File
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.launch
import org.mobileclip.core.Artifact
import org.mobileclip.core.Bundle
import org.mobileclip.core.BundleSource
import org.mobileclip.core.BundleStore
import org.mobileclip.core.Encoder
import org.mobileclip.core.Golden
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.Session
import org.mobileclip.core.Settings
import org.mobileclip.core.SettingsStore
import org.mobileclip.core.reason

/** Loads a tower in the runtime that its artifact is for. */
fun interface Towers {
    /** @throws MobileClipException the runtime refuses it */
    fun load(folder: File, artifact: Artifact, settings: Settings): Session
}

/** What there is to work with. */
sealed interface ModelState {
    data object None : ModelState

    data class Busy(val step: String) : ModelState

    data class Ready(val bundle: Bundle, val settings: Settings, val golden: Golden) : ModelState

    data class Failed(val bundle: String, val message: String) : ModelState
}

/**
 * The model that the user has chosen, for all screens; it outlives them, so that turning the phone interrupts nothing.
 *
 * One thing uses it at a time, in the order in which they ask: a search waits for one photo of the indexing, not for all.
 *
 * @param background runs what blocks
 */
class ModelHolder(private val store: BundleStore, private val saved: SettingsStore, private val towers: Towers, private val background: CoroutineScope) {
    private val lock = ReentrantLock(true)
    private var encoder: Encoder? = null

    @Volatile
    private var trimWanted = false

    private val mutableSettings = MutableStateFlow(saved.load())
    private val mutableState = MutableStateFlow<ModelState>(ModelState.None)
    private val mutableBundles = MutableStateFlow(store.names)
    private val mutableCopying = MutableStateFlow<Long?>(null)
    private val mutableMessage = MutableStateFlow<String?>(null)

    val settings: StateFlow<Settings> get() = mutableSettings
    val state: StateFlow<ModelState> get() = mutableState
    val bundles: StateFlow<List<String>> get() = mutableBundles

    /** Bytes copied so far of a bundle that is being added. */
    val copying: StateFlow<Long?> get() = mutableCopying

    /** What went wrong last, apart from the model itself. */
    val message: StateFlow<String?> get() = mutableMessage

    /** Open what was chosen the last time, or the only bundle there is; but not what has taken the app down, which would do it again. */
    fun start(): Job = background.launch {
        val now = settings.value
        if (saved.endedWhileOpening() && now.bundle.isNotEmpty()) {
            val message = "the app ended while it opened ${now.bundle} with ${now.provider}; choose another provider, or the same one to try it again"
            mutableState.value = ModelState.Failed(now.bundle, message)
        } else {
            choose(null).join()
        }
    }

    /** Use a bundle of the store; the empty name is none. */
    fun choose(name: String?): Job = background.launch {
        val now = settings.value
        val chosen = name ?: now.bundle.ifEmpty { store.names.singleOrNull().orEmpty() }
        val targets = if (chosen.isEmpty()) emptySet() else store.targets(chosen)
        val target = if (now.target in targets) now.target else targets.firstOrNull() ?: now.target
        change(if (target == now.target) now.copy(bundle = chosen) else now.copy(bundle = chosen, target = target, provider = Settings.providers(target).first())).join()
    }

    /** Use other settings; the model is opened again where they ask for another one. */
    fun change(settings: Settings): Job {
        val before = mutableSettings.value
        mutableSettings.value = settings
        return background.launch {
            try {
                synchronized(saved) { saved.save(mutableSettings.value) } // not what was asked for first: the last one counts
            } catch (e: MobileClipException) {
                mutableMessage.value = e.message
            }
            val same = settings.copy(labels = before.labels, template = before.template) == before
            if (!same || mutableState.value !is ModelState.Ready) open()
        }
    }

    /** Add a bundle and use it. */
    fun add(source: BundleSource, name: String): Job = background.launch {
        mutableMessage.value = null
        mutableCopying.value = 0
        try {
            val added = store.add(source, name) { mutableCopying.value = it }
            mutableBundles.value = store.names
            choose(added).join()
        } catch (e: MobileClipException) {
            mutableMessage.value = e.message
        } catch (_: OutOfMemoryError) {
            mutableMessage.value = "the bundle does not fit into this phone's memory; export a smaller model"
        } finally {
            mutableCopying.value = null
        }
    }

    fun remove(name: String): Job = background.launch {
        lock.withLock { store.remove(name) }
        mutableBundles.value = store.names
        if (settings.value.bundle == name) choose("")
    }

    fun dismissMessage() {
        mutableMessage.value = null
    }

    /**
     * Use the model; blocks until it is free.
     *
     * @throws MobileClipException there is none, or it fails
     */
    fun <T> use(block: (Encoder) -> T): T = lock.withLock {
        val ready = mutableState.value as? ModelState.Ready ?: throw MobileClipException("no model is ready; see Settings")
        try {
            block(encoder ?: encoder(ready.bundle, ready.settings).also { encoder = it })
        } catch (e: OutOfMemoryError) {
            trimWanted = true
            throw MobileClipException("the phone is out of memory; close other apps, or choose a smaller model", e)
        } finally {
            if (trimWanted) release()
        }
    }

    /** Give memory back: what was loaded is loaded again when it is needed. */
    fun trim() {
        trimWanted = true
        if (lock.tryLock()) {
            try {
                release()
            } finally {
                lock.unlock()
            }
        } // else whoever uses it releases it
    }

    private fun open() = lock.withLock {
        release()
        val chosen = mutableSettings.value // not what was asked for first: the last one counts
        if (chosen.bundle.isEmpty()) {
            mutableState.value = ModelState.None
            return@withLock
        }
        mutableState.value = try {
            mutableState.value = ModelState.Busy("Checking ${chosen.bundle}")
            val bundle = store.open(chosen.bundle, chosen.target)
            mutableState.value = ModelState.Busy("Running its golden inputs on this phone")
            saved.opening { ModelState.Ready(bundle, chosen, encoder(bundle, chosen).also { encoder = it }.golden()) }
        } catch (e: MobileClipException) {
            failed(chosen, e.message.orEmpty())
        } catch (e: LinkageError) {
            failed(chosen, "the app was built without this runtime (${e.reason()}); choose another one")
        } catch (_: OutOfMemoryError) {
            failed(chosen, "the model does not fit into this phone's memory; export a smaller one, or in fp16")
        } catch (e: RuntimeException) { // a bundle that somebody made up must not end the app, at every start
            failed(chosen, "the model cannot be used (${e.reason()}); export the bundle again")
        }
        if (trimWanted) release()
    }

    private fun failed(chosen: Settings, message: String): ModelState {
        release()
        return ModelState.Failed(chosen.bundle, message)
    }

    private fun encoder(bundle: Bundle, settings: Settings) =
        Encoder(bundle, settings.target) { artifact -> towers.load(bundle.folder, artifact, settings) }

    private fun release() {
        trimWanted = false
        encoder?.close()
        encoder = null
    }
}
