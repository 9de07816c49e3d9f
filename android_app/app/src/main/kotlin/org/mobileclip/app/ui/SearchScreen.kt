package org.mobileclip.app.ui

import androidx.compose.foundation.Image
import androidx.compose.foundation.background
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Box
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.aspectRatio
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.lazy.grid.GridCells
import androidx.compose.foundation.lazy.grid.LazyVerticalGrid
import androidx.compose.foundation.lazy.grid.items
import androidx.compose.foundation.shape.CircleShape
import androidx.compose.foundation.text.KeyboardActions
import androidx.compose.foundation.text.KeyboardOptions
import androidx.compose.material3.Icon
import androidx.compose.material3.IconButton
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Text
import androidx.compose.material3.TextButton
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.produceState
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.draw.clip
import androidx.compose.ui.graphics.Color
import androidx.compose.ui.graphics.ImageBitmap
import androidx.compose.ui.layout.ContentScale
import androidx.compose.ui.text.input.ImeAction
import androidx.compose.ui.unit.dp
import org.mobileclip.app.state.Found
import org.mobileclip.app.state.ModelState
import org.mobileclip.app.state.SearchState
import org.mobileclip.core.IndexProgress
import org.mobileclip.core.PhotoAccess

/**
 * Finds photos by what they show.
 *
 * @param thumbnail a small picture of a photo, or null if it is gone
 */
@Composable
fun SearchScreen(
    state: SearchState, model: ModelState, thumbnail: suspend (Long) -> ImageBitmap?, onAllow: () -> Unit, onIndex: () -> Unit, onPause: () -> Unit,
    onDelete: () -> Unit, onSearch: (String) -> Unit, onSettings: () -> Unit,
) {
    var query by rememberSaveable { mutableStateOf(state.query) }
    Column(Modifier.fillMaxSize(), verticalArrangement = Arrangement.spacedBy(12.dp)) {
        OutlinedTextField(
            query, { query = it }, Modifier.fillMaxWidth().padding(top = 16.dp), placeholder = { Text("What is to be seen?") }, singleLine = true,
            shape = CircleShape, leadingIcon = { Icon(Icons.Search, contentDescription = null) },
            trailingIcon = {
                if (query.isNotEmpty()) {
                    IconButton(onClick = {
                        query = ""
                        onSearch("")
                    }) { Icon(Icons.Close, contentDescription = "Clear") }
                }
            },
            keyboardOptions = KeyboardOptions(imeAction = ImeAction.Search), keyboardActions = KeyboardActions(onSearch = { onSearch(query) }),
        )
        ModelNotice(model, onSettings)
        state.message?.let { Notice(it, action = if (state.damaged) "Delete the index" else null, onAction = onDelete) }
        when (state.access) {
            PhotoAccess.NONE -> Notice(
                "The app may not see your photos. They are read on this phone only, and their embeddings stay in the app.", Icons.Picture, "Allow",
                calm = true, onAllow,
            )
            PhotoAccess.SOME -> Notice("You have picked some photos; only those are searched.", Icons.Picture, "Pick others", calm = true, onAllow)
            PhotoAccess.ALL -> Unit
        }
        if (state.access != PhotoAccess.NONE) Indexing(state.progress, state.indexing, onIndex, onPause)
        state.found?.let { Results(it, thumbnail) }
    }
}

@Composable
private fun Indexing(progress: IndexProgress?, running: Boolean, onIndex: () -> Unit, onPause: () -> Unit) = Column {
    Row(verticalAlignment = Alignment.CenterVertically) {
        val text = when {
            progress == null -> if (running) "Looking at your photos \u2026" else "Photos must be indexed once"
            progress.finished && !running -> "%,d photos".format(progress.total) + if (progress.unreadable > 0) ", %,d unreadable".format(progress.unreadable) else ""
            else -> "%,d of %,d photos indexed".format(progress.done, progress.total)
        }
        Text(text, Modifier.weight(1f), style = MaterialTheme.typography.bodyMedium, color = MaterialTheme.colorScheme.onSurfaceVariant)
        when {
            running -> TextButton(onPause) { Text("Pause") }
            progress == null -> TextButton(onIndex) { Text("Start") }
            !progress.finished -> TextButton(onIndex) { Text("Go on") }
            else -> TextButton(onIndex) { Text("Update") }
        }
    }
    if (running && progress != null && progress.total > 0) {
        LinearProgressIndicator(progress = { progress.done.toFloat() / progress.total }, Modifier.fillMaxWidth())
    }
}

@Composable
private fun Results(found: List<Found>, thumbnail: suspend (Long) -> ImageBitmap?) {
    if (found.isEmpty()) Text("Nothing was found.", style = MaterialTheme.typography.bodyLarge)
    LazyVerticalGrid(GridCells.Adaptive(112.dp), horizontalArrangement = Arrangement.spacedBy(8.dp), verticalArrangement = Arrangement.spacedBy(8.dp)) {
        items(found, key = { it.photo.key }) { match ->
            val picture by produceState<ImageBitmap?>(null, match.photo.key) { value = thumbnail(match.photo.id) }
            Box(Modifier.aspectRatio(1f).clip(MaterialTheme.shapes.medium).background(MaterialTheme.colorScheme.surfaceContainerHigh)) {
                picture?.let { Image(it, contentDescription = null, Modifier.fillMaxSize(), contentScale = ContentScale.Crop) }
                Text(
                    "%.2f".format(match.score),
                    Modifier.align(Alignment.BottomEnd).padding(6.dp).clip(CircleShape).background(Color(0xB0101414)).padding(horizontal = 8.dp, vertical = 2.dp),
                    style = MaterialTheme.typography.labelSmall, color = Color.White,
                )
            }
        }
    }
}
