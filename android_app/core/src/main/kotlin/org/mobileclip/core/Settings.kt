package org.mobileclip.core

import java.io.File
import java.io.IOException
import java.nio.file.Files
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.nio.file.StandardCopyOption.REPLACE_EXISTING
import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException

/** What a user has chosen. */
@Serializable
data class Settings(
    /** Name of a bundle in the store; empty is none. */
    val bundle: String = "",
    val target: Target = Target.ONNX,
    val provider: String = "cpu",
    val threads: Int = 4,
    val labels: List<String> = listOf("a cat", "a dog", "a flower", "a cup of coffee", "a book", "a person", "a street", "food"),
    /** `{}` stands for the label. */
    val template: String = "a photo of {}",
) {
    companion object {
        /** What may run an artifact of a target. `qnn` needs a library that was built with it. */
        fun providers(target: Target): List<String> = when (target) {
            Target.ONNX -> listOf("cpu", "xnnpack", "nnapi", "qnn")
            Target.EXECUTORCH -> listOf("xnnpack")
            Target.COREML -> emptyList()
        }

        const val MAX_LABELS: Int = 500

        /** Labels as somebody types them: one a line or separated by commas, each once. */
        fun labelsOf(text: String): List<String> = text.split('\n', ',').map { it.trim() }.filter { it.isNotEmpty() }.distinct().take(MAX_LABELS)
    }
}

/** Settings in a file. */
class SettingsStore(private val file: File) {
    private val opening = File(file.path + ".opening")

    /** What was saved last; the defaults where nothing was, or where it is damaged: nothing of value is in it. */
    fun load(): Settings {
        val read = try {
            JSON.decodeFromString<Settings>(file.readText())
        } catch (_: IOException) {
            return Settings()
        } catch (_: SerializationException) {
            return Settings()
        }
        val providers = Settings.providers(read.target)
        return when {
            providers.isEmpty() -> Settings()
            read.provider !in providers -> read.copy(provider = providers.first())
            else -> read
        }
    }

    /** @throws MobileClipException storage is full */
    @Synchronized
    fun save(settings: Settings) {
        try {
            file.parentFile?.mkdirs()
            val half = File(file.path + ".half")
            half.writeText(JSON.encodeToString(Settings.serializer(), settings))
            Files.move(half.toPath(), file.toPath(), REPLACE_EXISTING, ATOMIC_MOVE)
        } catch (e: IOException) {
            throw MobileClipException("the settings cannot be saved (${e.reason()}); free some storage", e)
        }
    }

    /** Do with them what may take the app down, as a driver of the phone's maker can. */
    fun <T> opening(step: () -> T): T {
        try {
            opening.createNewFile()
        } catch (_: IOException) { // full storage: it will not be known
        }
        return try {
            step()
        } finally {
            opening.delete()
        }
    }

    /** Whether the app ended in the middle of `opening`; true once. */
    fun endedWhileOpening(): Boolean = opening.delete()
}
