package org.mobileclip.core

/** What went wrong and what to do about it, in one line for a person. */
class MobileClipException(message: String, cause: Throwable? = null) : Exception(message, cause)
