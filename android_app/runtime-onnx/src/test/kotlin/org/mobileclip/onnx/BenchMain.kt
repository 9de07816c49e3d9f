package org.mobileclip.onnx

import java.io.File
import java.net.InetAddress
import org.mobileclip.core.BenchDevice
import org.mobileclip.core.BenchHost
import org.mobileclip.core.BenchRequest
import org.mobileclip.core.BenchRunner
import org.mobileclip.core.BenchState
import org.mobileclip.core.Session
import org.mobileclip.core.Thermal

/** The benchmark of the app on this computer: does the plan in a folder. */
fun main(arguments: Array<String>) {
    val host = object : BenchHost {
        override val device = BenchDevice(name = "JVM", model = InetAddress.getLoopbackAddress().hostName, os = System.getProperty("os.name"), emulated = true)

        override fun state(moment: String) = BenchState(moment, Thermal.NOMINAL)

        override fun load(folder: File, request: BenchRequest): Session =
            OnnxSession.load(File(folder, request.artifact), request.input, request.output, request.provider, request.threads)
    }
    BenchRunner(File(arguments[0]), host) { println("MOBILECLIP $it") }.run()
}
