package org.mobileclip.app.ui

import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.ExperimentalLayoutApi
import androidx.compose.foundation.layout.FlowRow
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.Spacer
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.height
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.Button
import androidx.compose.material3.FilterChip
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedButton
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.text.font.FontWeight
import androidx.compose.ui.unit.dp
import org.mobileclip.app.state.BenchmarkState
import org.mobileclip.app.state.ModelState
import org.mobileclip.core.QuickResult
import org.mobileclip.core.Settings
import org.mobileclip.core.Tower

/** Times the model on this phone. */
@OptIn(ExperimentalLayoutApi::class)
@Composable
fun BenchmarkScreen(
    state: BenchmarkState, device: String, model: ModelState, settings: Settings, onStart: (List<String>) -> Unit, onStop: () -> Unit,
    onSettings: () -> Unit,
) {
    val providers = Settings.providers(settings.target)
    var chosen by rememberSaveable(settings.target) { mutableStateOf(listOf(settings.provider)) }
    Column(Modifier.fillMaxSize().verticalScroll(rememberScrollState()), verticalArrangement = Arrangement.spacedBy(14.dp)) {
        Title("Benchmark", "Latency of both towers on $device. A quick look: numbers to report come from mobileclip bench.")
        ModelNotice(model, onSettings)
        FlowRow(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
            for (provider in providers) {
                FilterChip(
                    selected = provider in chosen, enabled = !state.running, label = { Text(name(provider)) },
                    onClick = { chosen = providers.filter { (it in chosen) != (it == provider) } },
                )
            }
        }
        Row(verticalAlignment = Alignment.CenterVertically, horizontalArrangement = Arrangement.spacedBy(12.dp)) {
            if (state.running) {
                OutlinedButton(onStop) { Text("Stop") }
            } else {
                Button({ onStart(chosen) }, enabled = model is ModelState.Ready && chosen.isNotEmpty()) { Text("Measure") }
            }
            Text(
                if (state.running) state.step else if (settings.threads == 1) "1 thread" else "${settings.threads} threads", style = MaterialTheme.typography.bodyMedium,
                color = MaterialTheme.colorScheme.onSurfaceVariant, maxLines = 1,
            )
        }
        if (state.running) LinearProgressIndicator(Modifier.fillMaxWidth())
        state.message?.let { Notice(it) }
        for (tower in Tower.entries) {
            val results = state.results.filter { it.task.tower == tower }
            if (results.isNotEmpty()) TowerPanel(tower, results)
        }
        Spacer(Modifier.height(8.dp))
    }
}

@Composable
private fun TowerPanel(tower: Tower, results: List<QuickResult>) = Panel {
    Text(if (tower == Tower.IMAGE) "Image tower" else "Text tower", style = MaterialTheme.typography.titleMedium, fontWeight = FontWeight.SemiBold)
    val timed = results.filter { it.latencyMs.isNotEmpty() }
    if (timed.isNotEmpty()) LatencyChart(timed)
    for (result in results) {
        if (result.latencyMs.isEmpty()) {
            Fact("${name(result.task.provider)}: ${result.error}", good = false)
        } else {
            Row(verticalAlignment = Alignment.CenterVertically) {
                Key(results.indexOf(result))
                Column(Modifier.weight(1f)) {
                    Text("${name(result.task.provider)}, ${result.engine}", style = MaterialTheme.typography.bodyMedium)
                    Text(
                        "load %.0f ms, first %.1f ms, %d runs".format(result.loadMs, result.firstRunMs, result.latencyMs.size),
                        style = MaterialTheme.typography.bodySmall, color = MaterialTheme.colorScheme.onSurfaceVariant,
                    )
                }
                Column(horizontalAlignment = Alignment.End) {
                    Text("%.2f ms".format(result.p50), style = MaterialTheme.typography.titleMedium, fontWeight = FontWeight.SemiBold)
                    Text("p90 %.2f".format(result.p90), style = MaterialTheme.typography.bodySmall, color = MaterialTheme.colorScheme.onSurfaceVariant)
                }
            }
        }
    }
}

internal fun name(provider: String): String = when (provider) {
    "cpu" -> "CPU"
    "xnnpack" -> "XNNPACK"
    "nnapi" -> "NNAPI"
    "qnn" -> "QNN"
    else -> provider
}
