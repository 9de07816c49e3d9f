package org.mobileclip.core

/** What went wrong and what to do about it, in one line for a person. */
class MobileClipException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** What a library said, short enough to stand inside a message of ours: its first line that says anything. */
fun Throwable.reason(limit: Int = 160): String = (message.orEmpty().lineSequence().firstOrNull { it.isNotBlank() } ?: javaClass.simpleName).take(limit)
