package org.mobileclip.app.ui

import androidx.compose.foundation.isSystemInDarkTheme
import androidx.compose.foundation.shape.RoundedCornerShape
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.Shapes
import androidx.compose.material3.darkColorScheme
import androidx.compose.material3.lightColorScheme
import androidx.compose.runtime.Composable
import androidx.compose.ui.graphics.Color
import androidx.compose.ui.unit.dp

private val Light = lightColorScheme(
    primary = Color(0xFF0A5C5A), onPrimary = Color.White, primaryContainer = Color(0xFFC9ECE7), onPrimaryContainer = Color(0xFF00201F),
    secondary = Color(0xFF4A6361), onSecondary = Color.White, secondaryContainer = Color(0xFFD5E8E5), onSecondaryContainer = Color(0xFF06201E),
    tertiary = Color(0xFFB4540A), onTertiary = Color.White, tertiaryContainer = Color(0xFFFFDCC5), onTertiaryContainer = Color(0xFF351000),
    background = Color(0xFFF6FAF9), onBackground = Color(0xFF161D1C), surface = Color(0xFFF6FAF9), onSurface = Color(0xFF161D1C),
    surfaceVariant = Color(0xFFDBE5E3), onSurfaceVariant = Color(0xFF3F4948), surfaceContainer = Color(0xFFEAF1EF),
    surfaceContainerLow = Color(0xFFF0F5F4), surfaceContainerHigh = Color(0xFFE3ECEA), surfaceContainerHighest = Color(0xFFDDE7E5),
    outline = Color(0xFF6F7978), outlineVariant = Color(0xFFBFC9C7), error = Color(0xFFBA1A1A), errorContainer = Color(0xFFFFDAD6),
)

private val Dark = darkColorScheme(
    primary = Color(0xFF82D5CE), onPrimary = Color(0xFF003735), primaryContainer = Color(0xFF00504D), onPrimaryContainer = Color(0xFFC9ECE7),
    secondary = Color(0xFFB0CCC9), onSecondary = Color(0xFF1C3533), secondaryContainer = Color(0xFF324B49), onSecondaryContainer = Color(0xFFCCE8E4),
    tertiary = Color(0xFFFFB68A), onTertiary = Color(0xFF552000), tertiaryContainer = Color(0xFF54361F), onTertiaryContainer = Color(0xFFFFDCC5),
    background = Color(0xFF0E1514), onBackground = Color(0xFFDDE4E2), surface = Color(0xFF0E1514), onSurface = Color(0xFFDDE4E2),
    surfaceVariant = Color(0xFF3F4948), onSurfaceVariant = Color(0xFFBEC9C7), surfaceContainer = Color(0xFF1A2120),
    surfaceContainerLow = Color(0xFF161D1C), surfaceContainerHigh = Color(0xFF252B2A), surfaceContainerHighest = Color(0xFF303635),
    outline = Color(0xFF899391), outlineVariant = Color(0xFF3F4948), error = Color(0xFFFFB4AB), errorContainer = Color(0xFF93000A),
)

private val Rounded = Shapes(small = RoundedCornerShape(10.dp), medium = RoundedCornerShape(16.dp), large = RoundedCornerShape(24.dp))

@Composable
fun MobileClipTheme(dark: Boolean = isSystemInDarkTheme(), content: @Composable () -> Unit) =
    MaterialTheme(colorScheme = if (dark) Dark else Light, shapes = Rounded, content = content)
