package org.mobileclip.bench

import android.app.Activity
import android.app.Application
import android.app.Instrumentation
import android.content.Intent
import android.os.Bundle
import java.io.File
import org.mobileclip.core.BenchRunner
import org.mobileclip.core.MobileClipException
import org.mobileclip.phone.Foreground
import org.mobileclip.phone.PhoneBenchHost

/**
 * Does a plan that `mobileclip bench --via app` has copied into the app's folder:
 *
 *     am instrument -w -r -e plan files/FOLDER/plan.json org.mobileclip.bench/.BenchInstrumentation
 *
 * The path is relative to the app's data folder. Lines `MOBILECLIP {...}` tell how it goes; what was measured lies beside the plan.
 */
class BenchInstrumentation : Instrumentation() {
    private val foreground = Foreground()
    private var plan = ""

    override fun onCreate(arguments: Bundle) {
        super.onCreate(arguments)
        plan = arguments.getString("plan").orEmpty()
        start()
    }

    override fun callApplicationOnCreate(app: Application) {
        app.registerActivityLifecycleCallbacks(foreground)
        super.callApplicationOnCreate(app)
    }

    /** On a thread of its own. */
    override fun onStart() {
        super.onStart()
        val file = File(targetContext.dataDir, plan)
        try {
            if (plan.isEmpty() || !file.isFile) throw MobileClipException("there is no plan ${plan.ifEmpty { "given" }}; start it with: mobileclip bench --via app")
            // in the background the system would slow it down
            val screen = startActivitySync(Intent(targetContext, BenchActivity::class.java).addFlags(Intent.FLAG_ACTIVITY_NEW_TASK))
            foreground.sinceAsked()
            val folder = file.parentFile ?: targetContext.filesDir
            BenchRunner(folder, PhoneBenchHost(targetContext, foreground::sinceAsked), ::tell).run()
            runOnMainSync { screen.finish() }
            finish(Activity.RESULT_OK, Bundle())
        } catch (e: MobileClipException) { // others are bugs: the system prints them, and the host quotes it
            finish(Activity.RESULT_CANCELED, Bundle().apply { putString("refused", e.message) })
        }
    }

    private fun tell(line: String) = sendStatus(0, Bundle().apply { putString("stream", "MOBILECLIP $line") })
}
