package org.mobileclip.core

/** What Android tells about itself, in the protocol's words. */
object AndroidFacts {
    /** Of `PowerManager.getCurrentThermalStatus`, NONE (0) to SHUTDOWN (6). */
    fun thermal(status: Int): Thermal = when (status) {
        0 -> Thermal.NOMINAL
        1, 2 -> Thermal.FAIR
        3 -> Thermal.SERIOUS
        4, 5, 6 -> Thermal.CRITICAL
        else -> Thermal.UNKNOWN
    }

    /** The largest memory of a process so far, in bytes, from its `/proc/self/status`. */
    fun peakMemoryBytes(status: String): Long? =
        Regex("^VmHWM:\\s*(\\d{1,15}) kB", RegexOption.MULTILINE).find(status)?.let { it.groupValues[1].toLong() * 1024 }

    /** Whether a build is an emulator's, by its hardware and product as `Build` has them. */
    fun emulated(hardware: String, product: String): Boolean =
        hardware in setOf("goldfish", "ranchu", "cutf_cvm", "vsoc_x86") || product.startsWith("sdk") || "emulator" in product
}
