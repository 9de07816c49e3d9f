package org.mobileclip.app.ui

import androidx.compose.ui.graphics.Color
import androidx.compose.ui.graphics.SolidColor
import androidx.compose.ui.graphics.StrokeCap
import androidx.compose.ui.graphics.StrokeJoin
import androidx.compose.ui.graphics.vector.ImageVector
import androidx.compose.ui.graphics.vector.PathBuilder
import androidx.compose.ui.graphics.vector.path
import androidx.compose.ui.unit.dp

/** The app's few icons, lines on a grid of 24. */
object Icons {
    val Camera: ImageVector = lines("camera") {
        box(3f, 7f, 18f, 13f)
        moveTo(8f, 7f)
        lineTo(9.5f, 4f)
        lineTo(14.5f, 4f)
        lineTo(16f, 7f)
        circle(12f, 13.5f, 3.6f)
    }
    val Search: ImageVector = lines("search") {
        circle(10.5f, 10.5f, 6.5f)
        moveTo(15.4f, 15.4f)
        lineTo(21f, 21f)
    }
    val Chart: ImageVector = lines("chart") {
        moveTo(4f, 4f)
        lineTo(4f, 20f)
        lineTo(21f, 20f)
        moveTo(7.5f, 16f)
        lineTo(11.5f, 11f)
        lineTo(14.5f, 13.5f)
        lineTo(20f, 6f)
    }
    val Settings: ImageVector = lines("settings") {
        for ((y, x) in listOf(6f to 15f, 12f to 8f, 18f to 13f)) {
            moveTo(3f, y)
            lineTo(x - 2.2f, y)
            moveTo(x + 2.2f, y)
            lineTo(21f, y)
            circle(x, y, 2.2f)
        }
    }
    val Edit: ImageVector = lines("edit") {
        moveTo(4f, 20f)
        lineTo(5f, 15.5f)
        lineTo(16.5f, 4f)
        lineTo(20f, 7.5f)
        lineTo(8.5f, 19f)
        close()
        moveTo(14f, 6.5f)
        lineTo(17.5f, 10f)
    }
    val Check: ImageVector = lines("check") {
        moveTo(4.5f, 12.5f)
        lineTo(9.5f, 17.5f)
        lineTo(19.5f, 6.5f)
    }
    val Warning: ImageVector = lines("warning") {
        moveTo(12f, 3.5f)
        lineTo(21.5f, 20f)
        lineTo(2.5f, 20f)
        close()
        moveTo(12f, 9.5f)
        lineTo(12f, 14f)
        moveTo(12f, 17f)
        lineTo(12f, 17.1f)
    }
    val Picture: ImageVector = lines("picture") {
        box(3f, 4f, 18f, 16f)
        circle(8.5f, 9.5f, 1.7f)
        moveTo(3f, 17f)
        lineTo(9f, 13f)
        lineTo(13f, 16f)
        lineTo(16.5f, 12.5f)
        lineTo(21f, 16.5f)
    }
    val Close: ImageVector = lines("close") {
        moveTo(6f, 6f)
        lineTo(18f, 18f)
        moveTo(18f, 6f)
        lineTo(6f, 18f)
    }

    private fun lines(name: String, draw: PathBuilder.() -> Unit): ImageVector =
        ImageVector.Builder(name, 24.dp, 24.dp, 24f, 24f).path(
            stroke = SolidColor(Color.Black), strokeLineWidth = 1.9f, strokeLineCap = StrokeCap.Round, strokeLineJoin = StrokeJoin.Round,
            pathBuilder = draw,
        ).build()

    private fun PathBuilder.circle(x: Float, y: Float, r: Float) {
        moveTo(x - r, y)
        arcToRelative(r, r, 0f, isMoreThanHalf = true, isPositiveArc = true, dx1 = 2 * r, dy1 = 0f)
        arcToRelative(r, r, 0f, isMoreThanHalf = true, isPositiveArc = true, dx1 = -2 * r, dy1 = 0f)
        close()
    }

    private fun PathBuilder.box(x: Float, y: Float, width: Float, height: Float) {
        moveTo(x, y)
        lineToRelative(width, 0f)
        lineToRelative(0f, height)
        lineToRelative(-width, 0f)
        close()
    }
}
