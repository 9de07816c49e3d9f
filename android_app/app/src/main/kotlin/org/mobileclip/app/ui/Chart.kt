package org.mobileclip.app.ui

import androidx.compose.foundation.Canvas
import androidx.compose.foundation.background
import androidx.compose.foundation.layout.Box
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.height
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.size
import androidx.compose.foundation.shape.CircleShape
import androidx.compose.material3.MaterialTheme
import androidx.compose.runtime.Composable
import androidx.compose.ui.Modifier
import androidx.compose.ui.draw.clip
import androidx.compose.ui.geometry.Offset
import androidx.compose.ui.graphics.Color
import androidx.compose.ui.graphics.Path
import androidx.compose.ui.graphics.PathEffect
import androidx.compose.ui.graphics.StrokeCap
import androidx.compose.ui.graphics.StrokeJoin
import androidx.compose.ui.graphics.drawscope.Stroke
import androidx.compose.ui.semantics.contentDescription
import androidx.compose.ui.semantics.semantics
import androidx.compose.ui.text.drawText
import androidx.compose.ui.text.rememberTextMeasurer
import androidx.compose.ui.unit.dp
import java.math.BigDecimal
import java.math.MathContext
import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.log10
import kotlin.math.pow
import org.mobileclip.core.QuickResult

/** Each run's latency, one line a result; outliers are cut at twice the slowest median, so that they do not flatten the rest. */
@Composable
internal fun LatencyChart(results: List<QuickResult>) {
    val top = results.maxOf { minOf(it.latencyMs.max(), 2 * it.p50) }
    val step = niceStep(top / 3)
    val lines = ceil(top / step).toInt()
    val measurer = rememberTextMeasurer()
    val style = MaterialTheme.typography.labelSmall.copy(color = MaterialTheme.colorScheme.onSurfaceVariant)
    val grid = MaterialTheme.colorScheme.outlineVariant
    val colors = results.indices.map { seriesColor(it) }
    val told = results.joinToString { "${name(it.task.provider)} %.2f ms".format(it.p50) }
    Canvas(Modifier.fillMaxWidth().height(132.dp).padding(vertical = 6.dp).semantics { contentDescription = "Latency of each run: $told" }) {
        val left = 44.dp.toPx()
        fun y(ms: Double) = size.height * (1 - (ms / (lines * step)).coerceAtMost(1.0)).toFloat()
        for (i in 0..lines) {
            val height = y(i * step)
            drawLine(grid, Offset(left, height), Offset(size.width, height), 1.dp.toPx(), pathEffect = if (i == 0) null else PathEffect.dashPathEffect(floatArrayOf(6f, 8f)))
            val text = measurer.measure("${BigDecimal(i * step).round(MathContext(3)).stripTrailingZeros().toPlainString()} ms", style)
            drawText(text, topLeft = Offset(left - 8.dp.toPx() - text.size.width, (height - text.size.height / 2f).coerceIn(0f, size.height - text.size.height)))
        }
        results.forEachIndexed { number, result ->
            val shown = thinned(result.latencyMs)
            val path = Path()
            shown.forEachIndexed { i, ms ->
                val x = left + (size.width - left) * i / maxOf(shown.size - 1, 1)
                if (i == 0) path.moveTo(x, y(ms)) else path.lineTo(x, y(ms))
            }
            drawPath(path, colors[number], style = Stroke(2.dp.toPx(), cap = StrokeCap.Round, join = StrokeJoin.Round))
        }
    }
}

/** The mark of a series beside its numbers. */
@Composable
internal fun Key(series: Int) = Box(Modifier.padding(end = 12.dp).size(10.dp).clip(CircleShape).background(seriesColor(series)))

@Composable
private fun seriesColor(series: Int): Color = MaterialTheme.colorScheme.let { listOf(it.primary, it.tertiary, it.outline, it.error)[series % 4] }

/** At most as many values as there is room for: of each group the median, so that a single slow run does not look like many. */
private fun thinned(values: List<Double>): List<Double> =
    if (values.size <= MAX_POINTS) values else values.chunked(ceil(values.size / MAX_POINTS.toDouble()).toInt()) { it.sorted()[it.size / 2] }

/** 1, 2 or 5 times a power of ten, not below a value. */
private fun niceStep(least: Double): Double {
    val power = 10.0.pow(floor(log10(maxOf(least, 1e-4))))
    return listOf(1.0, 2.0, 5.0, 10.0).map { it * power }.first { it >= least * 0.999 }
}

private const val MAX_POINTS = 160
