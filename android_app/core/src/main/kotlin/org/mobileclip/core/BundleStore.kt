package org.mobileclip.core

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.io.OutputStream
import java.nio.file.FileAlreadyExistsException
import java.nio.file.Files
import java.nio.file.StandardOpenOption
import java.util.zip.ZipInputStream

/** The files of a bundle as somebody has picked them: a zip, or a folder of another app. */
fun interface BundleSource {
    /** Hand over each file in any order; the parts of a path are separated by `/`. */
    fun each(take: (path: String, content: InputStream) -> Unit)
}

/** A zip, read from its beginning to its end: it need not be a file. */
class ZipSource(private val open: () -> InputStream) : BundleSource {
    override fun each(take: (path: String, content: InputStream) -> Unit) = ZipInputStream(open().buffered()).use { zip ->
        while (true) {
            val entry = zip.nextEntry ?: break
            if (!entry.isDirectory) take(entry.name, zip)
        }
    }
}

/**
 * The app's own folder of bundles.
 *
 * A bundle is copied to a place of its own, checked there, and only then given its name; nothing else of what was picked is kept. The
 * folder is the app's: no other app writes there.
 */
class BundleStore(private val folder: File, private val limits: Limits = Limits()) {
    /** What a bundle may have at most; the largest that the toolkit makes has a tenth of it. */
    data class Limits(val files: Int = 2000, val bytes: Long = 8L shl 30)

    val names: List<String>
        get() = folder.listFiles { file -> file.isDirectory && !file.name.startsWith(".") }.orEmpty().map { it.name }.sorted()

    /** @throws MobileClipException it is not there or damaged, or has nothing for the target */
    fun open(name: String, target: Target): Bundle = Bundle.open(place(name), setOf(target))

    /** What a bundle can be run with here; nothing where it cannot be read, which `open` explains. */
    fun targets(name: String): Set<Target> = try {
        Manifest.parse(File(place(name), MANIFEST).readText()).artifacts.mapTo(LinkedHashSet()) { it.target }.apply { retainAll(ON_PHONES) }
    } catch (_: IOException) {
        emptySet()
    } catch (_: MobileClipException) {
        emptySet()
    }

    /** Forget a bundle. What has it open may go on. */
    fun remove(name: String) {
        place(name).deleteRecursively()
    }

    /**
     * Copy a bundle in.
     *
     * @param wanted its name; another one with a number is made of it if that is taken by a different bundle
     * @param copied told how many bytes there are so far
     * @return the name that it has got
     * @throws MobileClipException it is no bundle, is damaged, leads out of its folder or is too large, or there is no room
     */
    @Synchronized
    fun add(source: BundleSource, wanted: String, copied: (Long) -> Unit = {}): String {
        val staging = File(folder, STAGING)
        staging.deleteRecursively() // an app that was killed has left it
        try {
            if (!staging.mkdirs()) throw MobileClipException("the app has no room for a bundle; free some storage")
            unpack(source, staging, copied)
            val root = root(staging)
            val bundle = Bundle.open(root, ON_PHONES)
            keepOnly(root, bundle.manifest)
            val name = freeName(wanted, File(root, MANIFEST))
            val place = File(folder, name)
            if (!intact(place)) {
                place.deleteRecursively() // the same one, damaged since: it was picked again for that
                Files.move(root.toPath(), place.toPath())
            }
            return name
        } catch (e: IOException) {
            throw MobileClipException("the bundle cannot be copied (${e.reason()}); free some storage, or pick it again", e)
        } finally {
            staging.deleteRecursively()
        }
    }

    private fun unpack(source: BundleSource, staging: File, copied: (Long) -> Unit) {
        var files = 0
        var bytes = 0L
        val buffer = ByteArray(1 shl 16)
        try {
            source.each { path, content ->
                if (path.split('/').any { it.startsWith("__MACOSX") || it == ".DS_Store" }) return@each
                if (!staysInside(path)) throw MobileClipException("${path.take(80)} leads out of the bundle; pick one that mobileclip export has made")
                if (++files > limits.files) throw MobileClipException("that has more than ${limits.files} files; pick a bundle alone")
                val file = File(staging, path)
                file.parentFile?.mkdirs()
                newFile(file).use { out ->
                    while (true) {
                        val n = content.read(buffer)
                        if (n < 0) break
                        bytes += n // counted as they come: what a zip says of its sizes need not be true
                        if (bytes > limits.bytes) throw MobileClipException("that is larger than ${limits.bytes shr 20} MiB; pick a bundle alone")
                        out.write(buffer, 0, n)
                        copied(bytes)
                    }
                }
            }
        } catch (e: IllegalArgumentException) { // a zip whose names are no text
            throw MobileClipException("the zip is damaged (${e.reason()}); make it again", e)
        }
    }

    private fun newFile(file: File): OutputStream = try {
        Files.newOutputStream(file.toPath(), StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE)
    } catch (e: FileAlreadyExistsException) {
        throw MobileClipException("the zip has ${file.name} twice; make it again", e)
    }

    /** Zips of a folder hold the folder. */
    private fun root(staging: File): File =
        if (File(staging, MANIFEST).isFile) staging else staging.listFiles().orEmpty().singleOrNull { File(it, MANIFEST).isFile } ?: staging

    private fun keepOnly(root: File, manifest: Manifest) {
        val artifacts = manifest.artifacts.filter { it.target in ON_PHONES }
        val kept = (listOf(manifest.tokenizer.file, manifest.golden) + artifacts.flatMap { it.files }).map { it.path } + MANIFEST
        root.walkBottomUp().filter { it.isFile && it.relativeTo(root).invariantSeparatorsPath !in kept }.forEach { it.delete() }
        root.walkBottomUp().filter { it.isDirectory && it.list()?.isEmpty() == true }.forEach { it.delete() }
    }

    private fun intact(place: File): Boolean = try {
        Bundle.open(place, ON_PHONES)
        true
    } catch (_: MobileClipException) {
        false
    }

    private fun freeName(wanted: String, manifest: File): String {
        val plain = wanted.map { if (it.isLetterOrDigit() || it in "._- ") it else '_' }.joinToString("").trim('.', ' ').take(MAX_NAME).ifEmpty { "bundle" }
        return generateSequence(1) { it + 1 }.map { if (it == 1) plain else "$plain-$it" }.first { name ->
            val there = File(folder, name)
            !there.exists() || File(there, MANIFEST).let { it.isFile && it.readBytes().contentEquals(manifest.readBytes()) }
        }
    }

    private fun place(name: String): File {
        require(name.isNotEmpty() && '/' !in name && !name.startsWith(".")) { "a bundle called '$name'" }
        return File(folder, name)
    }

    companion object {
        private const val STAGING = ".half"
        private const val MANIFEST = "manifest.json"
        private const val MAX_NAME = 60

        /** What a phone with Android runs. */
        val ON_PHONES: Set<Target> = setOf(Target.ONNX, Target.EXECUTORCH)
    }
}
