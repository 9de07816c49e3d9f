package org.mobileclip.app

import android.Manifest
import android.content.pm.PackageManager
import android.net.Uri
import android.os.Build
import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.setContent
import androidx.activity.enableEdgeToEdge
import androidx.activity.result.PickVisualMediaRequest
import androidx.activity.result.contract.ActivityResultContracts
import androidx.compose.foundation.Image
import androidx.compose.runtime.Composable
import androidx.compose.runtime.collectAsState
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.compose.ui.graphics.asImageBitmap
import androidx.compose.ui.layout.ContentScale
import java.io.IOException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.mobileclip.app.ui.AppScreen
import org.mobileclip.app.ui.BenchmarkScreen
import org.mobileclip.app.ui.CameraAccess
import org.mobileclip.app.ui.CameraScreen
import org.mobileclip.app.ui.MobileClipTheme
import org.mobileclip.app.ui.SearchScreen
import org.mobileclip.app.ui.SettingsActions
import org.mobileclip.app.ui.SettingsScreen
import org.mobileclip.app.ui.SettingsView
import org.mobileclip.app.ui.Tab
import org.mobileclip.core.BundleSource
import org.mobileclip.core.PhotoAccess

/** Connects the screens with the app's state and with what only Android can do: permissions, pickers, the camera. */
class MainActivity : ComponentActivity() {
    private val app get() = application as MobileClipApplication
    private val state get() = app.state
    private var camera by mutableStateOf(CameraAccess.NOT_ASKED)

    private val askForCamera = registerForActivityResult(ActivityResultContracts.RequestPermission()) {
        app.cameraAsked = true
        look()
    }
    private val askForPhotos = registerForActivityResult(ActivityResultContracts.RequestMultiplePermissions()) {
        look()
        state.search.accessAnswered()
    }
    private val pickPhoto = registerForActivityResult(ActivityResultContracts.PickVisualMedia()) { place -> place?.let(::classify) }
    private val pickZip = registerForActivityResult(ActivityResultContracts.OpenDocument()) { place -> place?.let { add(it, PickedFiles::zip) } }
    private val pickFolder = registerForActivityResult(ActivityResultContracts.OpenDocumentTree()) { place -> place?.let { add(it, PickedFiles::folder) } }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        enableEdgeToEdge()
        setContent { MobileClipTheme { Screens() } }
    }

    override fun onResume() {
        super.onResume()
        look() // the user may come back from the system's settings
    }

    private fun look() {
        state.search.accessIs(app.photos.access())
        camera = when {
            !packageManager.hasSystemFeature(PackageManager.FEATURE_CAMERA_ANY) -> CameraAccess.NO_CAMERA
            checkSelfPermission(Manifest.permission.CAMERA) == PackageManager.PERMISSION_GRANTED -> CameraAccess.READY
            app.cameraAsked -> CameraAccess.DENIED
            else -> CameraAccess.NOT_ASKED
        }
        if (camera == CameraAccess.READY) app.picked.value = null // it stood in for the camera
    }

    @Composable
    private fun Screens() {
        var tab by rememberSaveable { mutableStateOf(Tab.CAMERA) }
        val model by state.model.state.collectAsState()
        val settings by state.model.settings.collectAsState()
        val toSettings = { tab = Tab.SETTINGS }
        AppScreen(tab, { tab = it }) { shown ->
            when (shown) {
                Tab.CAMERA -> {
                    val found by state.classifier.state.collectAsState()
                    CameraScreen(
                        found, model, settings, camera, { Preview(it) }, { askForCamera.launch(Manifest.permission.CAMERA) },
                        { pickPhoto.launch(PickVisualMediaRequest(ActivityResultContracts.PickVisualMedia.ImageOnly)) }, { again(state.model.change(it)) }, toSettings,
                    )
                }
                Tab.SEARCH -> {
                    val search by state.search.state.collectAsState()
                    SearchScreen(
                        search, model, { id -> withContext(Dispatchers.IO) { app.photos.thumbnail(id)?.asImageBitmap() } },
                        { askForPhotos.launch(PhotoAccess.permissions(Build.VERSION.SDK_INT).toTypedArray()) }, { state.search.start() },
                        { state.search.pause() }, { state.search.deleteIndex() }, { state.search.search(it) }, toSettings,
                    )
                }
                Tab.BENCHMARK -> {
                    val benchmark by state.benchmark.state.collectAsState()
                    BenchmarkScreen(benchmark, state.benchmark.device, model, settings, { state.startBenchmark(it) }, { state.benchmark.stop() }, toSettings)
                }
                Tab.SETTINGS -> {
                    val bundles by state.model.bundles.collectAsState()
                    val copied by state.model.copying.collectAsState()
                    val message by state.model.message.collectAsState()
                    SettingsScreen(
                        SettingsView(model, settings, bundles, copied, message),
                        SettingsActions(
                            { again(state.model.choose(it)) }, { state.model.remove(it) }, { pickZip.launch(arrayOf("application/zip", "application/octet-stream")) },
                            { pickFolder.launch(null) }, { again(state.model.change(it)) }, { state.model.dismissMessage() },
                        ),
                    )
                }
            }
        }
    }

    @Composable
    private fun Preview(modifier: Modifier) {
        val picked by app.picked.collectAsState()
        when (val photo = picked) {
            null -> if (camera == CameraAccess.READY) {
                CameraPreview(this, this, { state.classifier.frame(it) }, { camera = CameraAccess.NO_CAMERA }, modifier)
            }
            else -> Image(photo.asImageBitmap(), contentDescription = null, modifier, contentScale = ContentScale.Crop)
        }
    }

    private fun classify(place: Uri) {
        app.background.launch {
            try {
                val bitmap = PictureReader(contentResolver).bitmap(place, PICKED_SIDE)
                app.picked.value = bitmap
                state.classifier.frame(PictureReader.pictureOf(bitmap))
            } catch (_: IOException) {
                state.classifier.unreadable()
            } catch (_: OutOfMemoryError) {
                state.classifier.unreadable()
            }
        }
    }

    /** Classify the picked photo again after a change; a camera's next frame comes by itself. */
    private fun again(changed: Job) {
        val photo = app.picked.value ?: return
        app.background.launch {
            changed.join()
            state.classifier.frame(PictureReader.pictureOf(photo))
        }
    }

    /** Its name comes from another app, which may take its time. */
    private fun add(place: Uri, source: PickedFiles.(Uri) -> BundleSource) {
        val files = PickedFiles(contentResolver)
        app.background.launch { state.model.add(files.source(place), files.name(place)) }
    }

    private companion object {
        const val PICKED_SIDE = 768
    }
}
