package org.mobileclip.core

/** What went wrong and what to do about it, in one line for a person. */
class MobileClipException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** What a library said, short enough to stand inside a message of ours: its first line. */
fun Throwable.reason(limit: Int = 160): String = (message ?: javaClass.simpleName).lineSequence().first().take(limit)
