package org.mobileclip.phone

import android.app.ActivityManager
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import android.provider.Settings
import java.io.File
import java.io.IOException
import org.mobileclip.core.AndroidFacts
import org.mobileclip.core.BenchDevice
import org.mobileclip.core.BenchHost
import org.mobileclip.core.BenchRequest
import org.mobileclip.core.BenchState
import org.mobileclip.core.Session
import org.mobileclip.core.Thermal

/**
 * This phone, as the benchmark protocol asks about it.
 *
 * @param foreground whether the app has been in front since it was asked the last time
 */
class PhoneBenchHost(private val context: Context, private val foreground: () -> Boolean?) : BenchHost {
    private val power = context.getSystemService(PowerManager::class.java)

    override val device: BenchDevice by lazy {
        val memory = context.getSystemService(ActivityManager::class.java)?.let { manager -> ActivityManager.MemoryInfo().also(manager::getMemoryInfo) }
        BenchDevice(
            name = Settings.Global.getString(context.contentResolver, Settings.Global.DEVICE_NAME) ?: Build.MODEL,
            model = Build.MODEL,
            soc = if (Build.VERSION.SDK_INT >= 31) "${Build.SOC_MANUFACTURER} ${Build.SOC_MODEL}" else Build.HARDWARE,
            os = "Android ${Build.VERSION.RELEASE} (API ${Build.VERSION.SDK_INT})",
            architecture = Build.SUPPORTED_ABIS.first(),
            logicalCores = Runtime.getRuntime().availableProcessors(),
            memoryBytes = memory?.totalMem,
            emulated = AndroidFacts.emulated(Build.HARDWARE, Build.PRODUCT),
        )
    }

    override fun state(moment: String): BenchState {
        val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED)) // sticky: it comes back at once
        val level = battery?.getIntExtra(BatteryManager.EXTRA_LEVEL, -1) ?: -1
        val scale = battery?.getIntExtra(BatteryManager.EXTRA_SCALE, -1) ?: -1
        return BenchState(
            moment = moment,
            thermal = if (power != null && Build.VERSION.SDK_INT >= 29) AndroidFacts.thermal(power.currentThermalStatus) else Thermal.UNKNOWN,
            batteryPercent = if (level >= 0 && scale > 0) (100.0 * level / scale).coerceAtMost(100.0) else null,
            charging = battery?.let { it.getIntExtra(BatteryManager.EXTRA_PLUGGED, 0) != 0 },
            lowPower = power?.isPowerSaveMode,
            foreground = foreground(),
        )
    }

    override fun load(folder: File, request: BenchRequest): Session =
        Runtimes.load(request.target, File(folder, request.artifact), request.input, request.output, request.provider, request.threads)

    override fun peakMemoryBytes(): Long? = try {
        AndroidFacts.peakMemoryBytes(File("/proc/self/status").readText())
    } catch (_: IOException) {
        null
    }
}
