"""Parity with the published architectures: the same weights and inputs give the reference's numbers.

`tests/data/golden` holds outputs of the reference implementations (float32, CPU, eval mode) on the weights of `mobileclip.recipe`, the
names and shapes of the published checkpoints, and their counts.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobileclip import checkpoints, names
from mobileclip.checkpoints import Checkpoint
from mobileclip.models.clip import CLIP, normalized, parameter_counts
from mobileclip.models.fuse import Fused, fuse
from mobileclip.specs import REGISTRY

DATA = Path(__file__).parents[1] / "data/golden"
KEYS = json.loads(gzip.decompress((DATA / "keys.json.gz").read_bytes()))
INDEX = json.loads((DATA / "index.json").read_text())
QUICK = {"mobileclip_s0", "mobileclip_s1", "mobileclip_b", "mobileclip2_s0", "mobileclip2_b"}
TOLERANCE = 5e-6  # on normalised embeddings
STATISTICS = 1e-4  # relative, on means and standard deviations
NORMS = {"visual.trunk.norm": "visual.trunk.blocks", "text.ln_final": "text.transformer.resblocks"}
"""Of the pooled position alone here, of all in the reference: each with the blocks in front of it."""


def golden_image(seed: int, side: int) -> np.ndarray:
    """(3, side, side) float32 in [0, 1): noise under an 8x8 mask with a colour cast, so that embeddings stay apart."""
    random = np.random.RandomState(seed)
    cast, mask, noise = random.uniform(size=(3, 1, 1)), random.uniform(size=(3, 8, 8)), random.uniform(size=(3, side, side))
    up = (mask > 0.5).repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    return (0.5 * cast + 0.5 * up * noise).astype(np.float32)


@dataclass
class Case:
    entry: dict[str, Any]
    golden: Any
    checkpoint: Checkpoint
    model: CLIP
    fused: Fused[CLIP]
    image: Tensor
    tokens: Tensor
    outputs: dict[str, Tensor]
    """Output of each module that the golden file has statistics of, and of both towers."""


def module_name(golden_name: str) -> str:
    """Our name of a module of the reference."""
    if golden_name == "image_encoder.model.patch_emb":
        return "visual.trunk.patch_embed"
    name = names.to_open_clip(golden_name + ".").removesuffix(".")
    return name.removesuffix(".blocks") if "stages" in name else name


@pytest.fixture(
    scope="module",
    params=[pytest.param(e, id=e["variant"], marks=[] if e["variant"] in QUICK else pytest.mark.slow) for e in INDEX["variants"]],
)
def case(request, recipe) -> Case:
    entry = request.param
    golden = np.load(DATA / entry["golden"])
    checkpoint = recipe(entry["variant"])
    model = checkpoint.model()
    image = torch.from_numpy(np.stack([golden_image(int(s), entry["resolution"]) for s in golden["image_seeds"]]))
    tokens = torch.from_numpy(golden["tokens"])
    outputs: dict[str, Tensor] = {}
    hooks = []
    modules = dict(model.named_modules())
    for key in golden.files:
        name = key.removeprefix("act/")
        if name != key and module_name(name) in modules:
            hooks.append(modules[module_name(name)].register_forward_hook(keep(outputs, name)))
    for blocks in modules.keys() & set(NORMS.values()):
        hooks.append(modules[blocks][-1].register_forward_hook(keep(outputs, blocks)))
    with torch.no_grad():
        outputs["image"], outputs["text"] = model.encode_image(image), model.encode_text(tokens)
    for hook in hooks:
        hook.remove()
    return Case(entry, golden, checkpoint, model, fuse(model), image, tokens, outputs)


def keep(into: dict[str, Tensor], name: str):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pooled = output.ndim == 3 and output.shape[1] == 1
        into[name] = module.forward(*inputs[:2]) if pooled else output  # without what selects the position

    return hook


def difference(ours: Tensor, golden: np.ndarray) -> float:
    return float(np.abs(ours.numpy() - golden).max())


def test_every_variant_has_a_golden_file_or_shares_one():
    covered = {e["variant"] for e in INDEX["variants"]} | set(INDEX["same_architecture_as"])
    assert covered == {name for name, spec in REGISTRY.items() if spec.published}
    for name, twin in INDEX["same_architecture_as"].items():
        a, b = REGISTRY[name], REGISTRY[twin]
        assert (a.native, a.open_clip, a.text, a.preprocess, a.embed_dim) == (b.native, b.open_clip, b.text, b.preprocess, b.embed_dim)


@pytest.mark.parametrize("entry", INDEX["variants"], ids=lambda e: e["variant"])
def test_names_and_shapes_are_the_published_ones(entry):
    spec = REGISTRY[entry["variant"]]
    assert spec.published_form == entry["format"]
    shapes = checkpoints.expected_shapes(spec, spec.published_form, fused=False)
    if entry["format"] == "native":
        shapes = checkpoints._native_shapes(spec, shapes)
    published = {key: tuple(shape) for key, shape, _ in KEYS[entry["variant"]]}
    assert shapes == published
    assert len(published) == entry["n_keys"]
    assert len(checkpoints.expected_shapes(spec, spec.published_form, fused=True)) == entry["n_keys_inference"]


def test_parameter_counts(case: Case):
    expected = [case.entry[k] for k in ("params_image", "params_text", "params_image_inference", "params_text_inference")]
    assert [*parameter_counts(case.model), *parameter_counts(case.fused.model)] == expected == case.golden["params"].tolist()


def test_dtypes_are_the_published_ones(case: Case):
    dtypes = {name: str(t.dtype).removeprefix("torch.") for name, t in case.checkpoint.state.items()}
    native = case.entry["format"] == "native"
    assert dtypes == {names.to_open_clip(k) if native else k: dtype for k, _, dtype in KEYS[case.entry["variant"]]}


def test_embeddings(case: Case):
    for tower in ("image", "text"):
        raw, golden = case.outputs[tower], case.golden[f"{tower}_emb"]
        assert difference(normalized(raw), case.golden[f"{tower}_emb_norm"]) <= TOLERANCE
        assert difference(raw, golden) <= TOLERANCE * np.linalg.norm(golden, axis=1).max()


def test_fused_embeddings(case: Case):
    with torch.no_grad():
        image = case.fused.model.encode_image(case.image, normalize=True)
        text = case.fused.model.encode_text(case.tokens, normalize=True)
    for tower, ours in (("image", image), ("text", text)):
        assert difference(ours, case.golden[f"{tower}_emb_reparam_norm"]) <= TOLERANCE
        assert difference(ours, normalized(case.outputs[tower]).numpy()) <= TOLERANCE


def test_logits(case: Case):
    image, text, scale = normalized(case.outputs["image"]), normalized(case.outputs["text"]), case.model.logit_scale.exp().detach()
    assert scale.item() == pytest.approx(float(case.golden["forward_scale"]), rel=1e-6)
    assert difference(scale * image @ text.T, case.golden["logits"]) <= TOLERANCE * float(case.golden["forward_scale"])


def test_forward_returns_the_parts_of_the_logits(case: Case):
    with torch.no_grad():
        image, text, scale = case.model(case.image[:1], case.tokens[:1])
    assert difference(image, case.golden["image_emb_norm"][:1]) <= TOLERANCE
    assert difference(text, case.golden["text_emb_norm"][:1]) <= TOLERANCE
    assert scale.item() == pytest.approx(float(case.golden["forward_scale"]), rel=1e-6)


def close_statistics(values: Tensor, first: Tensor, golden: np.ndarray) -> None:
    mean, std = values.double().mean().item(), values.double().std().item()
    assert mean == pytest.approx(golden[0], rel=STATISTICS, abs=STATISTICS * std)
    assert std == pytest.approx(golden[1], rel=STATISTICS)
    assert np.abs(first.flatten()[:8].numpy() - golden[2:]).max() <= STATISTICS * max(std, np.abs(golden[2:]).max())


def test_activations(case: Case):
    wanted = [k.removeprefix("act/") for k in case.golden.files if k.startswith("act/")]
    assert wanted
    missing = [name for name in wanted if name not in case.outputs]
    assert not missing
    for name in wanted:
        output = case.outputs[name]
        if name == "visual.trunk.patch_embed":  # a sequence there, a map here
            output = output.flatten(2).transpose(1, 2)
        if module_name(name) in NORMS:
            with torch.no_grad():
                output = case.model.get_submodule(module_name(name))(case.outputs[NORMS[module_name(name)]])
        close_statistics(output, output[0], case.golden[f"act/{name}"])


def test_fused_tensors(case: Case):
    assert case.fused.convolutions == case.entry["fused_convs"]
    state = case.fused.model.state_dict()
    for key in case.golden.files:
        if key.startswith("fused/"):
            tensor = state[names.to_open_clip(key.removeprefix("fused/"))]
            close_statistics(tensor, tensor[0] if tensor.ndim > 1 else tensor, case.golden[key])
