package org.mobileclip.core

import java.io.File
import java.io.IOException
import java.security.MessageDigest
import kotlinx.serialization.ExperimentalSerializationApi
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNamingStrategy
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.decodeFromJsonElement
import kotlinx.serialization.json.jsonObject

/** What the toolkit calls a file format; see `conformance/manifest.schema.json`. */
@Serializable
enum class Target {
    @SerialName("onnx") ONNX,
    @SerialName("executorch") EXECUTORCH,
    @SerialName("coreml") COREML,
}

@Serializable
enum class Tower {
    @SerialName("image") IMAGE,
    @SerialName("text") TEXT,
}

@Serializable
data class FileEntry(val path: String, val sizeBytes: Long, val sha256: String)

@Serializable
data class TensorInfo(val name: String, val dtype: String, val shape: List<Int>)

@Serializable
data class ModelInfo(val name: String, val trained: Boolean, val logitScale: Double)

@Serializable
data class PreprocessInfo(
    val resolution: Int,
    val mean: List<Float>,
    val std: List<Float>,
    val interpolation: Interpolation,
    val resize: Resize,
    /** The graph takes uint8 RGB (N, R, R, 3) and does everything after the crop itself. */
    val baked: Boolean = false,
)

@Serializable
enum class Interpolation {
    @SerialName("bilinear") BILINEAR,
    @SerialName("bicubic") BICUBIC,
}

@Serializable
enum class Resize {
    /** Shortest side to the resolution, then a centre crop. */
    @SerialName("shortest") SHORTEST,

    /** Both sides, without a crop. */
    @SerialName("squash") SQUASH,
}

@Serializable
data class TokenizerInfo(val file: FileEntry, val contextLength: Int)

@Serializable
data class BundleOptions(val precision: String, val batch: Int, val normalize: Boolean)

@Serializable
data class Artifact(
    val target: Target,
    val tower: Tower,
    val backend: String,
    val path: String,
    val files: List<FileEntry>,
    val input: TensorInfo,
    val output: TensorInfo,
)

@Serializable
data class Manifest(
    val model: ModelInfo,
    /** Embeddings may be compared where this is equal: same weights, preprocessing and tokenizer. */
    val embeddingSpace: String,
    val embedDim: Int,
    val options: BundleOptions,
    val preprocess: PreprocessInfo,
    val tokenizer: TokenizerInfo,
    val artifacts: List<Artifact>,
    val golden: FileEntry,
    val reference: FileEntry,
) {
    companion object {
        const val SCHEMA_VERSION = "1"
        private const val MAX_RESOLUTION = 1024

        /**
         * The manifest in a JSON text, checked: its schema version, its own hash, that its paths stay inside and that its parts fit together.
         *
         * @throws MobileClipException it is none, or not of this version, or was edited
         */
        fun parse(text: String): Manifest = try {
            read(text)
        } catch (e: StackOverflowError) {
            throw MobileClipException("manifest.json is nested too deeply; export the bundle again", e)
        }

        private fun read(text: String): Manifest {
            val document = try {
                jsonObject(text)
            } catch (e: IllegalArgumentException) {
                throw MobileClipException("manifest.json is no JSON object; copy the bundle again", e)
            }
            val version = document["schema_version"]
            if (version !is JsonPrimitive || version.isString || version.content != SCHEMA_VERSION) {
                throw MobileClipException("the bundle has schema version ${version.toString().take(20)}, this app reads $SCHEMA_VERSION; export it again, or update the app")
            }
            val seal = (document["manifest_sha256"] as? JsonPrimitive)?.content
            val rest = JsonObject(document - "manifest_sha256")
            if (seal != sha256(canonical(rest).toByteArray(Charsets.UTF_8))) {
                throw MobileClipException("manifest.json was changed after the export; export the bundle again instead of editing it")
            }
            return try {
                JSON.decodeFromJsonElement<Manifest>(rest).also { it.check() }
            } catch (e: IllegalArgumentException) {
                throw MobileClipException("manifest.json does not fit together (${e.reason()}); export the bundle again", e)
            }
        }

        private fun Manifest.check() {
            val side = preprocess.resolution
            require(side in 1..MAX_RESOLUTION) { "a resolution of $side" }
            require(HASH.matches(embeddingSpace)) { "the embedding space" }
            require(embedDim in 1..EmbeddingIndex.MAX_WIDTH) { "embeddings of $embedDim numbers" }
            require(preprocess.mean.size == 3 && preprocess.std.size == 3) { "mean and std need three values each" }
            val pixels = if (preprocess.baked) "uint8" to listOf(options.batch, side, side, 3) else "float32" to listOf(options.batch, 3, side, side)
            for (artifact in artifacts) {
                val wanted = when (artifact.tower) {
                    Tower.IMAGE -> TensorInfo("image", pixels.first, pixels.second)
                    Tower.TEXT -> TensorInfo("tokens", "int32", listOf(options.batch, tokenizer.contextLength))
                }
                require(artifact.input == wanted && wanted.shape.all { it > 0 } && wanted.shape.fold(4.0) { a, b -> a * b } <= Int.MAX_VALUE) {
                    "${artifact.path} takes ${artifact.input}"
                }
                require(artifact.output == TensorInfo("embedding", "float32", listOf(options.batch, embedDim))) {
                    "${artifact.path} gives ${artifact.output}"
                }
                require(artifact.files.isNotEmpty() && artifact.files.all { it.path == artifact.path || it.path.startsWith("${artifact.path}/") }) {
                    "${artifact.path} is not among its files"
                }
            }
            for (file in files) {
                require(staysInside(file.path)) { "${file.path} leaves the bundle" }
                require(file.sizeBytes >= 0 && HASH.matches(file.sha256)) { "the size or hash of ${file.path}" }
            }
        }

        /** JSON with sorted keys, without spaces, numbers as they stand: what the hash is over. */
        internal fun canonical(value: JsonElement): String = when (value) {
            is JsonObject -> value.entries.sortedWith { a, b -> compareCodePoints(a.key, b.key) }
                .joinToString(",", "{", "}") { "${quoted(it.key)}:${canonical(it.value)}" }
            is JsonArray -> value.joinToString(",", "[", "]", transform = ::canonical)
            is JsonNull -> "null"
            is JsonPrimitive -> if (value.isString) quoted(value.content) else value.content
        }

        private fun compareCodePoints(a: String, b: String): Int = a.codePoints().toArray().let { x ->
            val y = b.codePoints().toArray()
            (0 until minOf(x.size, y.size)).firstOrNull { x[it] != y[it] }?.let { x[it].compareTo(y[it]) } ?: x.size.compareTo(y.size)
        }

        private fun quoted(text: String): String = buildString {
            append('"')
            for (c in text) {
                when (c) {
                    '"', '\\' -> append('\\').append(c)
                    '\n' -> append("\\n")
                    '\r' -> append("\\r")
                    '\t' -> append("\\t")
                    '\b' -> append("\\b")
                    '\u000C' -> append("\\f")
                    in '\u0000'..'\u001F' -> append("\\u00").append(c.code.toString(16).padStart(2, '0'))
                    else -> append(c)
                }
            }
            append('"')
        }

        private val HASH = Regex("[0-9a-f]{64}")
    }

    /** Every file of the bundle but the manifest itself. */
    val files: List<FileEntry> get() = listOf(tokenizer.file, golden, reference) + artifacts.flatMap { it.files }

    /** The artifact of a target and tower, if there is one. */
    fun artifact(target: Target, tower: Tower): Artifact? = artifacts.firstOrNull { it.target == target && it.tower == tower }
}

