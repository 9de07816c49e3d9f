package org.mobileclip.core

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.long

/** A safetensors file, mapped into memory; every offset was checked. */
class SafeTensors private constructor(private val tensors: Map<String, Tensor>, val metadata: Map<String, String>) {
    /** @property data little-endian values, for one reader: it has a position */
    class Tensor(val dtype: String, val shape: List<Int>, private val bytes: ByteBuffer) {
        val data: ByteBuffer get() = bytes.duplicate().order(ByteOrder.LITTLE_ENDIAN)

        /** The values of an F32 tensor. */
        fun floats(): FloatArray {
            require(dtype == "F32") { "the tensor holds $dtype, not F32" }
            return FloatArray(data.remaining() / 4).also { data.asFloatBuffer().get(it) }
        }

        /** The values of an I32 tensor. */
        fun ints(): IntArray {
            require(dtype == "I32") { "the tensor holds $dtype, not I32" }
            return IntArray(data.remaining() / 4).also { data.asIntBuffer().get(it) }
        }

        /** The values of a U8 tensor. */
        fun bytes(): ByteArray {
            require(dtype == "U8") { "the tensor holds $dtype, not U8" }
            return ByteArray(data.remaining()).also { data.get(it) }
        }
    }

    val names: Set<String> get() = tensors.keys

    operator fun get(name: String): Tensor = tensors[name] ?: throw MobileClipException("the file holds no $name; export the bundle again")

    companion object {
        private const val MAX_HEADER_BYTES = 16L shl 20
        private val WIDTHS = mapOf("F32" to 4, "I32" to 4, "F16" to 2, "U8" to 1, "I64" to 8)

        fun open(file: File): SafeTensors = try {
            RandomAccessFile(file, "r").use { read(it.channel) }
        } catch (e: IOException) {
            throw MobileClipException("${file.name} cannot be read (${e.reason()}); copy the bundle again", e)
        } catch (e: IllegalArgumentException) { // SerializationException is one
            throw damaged(file, e)
        } catch (e: ArithmeticException) {
            throw damaged(file, e)
        }

        private fun damaged(file: File, e: Exception) =
            MobileClipException("${file.name} is damaged (${e.reason()}); copy the bundle again", e)

        private fun read(channel: FileChannel): SafeTensors {
            val size = channel.size()
            require(size in 8..Int.MAX_VALUE.toLong()) { "a size of $size bytes" }
            val whole = channel.map(FileChannel.MapMode.READ_ONLY, 0, size).order(ByteOrder.LITTLE_ENDIAN)
            val headerBytes = whole.getLong(0)
            require(headerBytes in 2..minOf(MAX_HEADER_BYTES, size - 8)) { "a header of $headerBytes bytes" }
            val text = ByteArray(headerBytes.toInt()).also { whole.position(8); whole.get(it) }.toString(Charsets.UTF_8)
            val header = jsonObject(text)
            val metadata = header["__metadata__"]?.jsonObject?.mapValues { it.value.jsonPrimitive.content }.orEmpty()
            val tensors = header.filterKeys { it != "__metadata__" }.mapValues { (name, about) -> tensor(name, about.jsonObject, whole, 8 + headerBytes) }
            return SafeTensors(tensors, metadata)
        }

        private fun tensor(name: String, about: JsonObject, whole: ByteBuffer, start: Long): Tensor {
            val dtype = requireNotNull(about["dtype"]) { "$name has no type" }.jsonPrimitive.content
            val width = requireNotNull(WIDTHS[dtype]) { "$name is of type $dtype" }
            val shape = requireNotNull(about["shape"]) { "$name has no shape" }.jsonArray.map { it.jsonPrimitive.int }
            val offsets = requireNotNull(about["data_offsets"]) { "$name has no place" }.jsonArray.map { it.jsonPrimitive.long }
            require(offsets.size == 2 && offsets[0] in 0..offsets[1] && offsets[1] <= whole.limit() - start) { "$name lies outside" }
            require(shape.all { it >= 0 } && shape.fold(width.toLong()) { a, b -> Math.multiplyExact(a, b.toLong()) } == offsets[1] - offsets[0]) {
                "$name has another size than its shape"
            }
            val part = whole.duplicate()
            part.position((start + offsets[0]).toInt()).limit((start + offsets[1]).toInt())
            return Tensor(dtype, shape, part.slice())
        }
    }
}
