package org.mobileclip.core

/** What the app may see of the phone's photos. */
enum class PhotoAccess {
    ALL,

    /** Those that the user has picked, on Android 14 and later. */
    SOME,
    NONE;

    companion object {
        private const val IMAGES = "android.permission.READ_MEDIA_IMAGES"
        private const val PICKED = "android.permission.READ_MEDIA_VISUAL_USER_SELECTED"
        private const val STORAGE = "android.permission.READ_EXTERNAL_STORAGE"

        /** What to ask for on a version of Android, by its API level. */
        fun permissions(api: Int): List<String> = when {
            api >= 34 -> listOf(IMAGES, PICKED)
            api >= 33 -> listOf(IMAGES)
            else -> listOf(STORAGE)
        }

        fun of(api: Int, granted: (String) -> Boolean): PhotoAccess = when {
            granted(if (api >= 33) IMAGES else STORAGE) -> ALL
            api >= 34 && granted(PICKED) -> SOME
            else -> NONE
        }
    }
}
