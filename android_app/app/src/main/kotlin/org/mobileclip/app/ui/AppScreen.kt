package org.mobileclip.app.ui

import androidx.compose.foundation.layout.Box
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.padding
import androidx.compose.material3.Icon
import androidx.compose.material3.NavigationBar
import androidx.compose.material3.NavigationBarItem
import androidx.compose.material3.Scaffold
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.ui.Modifier
import androidx.compose.ui.graphics.vector.ImageVector
import androidx.compose.ui.unit.dp

enum class Tab(val label: String, val icon: ImageVector) {
    CAMERA("Camera", Icons.Camera),
    SEARCH("Photos", Icons.Search),
    BENCHMARK("Benchmark", Icons.Chart),
    SETTINGS("Settings", Icons.Settings),
}

/** The frame around all screens. */
@Composable
fun AppScreen(tab: Tab, onTab: (Tab) -> Unit, content: @Composable (Tab) -> Unit) = Scaffold(
    bottomBar = {
        NavigationBar {
            for (each in Tab.entries) {
                NavigationBarItem(
                    selected = each == tab,
                    onClick = { onTab(each) },
                    icon = { Icon(each.icon, contentDescription = null) },
                    label = { Text(each.label) },
                )
            }
        }
    },
) { padding ->
    Box(Modifier.padding(padding).fillMaxSize().padding(horizontal = 18.dp)) { content(tab) }
}
