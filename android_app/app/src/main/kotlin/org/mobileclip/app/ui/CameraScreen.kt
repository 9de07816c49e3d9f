package org.mobileclip.app.ui

import androidx.compose.foundation.background
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Box
import androidx.compose.foundation.layout.BoxWithConstraints
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.Spacer
import androidx.compose.foundation.layout.aspectRatio
import androidx.compose.foundation.layout.fillMaxHeight
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.heightIn
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.size
import androidx.compose.foundation.layout.width
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.shape.CircleShape
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.AlertDialog
import androidx.compose.material3.FilledTonalButton
import androidx.compose.material3.Icon
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Text
import androidx.compose.material3.TextButton
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.draw.clip
import androidx.compose.ui.graphics.Color
import androidx.compose.ui.unit.dp
import org.mobileclip.app.state.ClassifierState
import org.mobileclip.app.state.ModelState
import org.mobileclip.core.Settings

/** What the camera screen can show. */
enum class CameraAccess { READY, NOT_ASKED, DENIED, NO_CAMERA }

/**
 * Classifies what the camera sees, or a photo that the user picks where there is no camera.
 *
 * @param preview draws what is classified
 */
@Composable
fun CameraScreen(
    state: ClassifierState, model: ModelState, settings: Settings, access: CameraAccess, preview: @Composable (Modifier) -> Unit,
    onAllow: () -> Unit, onPick: () -> Unit, onPrompts: (Settings) -> Unit, onSettings: () -> Unit,
) {
    var editing by rememberSaveable { mutableStateOf(false) }
    val seen = @Composable { modifier: Modifier -> Seen(state, model, preview, modifier) }
    val said = @Composable {
        AccessNotice(access, onAllow, onPick)
        ModelNotice(model, onSettings)
        state.message?.let { Notice(it) }
        state.guesses.forEachIndexed { i, guess ->
            Bar(guess.label, "%.1f %%".format(100 * guess.probability), guess.probability.toFloat(), strong = i == 0)
        }
        Prompts(settings) { editing = true }
    }
    BoxWithConstraints(Modifier.fillMaxSize().padding(vertical = 16.dp)) {
        if (maxWidth > maxHeight) { // a phone that was turned, or a tablet: beside each other
            Row(horizontalArrangement = Arrangement.spacedBy(18.dp)) {
                seen(Modifier.fillMaxHeight().aspectRatio(1f, matchHeightConstraintsFirst = true))
                Column(Modifier.weight(1f).verticalScroll(rememberScrollState()), verticalArrangement = Arrangement.spacedBy(14.dp)) { said() }
            }
        } else {
            Column(Modifier.verticalScroll(rememberScrollState()), verticalArrangement = Arrangement.spacedBy(14.dp)) {
                seen(Modifier.fillMaxWidth().aspectRatio(1f))
                said()
            }
        }
    }
    if (editing) PromptsDialog(settings, onDone = { editing = false }, onPrompts)
}

/** What is classified, by which model, and how long it takes. */
@Composable
private fun Seen(state: ClassifierState, model: ModelState, preview: @Composable (Modifier) -> Unit, modifier: Modifier) =
    Box(modifier.clip(MaterialTheme.shapes.large).background(MaterialTheme.colorScheme.surfaceContainerHighest)) {
        Icon(Icons.Camera, contentDescription = null, Modifier.size(56.dp).align(Alignment.Center), tint = MaterialTheme.colorScheme.outline)
        preview(Modifier.fillMaxSize())
        state.milliseconds?.let { Pill("%.1f ms".format(it), Modifier.align(Alignment.BottomEnd)) }
        (model as? ModelState.Ready)?.let { Pill(it.bundle.manifest.model.name, Modifier.align(Alignment.BottomStart)) }
    }

@Composable
private fun AccessNotice(access: CameraAccess, onAllow: () -> Unit, onPick: () -> Unit) = when (access) {
    CameraAccess.READY -> Unit
    CameraAccess.NOT_ASKED -> Notice(
        "The camera stays off until you allow it. Pictures never leave this phone: the app has no access to the network.", Icons.Camera, "Allow",
        calm = true, onAllow,
    )
    CameraAccess.DENIED ->
        Notice("The camera is not allowed. Allow it in the system's settings, or pick a photo.", Icons.Camera, "Pick a photo", onAction = onPick)
    CameraAccess.NO_CAMERA ->
        Notice("This device has no camera that can be used. Pick a photo instead.", Icons.Camera, "Pick a photo", onAction = onPick)
}

@Composable
private fun Prompts(settings: Settings, onEdit: () -> Unit) = Row(verticalAlignment = Alignment.CenterVertically) {
    Text(
        "${settings.labels.size} labels as \u201c${settings.template}\u201d", Modifier.weight(1f),
        style = MaterialTheme.typography.bodyMedium, color = MaterialTheme.colorScheme.onSurfaceVariant,
    )
    FilledTonalButton(onEdit) {
        Icon(Icons.Edit, contentDescription = null, Modifier.size(18.dp))
        Spacer(Modifier.width(8.dp))
        Text("Prompts")
    }
}

/** Why there is no model, if there is none. */
@Composable
internal fun ModelNotice(model: ModelState, onSettings: () -> Unit) = when (model) {
    is ModelState.Ready -> if (!model.golden.reproduced) {
        Notice("This phone does not reproduce the model's golden inputs: its results may be wrong.", action = "Settings", onAction = onSettings)
    } else {
        Unit
    }
    is ModelState.Busy -> Notice("${model.step} \u2026", Icons.Settings, calm = true)
    is ModelState.Failed -> Notice(model.message, action = "Settings", onAction = onSettings)
    ModelState.None -> Notice("There is no model yet. Add a bundle that mobileclip export has made.", Icons.Settings, "Settings", calm = true, onSettings)
}

@Composable
private fun Pill(text: String, modifier: Modifier) = Text(
    text, modifier.padding(12.dp).clip(CircleShape).background(Color(0xB0101414)).padding(horizontal = 12.dp, vertical = 6.dp),
    style = MaterialTheme.typography.labelLarge, color = Color.White,
)

@Composable
private fun PromptsDialog(settings: Settings, onDone: () -> Unit, onPrompts: (Settings) -> Unit) {
    var labels by rememberSaveable { mutableStateOf(settings.labels.joinToString("\n")) }
    var template by rememberSaveable { mutableStateOf(settings.template) }
    val read = Settings.labelsOf(labels)
    AlertDialog(
        onDismissRequest = onDone,
        title = { Text("Prompts") },
        text = {
            Column(verticalArrangement = Arrangement.spacedBy(12.dp)) {
                OutlinedTextField(
                    template, { template = it }, label = { Text("Template") }, supportingText = { Text("{} stands for the label") },
                    isError = "{}" !in template, singleLine = true,
                )
                OutlinedTextField(
                    labels, { labels = it }, Modifier.heightIn(max = 300.dp), label = { Text("Labels, one a line") },
                    supportingText = { Text("${read.size} labels") }, isError = read.isEmpty(),
                )
            }
        },
        confirmButton = {
            TextButton(enabled = read.isNotEmpty() && "{}" in template, onClick = {
                onPrompts(settings.copy(labels = read, template = template))
                onDone()
            }) { Text("Use") }
        },
        dismissButton = { TextButton(onDone) { Text("Cancel") } },
    )
}
