package org.mobileclip.phone

import android.app.Activity
import android.app.Application
import android.os.Bundle

/** Knows whether an activity of the app is in front, and whether it has been all the time. */
class Foreground : Application.ActivityLifecycleCallbacks {
    private val inFront = HashSet<Activity>()
    private var left = true

    /** Whether it has been in front since this was asked the last time. */
    @Synchronized
    fun sinceAsked(): Boolean = !left.also { left = inFront.isEmpty() }

    @Synchronized
    override fun onActivityResumed(activity: Activity) {
        inFront.add(activity)
    }

    @Synchronized
    override fun onActivityPaused(activity: Activity) {
        inFront.remove(activity)
        if (inFront.isEmpty()) left = true
    }

    override fun onActivityCreated(activity: Activity, state: Bundle?) = Unit

    override fun onActivityStarted(activity: Activity) = Unit

    override fun onActivityStopped(activity: Activity) = Unit

    override fun onActivitySaveInstanceState(activity: Activity, state: Bundle) = Unit

    override fun onActivityDestroyed(activity: Activity) = Unit
}
