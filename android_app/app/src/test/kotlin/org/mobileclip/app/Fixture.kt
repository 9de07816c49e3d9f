package org.mobileclip.app

import java.io.ByteArrayInputStream
import java.io.File
import java.io.IOException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import org.mobileclip.app.state.AppState
import org.mobileclip.app.state.Towers
import org.mobileclip.core.BenchDevice
import org.mobileclip.core.BenchHost
import org.mobileclip.core.BenchRequest
import org.mobileclip.core.BenchState
import org.mobileclip.core.BundleSource
import org.mobileclip.core.Photo
import org.mobileclip.core.PhotoLibrary
import org.mobileclip.core.Picture
import org.mobileclip.core.Session
import org.mobileclip.core.Thermal
import org.mobileclip.onnx.OnnxSession

/** The app without Android: `-Dbundle=FOLDER` is a bundle of `mobileclip_nano`, `-Dpictures=FOLDER` holds PPM files. */
class Fixture(name: String) : AutoCloseable {
    val folder: File = File.createTempFile(name, "").also { it.delete() }
    val library = FolderLibrary(File(System.getProperty("pictures")))

    /** How often a tower was loaded. */
    var loads = 0
    var beforeLoad: () -> Unit = {}
    private val towers = Towers { place, artifact, settings ->
        beforeLoad()
        loads++
        OnnxSession.load(place, artifact, settings.provider, settings.threads)
    }
    val app = start()

    /** The app as it starts anew, after it was killed. */
    fun start() = AppState(File(folder, "files"), File(folder, "cache"), towers, library, ThisComputer, CoroutineScope(SupervisorJob() + Dispatchers.IO))

    fun bundle(): BundleSource = BundleSource { take ->
        val root = File(System.getProperty("bundle"))
        for (file in root.walk().filter { it.isFile }) file.inputStream().use { take(file.relativeTo(root).invariantSeparatorsPath, it) }
    }

    /** The same with a byte of a file changed. */
    fun damaged(name: String): BundleSource = BundleSource { take ->
        bundle().each { path, content ->
            if (path == name) take(path, ByteArrayInputStream(content.readBytes().also { it[it.size / 2] = (it[it.size / 2] + 1).toByte() })) else take(path, content)
        }
    }

    override fun close() {
        folder.deleteRecursively()
    }
}

/** A folder of pictures as a phone's library. */
class FolderLibrary(folder: File) : PhotoLibrary {
    val files: List<File> = folder.listFiles { file -> file.extension == "ppm" }.orEmpty().sorted()
    override var complete = true
    var shown: List<Photo> = files.indices.map { Photo(it.toLong(), 1) }
    var reads = 0
    var beforeRead: (Long) -> Unit = {}

    override fun photos(): List<Photo> = shown

    override fun picture(id: Long): Picture {
        beforeRead(id)
        reads++
        return picture(files[id.toInt()])
    }

    companion object {
        /** The simplest of formats: a header `P6 WIDTH HEIGHT 255`, then the bytes. */
        fun picture(file: File): Picture {
            val bytes = file.readBytes()
            val header = Regex("P6\\s(\\d+)\\s(\\d+)\\s255\\s").matchAt(String(bytes, 0, minOf(40, bytes.size), Charsets.ISO_8859_1), 0) ?: throw IOException("no picture")
            val (width, height) = header.groupValues.drop(1).map(String::toInt)
            return Picture(width, height, bytes.copyOfRange(header.value.length, header.value.length + 3 * width * height))
        }
    }
}

private object ThisComputer : BenchHost {
    override val device = BenchDevice(name = "a computer", model = "a computer, no phone", os = System.getProperty("os.name"), emulated = true)

    override fun state(moment: String) = BenchState(moment, Thermal.NOMINAL)

    override fun load(folder: File, request: BenchRequest): Session =
        OnnxSession.load(File(folder, request.artifact), request.input, request.output, request.provider, request.threads)
}
