package org.mobileclip.app

import android.content.ContentResolver
import android.net.Uri
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import android.provider.OpenableColumns
import java.io.IOException
import java.io.InputStream
import org.mobileclip.core.BundleSource
import org.mobileclip.core.ZipSource
import org.mobileclip.core.reason

/** Bundles that the user has picked in Android's file chooser. */
class PickedFiles(private val resolver: ContentResolver) {
    fun zip(place: Uri): BundleSource = ZipSource { open(place) }

    fun folder(tree: Uri): BundleSource = BundleSource { take -> visit(tree, DocumentsContract.getTreeDocumentId(tree), "", 0, take) }

    /** What the chooser shows for it, without a zip's extension. */
    fun name(place: Uri): String = try {
        val document = if (DocumentsContract.isTreeUri(place)) DocumentsContract.buildDocumentUriUsingTree(place, DocumentsContract.getTreeDocumentId(place)) else place
        val shown = resolver.query(document, arrayOf(OpenableColumns.DISPLAY_NAME), null, null, null)?.use { if (it.moveToFirst()) it.getString(0) else null }
        shown.orEmpty().removeSuffix(".zip")
    } catch (_: RuntimeException) { // of the app that holds it
        ""
    }

    private fun visit(tree: Uri, folder: String, path: String, depth: Int, take: (String, InputStream) -> Unit) {
        if (depth > MAX_DEPTH) throw IOException("its folders lie too deep")
        val children = ArrayList<Triple<String, String, Boolean>>()
        val asked = arrayOf(Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_MIME_TYPE)
        val cursor = try {
            resolver.query(DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder), asked, null, null, null)
        } catch (e: RuntimeException) {
            throw IOException(e.reason(), e)
        } ?: throw IOException("the folder cannot be read")
        cursor.use { while (it.moveToNext()) children.add(Triple(it.getString(0), it.getString(1).orEmpty(), it.getString(2) == Document.MIME_TYPE_DIR)) }
        for ((id, name, isFolder) in children) {
            if (isFolder) {
                visit(tree, id, "$path$name/", depth + 1, take)
            } else {
                open(DocumentsContract.buildDocumentUriUsingTree(tree, id)).use { take("$path$name", it) }
            }
        }
    }

    private fun open(place: Uri): InputStream = try {
        resolver.openInputStream(place) ?: throw IOException("it cannot be opened")
    } catch (e: RuntimeException) {
        throw IOException(e.reason(), e)
    }

    private companion object {
        const val MAX_DEPTH = 8
    }
}
