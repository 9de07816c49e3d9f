/* As compose_android.kt. */
package androidx.compose.ui.graphics

import android.graphics.Bitmap

fun Bitmap.asImageBitmap(): ImageBitmap = throw NotImplementedError()
