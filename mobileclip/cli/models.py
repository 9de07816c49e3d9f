"""`mobileclip models`."""

from __future__ import annotations

from dataclasses import asdict

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption
from mobileclip.specs import REGISTRY, ModelSpec

COLUMNS = ("variant", "side px", "embedding", "image M", "text M", "text tower", "checkpoint", "ImageNet %", "38 sets %", "iPhone ms")


def models(json_output: JsonOption = False) -> None:
    """List the variants: sizes as counted here after fusing, and the accuracy and latency that Apple published.

    Example: mobileclip models --json
    """
    if json_output:
        output.print_json([_described(spec) for spec in REGISTRY.values()])
        return
    output.print_table("Variants (parameters in millions, after fusing)", COLUMNS, [_row(spec) for spec in REGISTRY.values()])
    output.print_line(
        "ImageNet zero-shot top-1, the average over 38 data sets, and milliseconds for image + text are Apple's: "
        "trained weights, iPhone 12 Pro Max, CoreML. Nothing of it was measured by this toolkit."
    )


def _text_tower(spec: ModelSpec) -> str:
    """The kind of text tower in a few words."""
    text = spec.text
    kind = f"{2 * text.mixers} of them convolutional" if text.mixers else "causal" if text.causal else "no mask"
    return f"width {text.width}, {text.layers} layers, {kind}"


def _row(spec: ModelSpec) -> tuple[str, ...]:
    image, text = spec.parameters or (0, 0)
    p = spec.published
    apple = (f"{p.imagenet_top1_percent}", f"{p.average_38_percent}", f"{p.image_latency_ms} + {p.text_latency_ms}") if p else ("-",) * 3
    side, dim = str(spec.preprocess.resolution), str(spec.embed_dim)
    return (spec.name, side, dim, f"{image / 1e6:.1f}", f"{text / 1e6:.1f}", _text_tower(spec), spec.published_form, *apple)


def _described(spec: ModelSpec) -> dict[str, object]:
    image, text = spec.parameters or (0, 0)
    return {
        "name": spec.name,
        "image_parameters": image,
        "text_parameters": text,
        "embed_dim": spec.embed_dim,
        "text_tower": _text_tower(spec),
        "checkpoint_forms": list(spec.forms),
        "published_form": spec.published_form,
        "preprocess": asdict(spec.preprocess),
        "weights": asdict(spec.weights) if spec.weights else None,
        "published_by_apple": asdict(spec.published) if spec.published else None,
    }
