package org.mobileclip.app

import android.app.Application
import android.graphics.Bitmap
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.flow.MutableStateFlow
import org.mobileclip.app.state.AppState
import org.mobileclip.phone.Foreground
import org.mobileclip.phone.PhoneBenchHost
import org.mobileclip.phone.Runtimes

/** Owns the app's state, so that neither turning the phone nor leaving the screen interrupts any work. */
class MobileClipApplication : Application() {
    private val foreground = Foreground()

    /** Runs what blocks, for as long as the process lives. */
    val background = CoroutineScope(SupervisorJob() + Dispatchers.IO)
    val photos by lazy { MediaPhotos(this) }
    val state by lazy {
        AppState(
            filesDir, cacheDir,
            { folder, artifact, settings ->
                Runtimes.load(artifact.target, File(folder, artifact.path), artifact.input, artifact.output, settings.provider, settings.threads)
            },
            photos, PhoneBenchHost(this, foreground::sinceAsked), background,
        )
    }

    /** A photo that was picked to be classified, and whether the user was asked for the camera. */
    val picked = MutableStateFlow<Bitmap?>(null)
    var cameraAsked = false

    override fun onCreate() {
        super.onCreate()
        registerActivityLifecycleCallbacks(foreground)
        state.model.start()
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        if (AppState.asksForMemory(level)) state.trim()
    }
}
