package org.mobileclip.core

import java.io.File
import java.io.OutputStream
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive

/** A bundle whose files hold their own names: everything is right but the models themselves. */
object SmallBundle {
    /** Each file with its content. */
    fun files(): Map<String, ByteArray> {
        val kit = File(System.getProperty("conformance") ?: "../../conformance", "manifests.json")
        val case = Json.parseToJsonElement(kit.readText()).jsonArray.map { it.jsonObject }.first { it.getValue("valid").jsonPrimitive.boolean }
        val files = LinkedHashMap<String, ByteArray>()
        val manifest = JsonObject((withContent(case.getValue("manifest"), files) as JsonObject) - "manifest_sha256")
        val seal = sha256(Manifest.canonical(manifest).toByteArray())
        files["manifest.json"] = JsonObject(manifest + ("manifest_sha256" to JsonPrimitive(seal))).toString().toByteArray()
        return files
    }

    private fun withContent(value: JsonElement, files: MutableMap<String, ByteArray>): JsonElement = when {
        value is JsonArray -> JsonArray(value.map { withContent(it, files) })
        value is JsonObject && "size_bytes" in value -> {
            val path = value.getValue("path").jsonPrimitive.content
            val content = path.toByteArray().also { files[path] = it }
            JsonObject(value + mapOf("size_bytes" to JsonPrimitive(content.size), "sha256" to JsonPrimitive(sha256(content))))
        }
        value is JsonObject -> JsonObject(value.mapValues { withContent(it.value, files) })
        else -> value
    }

    fun zip(files: Map<String, ByteArray>, out: OutputStream) = ZipOutputStream(out).use { zip ->
        for ((path, content) in files) {
            zip.putNextEntry(ZipEntry(path))
            zip.write(content)
        }
    }
}