/** JSON as the toolkit's files have it. */
@OptIn(ExperimentalSerializationApi::class)
val JSON: Json = Json {
    namingStrategy = JsonNamingStrategy.SnakeCase
    ignoreUnknownKeys = true
    encodeDefaults = true
}

/** @throws IllegalArgumentException the text is no JSON object, or is nested so deeply that it cannot be read */
internal fun jsonObject(text: String): JsonObject = try {
    Json.parseToJsonElement(text).jsonObject
} catch (e: StackOverflowError) {
    throw IllegalArgumentException("nested too deeply", e)
}

/** A bundle whose manifest, and every file that an app needs of it, was checked. */
class Bundle private constructor(val folder: File, val manifest: Manifest) {
    fun file(path: String): File = File(folder, path)

    val tokenizer: Tokenizer by lazy {
        Tokenizer.load(file(manifest.tokenizer.file.path)).also {
            if (it.contextLength != manifest.tokenizer.contextLength) {
                throw MobileClipException("the tokenizer's rows have ${it.contextLength} ids, the model's ${manifest.tokenizer.contextLength}; export the bundle again")
            }
        }
    }

    companion object {
        private const val MAX_MANIFEST_BYTES = 16L shl 20

        /**
         * Open a folder.
         *
         * @param targets whose artifacts are needed; files of others may be missing
         * @throws MobileClipException no bundle, damaged, incomplete, or without what is needed
         */
        fun open(folder: File, targets: Set<Target>): Bundle {
            val file = File(folder, "manifest.json")
            if (!file.isFile) throw MobileClipException("${folder.name} is no bundle: it has no manifest.json; make one with: mobileclip export")
            if (file.length() > MAX_MANIFEST_BYTES) throw MobileClipException("manifest.json is too large; export the bundle again")
            val manifest = Manifest.parse(
                try {
                    file.readText()
                } catch (e: IOException) {
                    throw MobileClipException("manifest.json cannot be read (${e.reason()}); copy the bundle again", e)
                },
            )
            val artifacts = manifest.artifacts.filter { it.target in targets }
            if (artifacts.isEmpty()) {
                val wanted = targets.joinToString(" or ") { it.name.lowercase() }
                throw MobileClipException("the bundle has nothing for $wanted; export it with: mobileclip export --target ${targets.first().name.lowercase()}")
            }
            for (entry in listOf(manifest.tokenizer.file, manifest.golden) + artifacts.flatMap { it.files }) check(folder, entry)
            return Bundle(folder, manifest)
        }

        private fun check(folder: File, entry: FileEntry) {
            val file = File(folder, entry.path)
            if (!file.canonicalPath.startsWith(folder.canonicalPath + File.separator)) throw MobileClipException("${entry.path} leads out of the bundle; copy it again")
            if (!file.isFile) throw MobileClipException("${entry.path} is missing; copy the bundle again")
            if (file.length() != entry.sizeBytes || sha256(file) != entry.sha256) {
                throw MobileClipException("${entry.path} is not what was exported (its sha256 differs); copy the bundle again")
            }
        }
    }
}

/** Whether a path, its parts separated by `/`, leads to a place below the folder that it is relative to. */
internal fun staysInside(path: String): Boolean =
    path.isNotEmpty() && !path.startsWith("/") && path.none { it == '\\' || it == ':' || it == '\u0000' } && ".." !in path.split('/')

internal fun sha256(data: ByteArray): String = MessageDigest.getInstance("SHA-256").digest(data).hex()

internal fun sha256(file: File): String {
    val digest = MessageDigest.getInstance("SHA-256")
    file.inputStream().use { input ->
        val buffer = ByteArray(1 shl 16)
        while (true) {
            val n = input.read(buffer)
            if (n < 0) break
            digest.update(buffer, 0, n)
        }
    }
    return digest.digest().hex()
}

private fun ByteArray.hex(): String = joinToString("") { "%02x".format(it) }
