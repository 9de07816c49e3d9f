package org.mobileclip.app

import androidx.compose.foundation.Image
import androidx.compose.runtime.Composable
import androidx.compose.ui.ImageComposeScene
import androidx.compose.ui.graphics.ImageBitmap
import androidx.compose.ui.graphics.toComposeImageBitmap
import androidx.compose.ui.layout.ContentScale
import androidx.compose.ui.unit.Density
import java.awt.Color
import java.awt.RenderingHints
import java.awt.image.BufferedImage
import java.io.File
import kotlinx.coroutines.runBlocking
import org.jetbrains.skia.EncodedImageFormat
import org.mobileclip.app.state.AppState
import org.mobileclip.app.state.BenchmarkState
import org.mobileclip.app.state.ClassifierState
import org.mobileclip.app.state.ModelState
import org.mobileclip.app.state.SearchState
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
import org.mobileclip.core.IndexProgress
import org.mobileclip.core.PhotoAccess
import org.mobileclip.core.Picture
import org.mobileclip.core.Settings

private const val WIDTH_DP = 400
private const val HEIGHT_DP = 860
private const val SHEET = 216

/** Renders the app's screens on a computer, with what the real model answers: `Screenshots FOLDER`, with `Fixture`'s properties. */
fun main(arguments: Array<String>) {
    val folder = File(arguments[0])
    Fixture("screenshots").use { fixture ->
        val app = fixture.app
        runBlocking {
            app.model.add(fixture.bundle(), "mobileclip_nano-fp32").join()
            val labels = listOf("pizza", "hamburger", "doughnut", "birthday cake", "hot beverage", "grapes", "pineapple", "bread")
            app.model.change(app.model.settings.value.copy(labels = labels, template = "an emoji of {}", threads = 1)).join()
            app.search.accessIs(PhotoAccess.ALL)
            app.search.start()?.join()
            app.search.search("something sweet to eat").join()
            app.classifier.frame(onPaper(fixture.library, "doughnut"))
            app.startBenchmark(listOf("cpu", "xnnpack"))?.join()
        }
        Screens(app, fixture.library, folder).all()
    }
}

/** A drawing as a camera sees it: on a sheet of paper, with some of that around it. */
private fun onPaper(library: FolderLibrary, name: String): Picture {
    val sheet = BufferedImage(SHEET, SHEET, BufferedImage.TYPE_INT_RGB)
    val graphics = sheet.createGraphics()
    graphics.setRenderingHint(RenderingHints.KEY_INTERPOLATION, RenderingHints.VALUE_INTERPOLATION_BICUBIC)
    graphics.color = Color.WHITE
    graphics.fillRect(0, 0, SHEET, SHEET)
    graphics.drawImage(image(FolderLibrary.picture(library.files.first { it.nameWithoutExtension == name })), SHEET / 20, SHEET / 20, SHEET * 9 / 10, SHEET * 9 / 10, null)
    return Picture.ofArgb(SHEET, SHEET, sheet.getRGB(0, 0, SHEET, SHEET, null, 0, SHEET))
}

private fun image(picture: Picture) = BufferedImage(picture.width, picture.height, BufferedImage.TYPE_INT_RGB).also { image ->
    for (i in 0 until picture.width * picture.height) {
        val (red, green, blue) = List(3) { picture.rgb[3 * i + it].toInt() and 0xFF }
        image.setRGB(i % picture.width, i / picture.width, (red shl 16) or (green shl 8) or blue)
    }
}

private fun bitmap(picture: Picture): ImageBitmap = image(picture).toComposeImageBitmap()

private class Screens(private val app: AppState, private val library: FolderLibrary, private val folder: File) {
    private val model = app.model.state.value
    private val settings = app.model.settings.value
    private val found = app.search.state.value

    fun all() {
        shot("camera", dark = false, Tab.CAMERA) { Camera(app.classifier.state.value, model, CameraAccess.READY, "doughnut") }
        shot("camera-dark", dark = true, Tab.CAMERA) { Camera(app.classifier.state.value, model, CameraAccess.READY, "doughnut") }
        shot("camera-landscape", dark = false, Tab.CAMERA, turned = true) { Camera(app.classifier.state.value, model, CameraAccess.READY, "doughnut") }
        shot("camera-denied", dark = false, Tab.CAMERA) { Camera(ClassifierState(), ModelState.None, CameraAccess.DENIED, null) }
        shot("search", dark = false, Tab.SEARCH) { Search(found) }
        shot("search-indexing", dark = true, Tab.SEARCH) {
            Search(found.copy(access = PhotoAccess.SOME, indexing = true, progress = IndexProgress(31_874, 100_000, 3)))
        }
        shot("benchmark", dark = false, Tab.BENCHMARK) { Timing(app.benchmark.state.value) }
        shot("benchmark-dark", dark = true, Tab.BENCHMARK) { Timing(app.benchmark.state.value) }
        shot("settings", dark = false, Tab.SETTINGS) { Chosen(model, null) }
        shot("settings-refused", dark = true, Tab.SETTINGS) {
            Chosen(model, "image.onnx is not what was exported (its sha256 differs); copy the bundle again")
        }
    }

    @Composable
    private fun Camera(state: ClassifierState, model: ModelState, access: CameraAccess, shown: String?) = CameraScreen(
        state, model, settings, access,
        { modifier -> if (shown != null) Image(bitmap(onPaper(library, shown)), null, modifier, contentScale = ContentScale.Crop) },
        {}, {}, {}, {},
    )

    @Composable
    private fun Search(state: SearchState) = SearchScreen(state, app.model.state.value, { bitmap(library.picture(it)) }, {}, {}, {}, {}, {}, {})

    @Composable
    private fun Timing(state: BenchmarkState) = BenchmarkScreen(state, app.benchmark.device, model, settings, {}, {}, {})

    @Composable
    private fun Chosen(model: ModelState, message: String?) =
        SettingsScreen(SettingsView(model, settings, listOf("mobileclip_nano-fp32"), null, message), SettingsActions({}, {}, {}, {}, { _: Settings -> }, {}))

    private fun shot(name: String, dark: Boolean, tab: Tab, turned: Boolean = false, content: @Composable () -> Unit) {
        val density = Density(1.6f)
        val (width, height) = listOf(WIDTH_DP, HEIGHT_DP).map { (it * density.density).toInt() }.let { if (turned) it.reversed() else it }
        val scene = ImageComposeScene(width, height, density) {
            MobileClipTheme(dark) { AppScreen(tab, {}) { content() } }
        }
        try {
            for (frame in 0L..30L) scene.render(frame * 50_000_000) // until pictures and animations have settled
            val png = scene.render(2_000_000_000).encodeToData(EncodedImageFormat.PNG) ?: error("no picture of $name")
            File(folder, "android-$name.png").writeBytes(png.bytes)
        } finally {
            scene.close()
        }
    }
}
