"""The registry: every entry is built and counted, so that a new variant is tested without a new test."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch

from mobileclip.checkpoints import expected_shapes, fitting
from mobileclip.errors import InputError
from mobileclip.models.clip import CLIP
from mobileclip.specs import DEFAULT_MODEL, REGISTRY, MCiTower, ModelSpec, get_spec

SPECS = [pytest.param(spec, id=name) for name, spec in REGISTRY.items()]
# Apple's table prints other figures than its published architectures have: the text tower of MobileCLIP2-S0 is the one of S2, and
# ViT-L/14 has a projection that is counted otherwise.
MISPRINTED = {("mobileclip2_s0", "text"): 63.4, ("mobileclip_l14", "image"): 304.0, ("mobileclip2_l14", "image"): 304.0}


def counted(spec: ModelSpec, tower: str) -> int:
    """Parameters of a tower in inference form, without the running statistics of its norms."""
    shapes = expected_shapes(spec, spec.published_form, fused=True)
    weights = [s for n, s in shapes.items() if n.startswith(tower) and not n.endswith(("running_mean", "running_var", "tracked"))]
    return sum(map(math.prod, weights))


def test_all_published_variants_are_there():
    first = {f"mobileclip_{n}" for n in ("s0", "s1", "s2", "b", "blt", "s3", "s4", "l14")}
    second = {f"mobileclip2_{n}" for n in ("s0", "s2", "b", "s3", "s4", "l14")}
    assert set(REGISTRY) == first | second | {"mobileclip_nano"}
    assert DEFAULT_MODEL in REGISTRY


@pytest.mark.parametrize("spec", SPECS)
def test_entry_is_consistent(spec: ModelSpec):
    assert REGISTRY[spec.name] is spec
    assert spec.published_form in spec.forms
    for form in spec.forms:
        tower = spec.image(form)
        assert spec.preprocess.resolution % tower.stride == 0
        if isinstance(tower, MCiTower):
            stages = len(tower.dims)
            assert [len(tower.depths), len(tower.attention), len(tower.squeeze_excite)] == [stages] * 3
            assert all(d % 32 == 0 for d, a in zip(tower.dims, tower.attention, strict=True) if a)
    assert spec.text.width % spec.text.heads == 0
    if spec.weights:
        assert spec.weights.filename == f"{spec.name}.pt"
        repo = spec.weights.repo_id.removeprefix("apple/").lower().replace("-", "_")
        assert get_spec(repo) is spec
    with pytest.raises(FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("spec", SPECS)
def test_parameter_counts(spec: ModelSpec):
    assert spec.parameters == (counted(spec, "visual."), counted(spec, "text."))
    if spec.published:
        image, text = (n / 1e6 for n in spec.parameters)
        assert image == pytest.approx(MISPRINTED.get((spec.name, "image"), spec.published.image_params_m), abs=0.06)
        assert text == pytest.approx(MISPRINTED.get((spec.name, "text"), spec.published.text_params_m), abs=0.06)


def test_default_model_is_small_enough_for_a_laptop():
    assert sum(get_spec(DEFAULT_MODEL).parameters or ()) < 8e6


ARCHITECTURES = {(spec.image(spec.published_form), spec.text): spec for spec in REGISTRY.values()}


@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in ARCHITECTURES.values()])
def test_shapes_through_the_towers(spec: ModelSpec):
    side = spec.preprocess.resolution
    with torch.device("meta"):
        model = CLIP(spec).eval()
        assert model.encode_image(torch.empty(2, 3, side, side)).shape == (2, spec.embed_dim)
        assert model.encode_text(torch.zeros(3, spec.text.context, dtype=torch.int64), normalize=True).shape == (3, spec.embed_dim)


@pytest.mark.parametrize("spec", SPECS)
def test_shapes_tell_the_variant_form_and_fusing(spec: ModelSpec):
    for form in spec.forms:
        train, fused = (expected_shapes(spec, form, fused=f) for f in (False, True))
        for is_fused, shapes in ((False, train), (True, fused)):
            found = fitting(shapes)
            assert (spec.name, form, is_fused) in [(s.name, f, i) for s, f, i in found]
            for other, other_form, other_fused in found:  # all that fit are the same net
                assert other.image(other_form) == spec.image(form)
                assert (other.text, other.embed_dim) == (spec.text, spec.embed_dim)
                assert other_fused == is_fused or train == fused


def test_variants_of_one_architecture():
    fits = fitting(expected_shapes(REGISTRY["mobileclip2_s3"], "open_clip", fused=False))
    assert [s.name for s, _, _ in fits] == ["mobileclip_s3", "mobileclip2_s3"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("mobileclip_s0", "mobileclip_s0"),
        ("MobileCLIP-S0", "mobileclip_s0"),
        ("MobileCLIP2-S4", "mobileclip2_s4"),
        ("MobileCLIP-B-LT", "mobileclip_blt"),
        ("mobileclip_b_lt", "mobileclip_blt"),
        ("MobileCLIP-L/14", "mobileclip_l14"),
        ("mobileclip2-l-14", "mobileclip2_l14"),
    ],
)
def test_names_people_write(given, name):
    assert get_spec(given).name == name


def test_unknown_name_is_met_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown model 'mobileclip_s9'; did you mean 'mobileclip_s\d'\?"):
        get_spec("mobileclip_s9")
    with pytest.raises(InputError) as e:
        get_spec("")
    assert "mobileclip_nano" in str(e.value)


def test_a_form_that_a_variant_does_not_have():
    assert REGISTRY["mobileclip_s0"].forms == ("native",)
    with pytest.raises(InputError, match="mobileclip_s0 has no open_clip form; its checkpoints are native"):
        REGISTRY["mobileclip_s0"].image("open_clip")
