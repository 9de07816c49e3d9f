/* Declarations of the two functions of androidx.compose.ui that only Android's edition of it has, as activity.kt. */
package androidx.compose.ui.viewinterop

import android.content.Context
import android.view.View
import androidx.compose.runtime.Composable
import androidx.compose.ui.Modifier

@Composable
fun <T : View> AndroidView(factory: (Context) -> T, modifier: Modifier = Modifier): Unit = throw NotImplementedError()
