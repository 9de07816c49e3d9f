"""The student: pixels as at inference, both caption streams in one go, and rows that cannot be normalised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from toys import LOSSES, batch_of, student

from mobileclip.preprocess import preprocess_batch
from mobileclip.training.optim import apply_gradients
from mobileclip.training.student import Student


def test_equal_to_the_model_at_inference() -> None:
    batch = batch_of(4)
    model = student(dtype=torch.float32).eval()
    pictures = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in batch.image]
    pixels = torch.from_numpy(preprocess_batch(pictures, model.clip.spec.preprocess))
    image, text, scale = model.clip(pixels, batch.tokens)
    features = model(batch)
    torch.testing.assert_close(features.rows.image, image, rtol=0, atol=1e-6)
    torch.testing.assert_close(features.rows.real, text, rtol=0, atol=1e-6)
    assert batch.synthetic_tokens is not None
    torch.testing.assert_close(features.rows.synthetic, model.clip.encode_text(batch.synthetic_tokens, normalize=True), rtol=0, atol=1e-6)
    assert features.scale.item() == scale.item()


def test_each_tower_runs_once() -> None:
    model, runs = student(), []
    model.clip.visual.register_forward_hook(lambda module, args, out: runs.append(("image", len(out))))
    model.clip.text.register_forward_hook(lambda module, args, out: runs.append(("text", len(out))))
    model(batch_of(3))
    model(batch_of(3, synthetic=False))
    assert runs == [("image", 3), ("text", 6), ("image", 3), ("text", 3)]


def test_only_the_bias_is_added_to_the_state() -> None:
    model = student(bias=None)
    assert {n.removeprefix("clip.") for n in model.state_dict()} == set(model.clip.state_dict())
    assert set(student(bias=-10.0).state_dict()) - set(model.state_dict()) == {"logit_bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_the_towers_only(dtype: torch.dtype) -> None:
    model = student(dtype=torch.float32)
    seen = []
    model.clip.text.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    model.dtype = dtype
    features = model(batch_of(4))
    assert seen == [dtype]
    for rows in (features.rows.image, *features.rows.captions):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_empty_rows_do_not_spoil_the_gradients(name: str, dtype: torch.dtype | None) -> None:
    """Captions without an end token have the embedding 0; so have all images after the projection became 0."""
    batch, model = batch_of(4), student(dtype=torch.float32)
    model.dtype = dtype
    batch = replace(batch, tokens=torch.ones_like(batch.tokens))
    torch.nn.init.zeros_(model.clip.visual.trunk.head.fc.weight)
    torch.nn.init.zeros_(model.clip.visual.trunk.head.fc.bias)
    features = model(batch)
    assert features.rows.image.abs().max() == features.rows.real.abs().max() == 0
    LOSSES[name](features, batch.teachers).loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = all(g.isfinite().all() for g in gradients)
    assert finite or dtype == torch.float16  # which overflows, and the scaler leaves the step out
    assert not any(g.isnan().any() for g in gradients) or dtype == torch.float16


def test_a_step_on_one_sample() -> None:
    model = student(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batch = batch_of(1, resolution=64)  # at the tiny model's own 32 pixels BatchNorm would see one value
    LOSSES["reinforced"](model(batch), batch.teachers).loss.backward()
    assert apply_gradients(model, optimizer).item() == 0


def test_frozen_towers_stay_in_eval_mode() -> None:
    model = student()
    model.clip.visual.requires_grad_(False)
    assert isinstance(model.train(), Student)
    assert not any(m.training for m in model.clip.visual.modules())
    assert all(m.training for m in model.clip.text.modules())
    assert not any(m.training for m in model.eval().modules())
