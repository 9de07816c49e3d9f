"""fp16: the layers that need fp32 are found, in torch and in the finished artifacts of every target."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mobileclip.errors import GateError
from mobileclip.export.bundle import Options, PreprocessInfo
from mobileclip.export.export import embed, export_bundle, plan_for
from mobileclip.export.graph import fold_affine, layers
from mobileclip.export.precision import _smallest, by_sensitivity, fewest, fp32_layers
from mobileclip.export.verify import gate
from mobileclip.export.verify.gate import text_inputs
from mobileclip.export.verify.mutants import healthy
from mobileclip.sources import Model, load_model
from mobileclip.zeroshot import normalized


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
    options = Options(towers=("text",), precision="fp16")
    bundle = export_bundle(model, options, tmp_path / "bundle", lambda step: None)
    (pinned,) = {a.fp32_operators for a in bundle.manifest.artifacts}
    assert "transformer.resblocks.1" in pinned
    assert len(pinned) < len(layers(model.text))
    assert all(p.passed for p in bundle.manifest.parity)


def test_large_activations_do_not_overflow_in_layer_norm(tmp_path):
    """A sum of squares over 65504: torch's fp16 LayerNorm takes it, ExecuTorch's own does not."""
    model = load_model("untrained:mobileclip_nano")
    text = copy.deepcopy(model.text)
    with torch.no_grad():
        text.get_parameter("token_embedding.weight").mul_(1000)
        text.get_parameter("positional_embedding").mul_(1000)
    ids = torch.from_numpy(text_inputs(model.tokenizer)[:4])
    residual = text.get_parameter("token_embedding.weight")[ids.long()]
    assert residual.square().sum(-1).max() > 65504
    assert residual.abs().max() < 2000
    options = Options(targets=("executorch",), towers=("text",), precision="fp16")
    bundle = export_bundle(replace(model, text=text), options, tmp_path / "bundle", lambda step: None)
    assert bundle.manifest.parity[0].passed
    assert bundle.manifest.artifacts[0].fp32_operators == ()


@pytest.mark.slow
def test_a_runtime_that_rounds_more_gets_more_fp32_layers(tmp_path, monkeypatch):
    """The bar is raised to where XNNPACK's fp16 accumulation fails and torch's does not."""
    monkeypatch.setitem(gate.MIN_COSINE, "fp16", 0.99995)
    options = Options(targets=("onnx", "executorch"), towers=("text",), precision="fp16")
    bundle = export_bundle(load_model("untrained:mobileclip_nano"), options, tmp_path / "bundle", lambda step: None)
    pinned = {a.target: a.fp32_operators for a in bundle.manifest.artifacts}
    assert pinned["onnx"] == ()
    assert 0 < len(pinned["executorch"]) < len(layers(load_model("untrained:mobileclip_nano").text))
    assert all(p.passed and p.cosine_min >= 0.99995 for p in bundle.manifest.parity)


def test_the_most_sensitive_layer_comes_first():
    model = overflowing(load_model("untrained:mobileclip_nano"))
    ids = text_inputs(model.tokenizer)
    plan = plan_for("text", model.embed_dim, Options(precision="fp16"), PreprocessInfo(**model.preprocess.__dict__, baked=False), ids)
    net = fold_affine(model.text)
    order = by_sensitivity(net, plan, ids, normalized(embed(model.text, ids)))
    assert order[0] == "transformer.resblocks.1"
    assert sorted(order) == sorted(layers(net))


@pytest.mark.parametrize("needed", range(1, 12))
def test_the_shortest_beginning_that_passes_is_tried_last(needed):
    tried = []

    def passes(beginning):
        tried.append(len(beginning))
        return len(beginning) >= needed

    fewest(range(11), passes)
    assert tried[-1] == needed
    assert len(tried) <= 5


@pytest.mark.parametrize(("precision", "wanted"), [("fp32", 0.0), ("fp16", 1.0)])
def test_ranks_that_the_precision_does_not_decide_are_not_counted(precision, wanted):
    """Two texts whose scores differ by 1e-4 change places: an error in fp32, rounding in fp16."""
    others = np.array([[1, 0, 0], [np.sqrt(1 - 1e-4), 1e-2, 0]], np.float32)
    reference = normalized(np.array([[1.0, 0.004, 0]], np.float32))
    got = normalized(np.array([[1.0, 0.006, 0]], np.float32))
    assert 1e-6 < float((reference @ (others[0] - others[1]))[0]) < 4e-4
    assert gate.compare(reference, got, others, precision).top1_agreement == wanted


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
    options = Options(targets=("onnx",), towers=("text",), precision="fp16")
    ids = text_inputs(model.tokenizer)
    plan = plan_for("text", model.embed_dim, options, PreprocessInfo(**model.preprocess.__dict__, baked=False), ids)
    wrong = -reference["text"]
    with pytest.raises(GateError, match="fp16 does not hold for the text tower even with all"):
        fp32_layers(fold_affine(model.text), plan, ids, wrong, reference["image"])
