"""Gradient accumulation: the gradients of a batch in one go, dropout and BatchNorm included, and the batch's parts."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import nn
from toys import LOSSES, batch_of, difference, gradients, student

from mobileclip.data.batch import Batch, Rows
from mobileclip.errors import InputError
from mobileclip.training.accumulation import accumulated_step
from mobileclip.training.losses import Features, Loss, Losses
from mobileclip.training.student import Student, freeze


def in_one_go(model: Student, parts: list[Batch], loss: Loss) -> Losses:
    """Each part through the model in turn, with gradient, and the loss on all: what accumulation computes with less memory."""
    features = [model(part) for part in parts]
    whole = Features(Rows.joined([f.rows for f in features]), features[0].scale, features[0].bias)
    teachers = [part.teachers for part in parts]
    losses = loss(whole, Rows.joined([t for t in teachers if t]))
    losses.loss.backward()
    return losses


def backward(loss: torch.Tensor) -> None:
    loss.backward()


@pytest.mark.parametrize("synthetic", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_the_same_as_the_batch_in_one_go(name: str, synthetic: bool) -> None:
    """9 samples in 4 parts of 3, 2, 2, 2; with running statistics BatchNorm does not depend on the batch."""
    batch = batch_of(9, synthetic=synthetic)
    one, many = student().eval(), student().eval()
    expected = LOSSES[name](one(batch), batch.teachers)
    expected.loss.backward()
    got = accumulated_step(many, batch.split(4), LOSSES[name], backward)
    for field in fields(Losses):
        torch.testing.assert_close(getattr(got, field.name), getattr(expected, field.name).detach(), rtol=1e-12, atol=1e-12)
        assert not getattr(got, field.name).requires_grad
    assert difference(gradients(many), gradients(one)) < 1e-12
    assert gradients(many)["clip.logit_scale"].abs() > 1e-3  # one value for all parts, so its gradient must not come in once a part


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_dropout_and_batch_norm(parts: int) -> None:
    """In train mode: the same dropout, statistics of micro-batches, counted once; the random state goes on as without accumulation."""
    batch = batch_of(6)
    one, many = student(dropout=0.3), student(dropout=0.3)
    torch.manual_seed(5)
    in_one_go(one, batch.split(parts), LOSSES["reinforced"])
    after = torch.rand(4)
    torch.manual_seed(5)
    accumulated_step(many, batch.split(parts), LOSSES["reinforced"], backward)
    assert torch.equal(torch.rand(4), after)
    assert difference(gradients(many), gradients(one)) < 1e-12
    for (name, got), expected in zip(many.named_buffers(), one.buffers(), strict=True):
        assert torch.equal(got, expected), name
    assert {m.num_batches_tracked.item() for m in many.modules() if isinstance(m, nn.BatchNorm2d)} == {parts}
    torch.manual_seed(6)
    in_one_go(other := student(dropout=0.3), batch.split(parts), LOSSES["reinforced"])
    assert difference(gradients(other), gradients(one)) > 1e-3  # the dropout does matter


def test_gradients_add_up_over_steps_and_scale_with_the_loss() -> None:
    batch, model = batch_of(4), student().eval()
    accumulated_step(model, batch.split(2), LOSSES["reinforced"], backward)
    once = gradients(model)
    accumulated_step(model, batch.split(2), LOSSES["reinforced"], lambda loss: (loss * 1024).backward())
    assert difference(gradients(model), {n: 1025 * g for n, g in once.items()}) < 1e-12


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_a_frozen_tower_has_no_gradient(frozen: str) -> None:
    batch, one, many = batch_of(6), student(), student()
    for model in (one, many):
        freeze(model.clip, **{frozen: True})
        model.train()
    buffers = {n: b.clone() for n, b in many.named_buffers()}
    in_one_go(one, batch.split(2), LOSSES["reinforced"])
    accumulated_step(many, batch.split(2), LOSSES["reinforced"], backward)
    assert difference(gradients(many), gradients(one)) < 1e-12
    prefix = "clip.visual." if frozen == "image" else "clip.text."
    assert not any(n.startswith(prefix) for n in gradients(many))
    assert all(torch.equal(b, buffers[n]) for n, b in many.named_buffers() if n.startswith(prefix))


def test_autocast_inside_the_student() -> None:
    """float32 weights, bfloat16 towers: to bfloat16's accuracy the gradients of the parts are those of the whole."""
    batch = batch_of(8)
    one, many = (student(dtype=torch.float32).eval() for _ in range(2))
    one.dtype = many.dtype = torch.bfloat16
    features = one(batch)
    assert features.rows.image.dtype == torch.float32
    LOSSES["reinforced"](features, batch.teachers).loss.backward()
    accumulated_step(many, batch.split(2), LOSSES["reinforced"], backward)
    assert difference(gradients(many), gradients(one)) < 0.05


# --- batches ---------------------------------------------------------------------------------------------------------------------


def test_split_and_join() -> None:
    batch = batch_of(7)
    parts = batch.split(3)
    assert [len(p) for p in parts] == [3, 2, 2]
    joined = Batch.joined(parts)
    assert all(torch.equal(getattr(joined, f.name), getattr(batch, f.name)) for f in fields(Batch))
    assert Batch.joined(batch_of(4, synthetic=False).split(2)).synthetic_tokens is None
    for n in (0, 8):
        with pytest.raises(InputError, match=f"a batch of 7 cannot be split in {n}; accumulate"):
            batch.split(n)


def test_to_a_device() -> None:
    moved = batch_of(2, synthetic=False).to("meta")
    assert {getattr(moved, f.name).device.type for f in fields(Batch) if getattr(moved, f.name) is not None} == {"meta"}
    assert moved.image.dtype == torch.uint8
    assert moved.teacher_synthetic is None


def test_teachers_of_a_batch() -> None:
    batch = batch_of(2)
    assert batch.teachers is not None
    assert len(batch.teachers.captions) == 2
    assert Batch(batch.image, batch.tokens, teacher_image=batch.teacher_image).teachers is None
