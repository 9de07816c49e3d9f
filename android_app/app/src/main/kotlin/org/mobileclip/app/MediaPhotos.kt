package org.mobileclip.app

import android.content.ContentUris
import android.content.Context
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.net.Uri
import android.os.Build
import android.provider.MediaStore.Images.Media
import android.util.Size
import java.io.IOException
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.Photo
import org.mobileclip.core.PhotoAccess
import org.mobileclip.core.PhotoLibrary
import org.mobileclip.core.Picture

/** The photos that Android's media store shows to this app. */
class MediaPhotos(private val context: Context) : PhotoLibrary {
    private val reader = PictureReader(context.contentResolver)

    fun access(): PhotoAccess = PhotoAccess.of(Build.VERSION.SDK_INT) { context.checkSelfPermission(it) == PackageManager.PERMISSION_GRANTED }

    override val complete: Boolean get() = access() == PhotoAccess.ALL

    override fun photos(): List<Photo> {
        if (access() == PhotoAccess.NONE) throw MobileClipException("the app may not see your photos; allow it in the system's settings")
        val cursor = try {
            context.contentResolver.query(Media.EXTERNAL_CONTENT_URI, arrayOf(Media._ID, Media.DATE_MODIFIED), null, null, "${Media.DATE_MODIFIED} DESC")
        } catch (e: SecurityException) {
            throw MobileClipException("the app may not see your photos; allow it in the system's settings", e)
        } ?: throw MobileClipException("the phone's media store does not answer; restart the phone")
        return cursor.use { List(it.count) { row -> it.moveToPosition(row); Photo(it.getLong(0), it.getLong(1)) } }
    }

    override fun picture(id: Long): Picture = reader.picture(place(id))

    /** A small picture of a photo, or null if it is gone. */
    fun thumbnail(id: Long): Bitmap? = try {
        if (Build.VERSION.SDK_INT >= 29) context.contentResolver.loadThumbnail(place(id), Size(THUMBNAIL, THUMBNAIL), null) else reader.bitmap(place(id), THUMBNAIL)
    } catch (_: IOException) {
        null
    } catch (_: SecurityException) { // with partial access it may be allowed no longer
        null
    }

    private fun place(id: Long): Uri = ContentUris.withAppendedId(Media.EXTERNAL_CONTENT_URI, id)

    private companion object {
        const val THUMBNAIL = 256
    }
}
