/* Declarations of what the app uses of androidx.activity, whose jars no registry but Google's has. They say what there is, and do nothing. */
package androidx.activity

import android.app.Activity
import androidx.activity.result.ActivityResultLauncher
import androidx.activity.result.contract.ActivityResultContract
import androidx.lifecycle.Lifecycle
import androidx.lifecycle.LifecycleOwner

open class ComponentActivity : Activity(), LifecycleOwner {
    override val lifecycle: Lifecycle get() = throw NotImplementedError()

    fun <I, O> registerForActivityResult(contract: ActivityResultContract<I, O>, callback: (O) -> Unit): ActivityResultLauncher<I> = throw NotImplementedError()
}

fun ComponentActivity.enableEdgeToEdge(): Unit = throw NotImplementedError()
