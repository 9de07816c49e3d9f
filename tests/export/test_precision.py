"""fp16: the layers that need fp32 are found, in torch and in the finished artifacts of every target."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from mobileclip.errors import GateError
from mobileclip.export.bundle import TARGETS, Options, PreprocessInfo
from mobileclip.export.export import export_bundle, plan_for
from mobileclip.export.graph import fold_affine, layers
from mobileclip.export.precision import _smallest, fp32_layers
from mobileclip.export.verify.gate import text_inputs
from mobileclip.export.verify.mutants import healthy
from mobileclip.sources import Model, load_model


def overflowing(model: Model) -> Model:
    """The same function, but in one block the attention values exceed fp16's 65504: values grow, the projection behind them shrinks."""
    text = copy.deepcopy(model.text)
    with torch.no_grad():
        attention = text.get_submodule("transformer.resblocks.1.attn")
        width = attention.out_proj.in_features
        attention.in_proj_weight[2 * width :].mul_(3e4)
        attention.in_proj_bias[2 * width :].mul_(3e4)
        attention.out_proj.weight.mul_(1 / 3e4)
    return replace(model, text=text)


def test_layers_are_the_blocks_in_order():
    model, _ = healthy()
    assert layers(fold_affine(model.text)) == ["token_embedding", *(f"transformer.resblocks.{i}" for i in range(4)), "ln_final"]
    names = layers(fold_affine(model.image))
    assert names[0] == "trunk.stem.0"
    assert names[-2:] == ["trunk.final_conv", "trunk.head"]
    assert len(names) == 22


def test_the_layer_that_overflows_stays_fp32_in_every_target(tmp_path):
    """End to end: without the pinned block the embeddings are NaN; with it the finished artifacts pass the gate."""
    model = overflowing(load_model("untrained:mobileclip_nano"))
    options = Options(
        targets=TARGETS, towers=("text",), precision="fp16", batch=1, normalize=True, bake_preprocessing=False,
        executorch_backend="xnnpack",
    )  # fmt: skip
    bundle = export_bundle(model, options, tmp_path / "bundle", lambda step: None)
    (pinned,) = {a.fp32_operators for a in bundle.manifest.artifacts}
    assert "transformer.resblocks.1" in pinned
    assert len(pinned) < len(layers(model.text))
    assert all(p.passed for p in bundle.manifest.parity)


@pytest.mark.parametrize("needed", [set(), {3}, {0, 9}, {4, 5, 6}, set(range(10))])
def test_bisection_finds_what_is_needed(needed):
    calls = []

    def holds(pinned):
        calls.append(tuple(pinned))
        return needed <= set(pinned)

    assert set(_smallest(list(range(10)), holds)) == needed
    assert len(calls) <= 60


def test_fp16_that_cannot_hold_is_refused():
    model, reference = healthy()
    options = Options(
        targets=("onnx",), towers=("text",), precision="fp16", batch=1, normalize=True, bake_preprocessing=False,
        executorch_backend="xnnpack",
    )  # fmt: skip
    ids = text_inputs(model.tokenizer)
    plan = plan_for("text", model.embed_dim, options, PreprocessInfo(**model.preprocess.__dict__, baked=False), ids)
    wrong = -reference["text"]
    with pytest.raises(GateError, match="fp16 does not hold for the text tower even with all"):
        fp32_layers(fold_affine(model.text), plan, ids, wrong, reference["image"])
