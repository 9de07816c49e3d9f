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
import androidx.compose.foundation.layout.width
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.selection.selectable
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.FilledTonalButton
import androidx.compose.material3.FilterChip
import androidx.compose.material3.Icon
import androidx.compose.material3.IconButton
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedButton
import androidx.compose.material3.RadioButton
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.semantics.Role
import androidx.compose.ui.text.font.FontWeight
import androidx.compose.ui.unit.dp
import org.mobileclip.app.state.ModelState
import org.mobileclip.core.BundleStore
import org.mobileclip.core.Settings
import org.mobileclip.core.Target
import org.mobileclip.core.Tower

/** What the settings screen shows. */
data class SettingsView(val model: ModelState, val settings: Settings, val bundles: List<String>, val copiedBytes: Long?, val message: String?)

/** What can be done there. */
class SettingsActions(
    val choose: (String) -> Unit, val remove: (String) -> Unit, val addZip: () -> Unit, val addFolder: () -> Unit, val change: (Settings) -> Unit,
    val dismiss: () -> Unit,
)

/** The model and what runs it. */
@OptIn(ExperimentalLayoutApi::class)
@Composable
fun SettingsScreen(view: SettingsView, actions: SettingsActions) {
    val settings = view.settings
    Column(Modifier.fillMaxSize().verticalScroll(rememberScrollState()), verticalArrangement = Arrangement.spacedBy(14.dp)) {
        Title("Settings", "The app has no access to the network; bundles come from files.")
        view.message?.let { Notice(it, action = "Dismiss", onAction = actions.dismiss) }
        Panel {
            Heading("Bundle")
            for (name in view.bundles) {
                Row(
                    Modifier.fillMaxWidth().selectable(name == settings.bundle, role = Role.RadioButton) { actions.choose(name) },
                    verticalAlignment = Alignment.CenterVertically,
                ) {
                    RadioButton(selected = name == settings.bundle, onClick = null)
                    Spacer(Modifier.width(12.dp))
                    Text(name, Modifier.weight(1f), style = MaterialTheme.typography.bodyLarge, maxLines = 1)
                    IconButton({ actions.remove(name) }) { Icon(Icons.Close, contentDescription = "Remove $name") }
                }
            }
            if (view.bundles.isEmpty()) Text("None yet. Make one with mobileclip export and copy it to the phone.", style = MaterialTheme.typography.bodyMedium)
            if (view.copiedBytes != null) {
                Text("Copying: %.1f MiB".format(view.copiedBytes / 1048576.0), style = MaterialTheme.typography.bodyMedium)
                LinearProgressIndicator(Modifier.fillMaxWidth())
            }
            Row(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
                FilledTonalButton(actions.addZip, enabled = view.copiedBytes == null) { Text("Add a zip") }
                OutlinedButton(actions.addFolder, enabled = view.copiedBytes == null) { Text("Add a folder") }
            }
        }
        ModelPanel(view.model)
        Panel {
            Heading("Runtime")
            FlowRow(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
                for (target in BundleStore.ON_PHONES) {
                    FilterChip(
                        selected = target == settings.target, label = { Text(if (target == Target.ONNX) "ONNX Runtime" else "ExecuTorch") },
                        onClick = { actions.change(settings.copy(target = target, provider = Settings.providers(target).first())) },
                    )
                }
            }
            FlowRow(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
                for (provider in Settings.providers(settings.target)) {
                    FilterChip(selected = provider == settings.provider, label = { Text(name(provider)) }, onClick = { actions.change(settings.copy(provider = provider)) })
                }
            }
            FlowRow(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
                for (threads in listOf(1, 2, 4, 6)) {
                    FilterChip(
                        selected = threads == settings.threads, label = { Text(if (threads == 1) "1 thread" else "$threads") },
                        onClick = { actions.change(settings.copy(threads = threads)) },
                    )
                }
            }
        }
        Spacer(Modifier.height(8.dp))
    }
}

@Composable
private fun Heading(text: String) = Text(text, style = MaterialTheme.typography.titleMedium, fontWeight = FontWeight.SemiBold)

@Composable
private fun ModelPanel(model: ModelState) = when (model) {
    ModelState.None -> Unit
    is ModelState.Busy -> Panel {
        Text("${model.step} \u2026", style = MaterialTheme.typography.bodyMedium)
        LinearProgressIndicator(Modifier.fillMaxWidth())
    }
    is ModelState.Failed -> Panel { Fact(model.message, good = false) }
    is ModelState.Ready -> Panel {
        val manifest = model.bundle.manifest
        Heading(manifest.model.name)
        Text(
            "${manifest.options.precision}, ${manifest.preprocess.resolution} px, ${manifest.embedDim} numbers, ${manifest.tokenizer.contextLength} tokens",
            style = MaterialTheme.typography.bodyMedium, color = MaterialTheme.colorScheme.onSurfaceVariant,
        )
        Fact("All files are as they were exported", good = true)
        for ((tower, cosine) in model.golden.cosines) {
            val which = if (tower == Tower.IMAGE) "pictures" else "captions"
            val good = cosine >= model.golden.bar
            val told = if (good) "reproduces the golden $which (cosine %.6f)" else "does not reproduce the golden $which: cosine %.6f, must be ${model.golden.bar}"
            Fact("This phone $told".format(cosine), good)
        }
        if (!manifest.model.trained) Fact("Weights of a recipe, not trained: predictions mean nothing", good = false)
        Text("Embedding space ${manifest.embeddingSpace.take(12)}", style = MaterialTheme.typography.bodySmall, color = MaterialTheme.colorScheme.onSurfaceVariant)
    }
}
