package org.mobileclip.app.ui

import androidx.compose.foundation.background
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Box
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.ColumnScope
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.Spacer
import androidx.compose.foundation.layout.fillMaxHeight
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.height
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.size
import androidx.compose.foundation.layout.width
import androidx.compose.foundation.shape.CircleShape
import androidx.compose.material3.ButtonDefaults
import androidx.compose.material3.Card
import androidx.compose.material3.CardDefaults
import androidx.compose.material3.Icon
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.Text
import androidx.compose.material3.TextButton
import androidx.compose.runtime.Composable
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.draw.clip
import androidx.compose.ui.graphics.Color
import androidx.compose.ui.graphics.vector.ImageVector
import androidx.compose.ui.text.font.FontWeight
import androidx.compose.ui.unit.dp

@Composable
internal fun Title(text: String, about: String) = Column(Modifier.padding(top = 20.dp, bottom = 14.dp)) {
    Text(text, style = MaterialTheme.typography.headlineMedium, fontWeight = FontWeight.SemiBold)
    Text(about, style = MaterialTheme.typography.bodyMedium, color = MaterialTheme.colorScheme.onSurfaceVariant)
}

@Composable
internal fun Panel(modifier: Modifier = Modifier, color: Color = MaterialTheme.colorScheme.surfaceContainer, content: @Composable ColumnScope.() -> Unit) =
    Card(modifier.fillMaxWidth(), colors = CardDefaults.cardColors(containerColor = color)) {
        Column(Modifier.padding(16.dp), verticalArrangement = Arrangement.spacedBy(8.dp), content = content)
    }

/** Something that the user should know, with what to do about it. */
@Composable
internal fun Notice(text: String, icon: ImageVector = Icons.Warning, action: String? = null, calm: Boolean = false, onAction: () -> Unit = {}) {
    val colors = MaterialTheme.colorScheme
    val content = if (calm) colors.onSecondaryContainer else colors.onTertiaryContainer
    Card(Modifier.fillMaxWidth(), colors = CardDefaults.cardColors(if (calm) colors.secondaryContainer else colors.tertiaryContainer, content)) {
        Column(Modifier.padding(start = 16.dp, top = 16.dp, end = 16.dp, bottom = if (action == null) 16.dp else 4.dp)) {
            Row(verticalAlignment = Alignment.CenterVertically, horizontalArrangement = Arrangement.spacedBy(12.dp)) {
                Icon(icon, contentDescription = null)
                Text(text, Modifier.weight(1f), style = MaterialTheme.typography.bodyMedium)
            }
            if (action != null) {
                TextButton(onAction, Modifier.align(Alignment.End), colors = ButtonDefaults.textButtonColors(contentColor = content)) {
                    Text(action, fontWeight = FontWeight.SemiBold)
                }
            }
        }
    }
}

/** A value of 0 to 1 with its name. */
@Composable
internal fun Bar(name: String, value: String, share: Float, strong: Boolean) = Column {
    Row(verticalAlignment = Alignment.Bottom) {
        val weight = if (strong) FontWeight.SemiBold else FontWeight.Normal
        Text(name, Modifier.weight(1f), style = MaterialTheme.typography.bodyLarge, fontWeight = weight, maxLines = 1)
        Text(value, style = MaterialTheme.typography.labelLarge, color = MaterialTheme.colorScheme.onSurfaceVariant)
    }
    Spacer(Modifier.height(4.dp))
    Box(Modifier.fillMaxWidth().height(8.dp).clip(CircleShape).background(MaterialTheme.colorScheme.surfaceVariant)) {
        val color = if (strong) MaterialTheme.colorScheme.primary else MaterialTheme.colorScheme.primary.copy(alpha = 0.45f)
        Box(Modifier.fillMaxWidth(share.coerceIn(0f, 1f)).fillMaxHeight().clip(CircleShape).background(color))
    }
}

/** A short fact, such as whether the golden inputs are reproduced. */
@Composable
internal fun Fact(text: String, good: Boolean) = Row(verticalAlignment = Alignment.CenterVertically) {
    val color = if (good) MaterialTheme.colorScheme.primary else MaterialTheme.colorScheme.error
    Icon(if (good) Icons.Check else Icons.Warning, contentDescription = null, Modifier.size(18.dp), tint = color)
    Spacer(Modifier.width(8.dp))
    Text(text, style = MaterialTheme.typography.bodyMedium)
}
