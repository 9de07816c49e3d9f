package org.mobileclip.bench

import android.app.Activity
import android.os.Build
import android.os.Bundle
import android.view.Gravity
import android.view.WindowManager
import android.widget.TextView

/** Keeps the app in front and the screen on while it measures; nothing on it moves, as that would be measured too. */
class BenchActivity : Activity() {
    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        if (Build.VERSION.SDK_INT >= 27) {
            setShowWhenLocked(true)
            setTurnScreenOn(true)
        }
        setContentView(
            TextView(this).apply {
                text = "Measuring. Leave this in front."
                gravity = Gravity.CENTER
                textSize = 20f
            },
        )
    }
}
