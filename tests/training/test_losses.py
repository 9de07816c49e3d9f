"""Losses: golden values, what they reduce to, precision under autocast, and inputs at the edges."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.data.batch import Rows
from mobileclip.errors import InputError
from mobileclip.training.losses import ClipLoss, Features, Loss, SigLipLoss, Teachers

DIMS = (6, 10)


def drawn(b: int, d: int, seed: float, f: float, dtype: torch.dtype = torch.float64) -> Tensor:
    i, j = torch.arange(b, dtype=torch.float64)[:, None], torch.arange(d, dtype=torch.float64)
    return F.normalize(torch.sin(f * i * (j + 1) + 0.31 * j + seed), dim=1).to(dtype)


def student(
    b: int = 4, *, synthetic: bool = True, scale: float = 10, bias: float | None = None, dtype: torch.dtype = torch.float64
) -> Features:
    rows = Rows(drawn(b, 8, 0.1, 1.7, dtype), drawn(b, 8, 0.2, 0.9, dtype), drawn(b, 8, 0.3, 1.3, dtype) if synthetic else None)
    rows = rows.map(lambda t: t.requires_grad_())
    return Features(rows, torch.tensor(scale, dtype=dtype, requires_grad=True), None if bias is None else torch.tensor(bias, dtype=dtype))


def teachers(b: int = 4, dtype: torch.dtype = torch.float64) -> Rows:
    def members(seed: float, f: float) -> Tensor:
        return torch.cat([drawn(b, d, seed + 0.05 * k, f, dtype) for k, d in enumerate(DIMS)], 1)

    return Rows(members(1.0, 1.7), members(1.1, 1.5), members(1.2, 1.6))


def gradients(features: Features, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [features.rows.image, *features.rows.captions, features.scale]))


GOLDEN = [
    (1.0, (7.0, 6.0), True, 0, 4.459332),
    (1.0, (7.0, 6.0), False, 0, 2.735493),
    (0.75, (10.0, 10.0), True, 0.900857, 3.399998),
    (0.75, (10.0,), True, 0.900857, 3.399998),  # one scale stands for all
    (0.75, (10.0,), False, 0.546860, 2.061440),
    (0.0, (10.0,), True, 3.603428, 0),
    (0.0, (10.0,), False, 2.187440, 0),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-7), (torch.float32, 3e-6)])
@pytest.mark.parametrize(("weight", "scales", "synthetic", "contrastive", "distillation"), GOLDEN)
def test_golden_values(weight, scales, synthetic, contrastive, distillation, dtype, tolerance):
    losses = ClipLoss(weight, Teachers(DIMS, scales))(student(synthetic=synthetic, dtype=dtype), teachers(dtype=dtype))
    assert losses.contrastive.item() == pytest.approx(contrastive, abs=tolerance)
    assert losses.distillation.item() == pytest.approx(distillation, abs=tolerance)
    assert losses.loss.item() == pytest.approx(contrastive + distillation, abs=2 * tolerance)
    assert losses.loss.dtype == dtype


def test_golden_divergence():
    losses = ClipLoss(1.0, Teachers(DIMS, (7.0, 6.0)))(student(synthetic=False), teachers())
    assert losses.kl.item() == pytest.approx(2.139743, abs=5e-7)
    assert (losses.distillation - losses.kl).item() == pytest.approx(0.595750, abs=1e-6)
    assert not losses.kl.requires_grad


def test_divergence_does_not_depend_on_the_weight():
    kl = [ClipLoss(w, Teachers(DIMS, (7.0, 6.0)))(student(), teachers()).kl.item() for w in (0.1, 0.5, 1.0)]
    assert kl == pytest.approx([kl[0]] * 3, abs=1e-12)
    assert ClipLoss()(student(), teachers()).kl.item() == 0


def test_equal_to_the_definition_written_out():
    """Equations 2 and 3 of MobileCLIP, one KL for each teacher and direction; its gradients are those of the cross-entropy."""
    weight, scales = 0.6, (30.0, 20.0)
    features = student()
    losses = ClipLoss(weight, Teachers(DIMS, scales))(features, teachers())
    expected, plain = features.scale.new_zeros(()), features.scale.new_zeros(())
    for caption, teacher_caption in zip(features.rows.captions, teachers().captions, strict=True):
        for mine, other, t_mine, t_other in (
            (features.rows.image, caption, teachers().image, teacher_caption),
            (caption, features.rows.image, teacher_caption, teachers().image),
        ):
            log_q = (features.scale * mine @ other.T).log_softmax(1)
            plain = plain + F.cross_entropy(features.scale * mine @ other.T, torch.arange(4)) / 2
            for k, part in enumerate((slice(0, 6), slice(6, 16))):
                log_p = (scales[k] * t_mine[:, part] @ t_other[:, part].T).log_softmax(1)
                expected = expected + (log_p.exp() * (log_p - log_q)).sum() / (4 * 2 * 2)
    total = (1 - weight) * plain + weight * expected
    assert losses.contrastive.item() == pytest.approx((1 - weight) * plain.item(), abs=1e-12)
    assert losses.kl.item() == pytest.approx(expected.item(), abs=1e-12)
    for got, want in zip(gradients(features, losses.loss), gradients(features, total), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [None, 3.0])
def test_plain_loss_is_open_clips(bias):
    """A bias of all logits cancels in a softmax, but must not fail."""
    features = student(16, synthetic=False, bias=bias)
    theirs = open_clip.ClipLoss()(features.rows.image, features.rows.real, features.scale)
    assert ClipLoss()(features, None).loss.item() == pytest.approx(theirs.item(), abs=1e-12)


def test_sigmoid_loss_is_open_clips():
    features = student(16, synthetic=False, bias=-4.0)
    theirs = open_clip.loss.SigLipLoss()(features.rows.image, features.rows.real, features.scale, features.bias)
    assert SigLipLoss()(features, None).loss.item() == pytest.approx(theirs.item(), abs=1e-12)
    both = student(16, bias=-4.0)
    assert SigLipLoss()(both, None).loss.item() > SigLipLoss()(features, None).loss.item() + 1


def test_distilled_sigmoid_loss():
    members = Teachers(DIMS, (7.0, 6.0), (-3.0, -2.0))
    features, rows = student(synthetic=False, bias=-1.0), teachers()
    z = features.scale * features.rows.image @ features.rows.real.T + features.bias
    q, members_p, divergence = z.sigmoid(), [], z.new_zeros(())
    for scale, bias, part in ((7, -3, slice(0, 6)), (6, -2, slice(6, 16))):
        p = (scale * rows.image[:, part] @ rows.real[:, part].T + bias).sigmoid()
        members_p.append(p)
        divergence = divergence + (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 4 / 2
    p = (members_p[0] + members_p[1]) / 2
    losses = SigLipLoss(1.0, members)(features, rows)
    assert losses.kl.item() == pytest.approx(divergence.item(), abs=1e-12)
    for got, want in zip(gradients(features, losses.loss), gradients(features, divergence), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    signed = SigLipLoss(1.0, members, "signed")(features, rows)
    assert signed.distillation.item() == pytest.approx(-((2 * p - 1) * z).sigmoid().log().sum().item() / 4, abs=1e-12)
    assert signed.kl.item() == pytest.approx(divergence.item(), abs=1e-12)


def test_a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient():
    rows = Rows(drawn(6, 8, 0.1, 1.7), drawn(6, 8, 0.2, 0.9), drawn(6, 8, 0.3, 1.3))
    for loss, bias in ((ClipLoss(1.0, Teachers((8,), (20.0,))), 0.0), (SigLipLoss(1.0, Teachers((8,), (20.0,), (-5.0,))), -5.0)):
        features = Features(rows.map(lambda t: t.clone().requires_grad_()), torch.tensor(20.0, requires_grad=True), torch.tensor(bias))
        losses = loss(features, rows)
        assert abs(losses.kl.item()) < 1e-12
        assert losses.distillation.item() > 0.01
        assert max(g.abs().max().item() for g in gradients(features, losses.loss)) < 1e-6  # the scale is float32


def test_second_stream_is_left_out_where_the_student_has_none():
    members = Teachers(DIMS, (7.0, 6.0))
    one = Rows(teachers().image, teachers().real)
    assert ClipLoss(0.5, members)(student(synthetic=False), teachers()).loss == ClipLoss(0.5, members)(student(synthetic=False), one).loss


# --- precision and edges ---------------------------------------------------------------------------------------------------------

LOSSES = [
    ClipLoss(),
    ClipLoss(1.0, Teachers(DIMS)),
    ClipLoss(0.75, Teachers(DIMS, (70.0, 60.0))),
    SigLipLoss(),
    SigLipLoss(0.5, Teachers(DIMS, (100.0,), (-10.0,))),
    SigLipLoss(1.0, Teachers(DIMS, (100.0,), (-10.0,)), "signed"),
]


def unchecked(loss: Loss, features: Features, rows: Rows) -> list[Tensor]:
    losses = loss(features, rows)
    values = [losses.loss, losses.contrastive, losses.distillation, losses.kl, *gradients(features, losses.loss)]
    assert all(v.isfinite().all() for v in values), values
    return values


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(loss, dtype):
    expected = unchecked(loss, student(64, scale=100, dtype=torch.float32), teachers(64, torch.float32))
    features = student(64, scale=100, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        losses = loss(features, teachers(64, torch.float32))
        product = features.rows.image @ features.rows.image.T
    got = [losses.loss, losses.contrastive, losses.distillation, losses.kl, *gradients(features, losses.loss)]
    assert product.dtype == dtype  # autocast was on
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_computed_in_float32(loss, dtype):
    rounded = [x.map(lambda t: t.detach().to(dtype)) for x in (student(64).rows, teachers(64))]

    def losses(to: torch.dtype) -> list[Tensor]:
        features = Features(rounded[0].map(lambda t: t.to(to).requires_grad_()), torch.tensor(100.0, requires_grad=True))
        return unchecked(loss, features, rounded[1].map(lambda t: t.to(to)))

    for a, b in zip(losses(dtype)[:4], losses(torch.float32)[:4], strict=True):
        assert a.dtype == torch.float32
        assert a.item() == b.item()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("b", [1, 2, 33])
@pytest.mark.parametrize("case", ["ordinary", "equal", "opposite", "zero", "perfect"])
def test_edges_are_finite(loss, scale, b, case):
    features, rows = student(b, scale=scale, bias=-10.0, dtype=torch.float32), teachers(b, torch.float32)
    image = features.rows.image.detach()
    image = {"equal": image[:1].expand(b, -1), "zero": torch.zeros_like(image)}.get(case, image)
    caption = {"equal": image, "perfect": image, "opposite": -image}.get(case, features.rows.real.detach())
    if case == "zero":
        rows = rows.map(torch.zeros_like)
    made = Rows(image, caption, caption).map(lambda t: t.clone().requires_grad_())
    values = unchecked(loss, Features(made, features.scale, features.bias), rows)
    if case in ("equal", "zero") and isinstance(loss, ClipLoss) and not loss.weight:
        assert values[0].item() == pytest.approx(2 * math.log(b), abs=2e-3 if scale > 100 else 1e-5)
    if b == 1 and isinstance(loss, ClipLoss):
        assert max(v.abs().max().item() for v in values) == 0  # one column has probability 1


def test_float32_at_the_largest_scale_is_close_to_float64():
    for loss in LOSSES:
        exact = loss(student(256, scale=100), teachers(256))
        got = loss(student(256, scale=100, dtype=torch.float32), teachers(256, torch.float32))
        assert got.loss.item() == pytest.approx(exact.loss.item(), rel=2e-6)
        assert got.kl.item() == pytest.approx(exact.kl.item(), rel=1e-5, abs=1e-5)


# --- refusals --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipLoss(0.5), "needs teachers"),
        (lambda: ClipLoss(1.5, Teachers(DIMS)), "choose 0"),
        (lambda: SigLipLoss(-0.1), "choose 0"),
        (lambda: ClipLoss(math.nan), "choose 0"),
        (lambda: Teachers(()), "at least one"),
        (lambda: Teachers((6, 0)), "each positive"),
        (lambda: Teachers((6, 10), (7, 6, 5)), "3 teacher scales for 2 teachers; give one for all or one each"),
        (lambda: Teachers((6, 10), (7,), ()), "0 teacher biases for 2 teachers"),
        (lambda: Teachers((6, 10), weights=(0, 0)), "one must be positive"),
        (lambda: Teachers((6, 10), weights=(2, -1)), "none may be negative"),
        (lambda: ClipLoss(0.5, Teachers(DIMS))(student(), None), "reinforce the data or set the weight to 0"),
        (lambda: ClipLoss(0.5, Teachers(DIMS))(student(), Rows(teachers().image, teachers().real)), "reinforce the data"),
        (lambda: ClipLoss(0.5, Teachers((6, 9)))(student(), teachers()), r"rows of \[16\] values, .* add up to 15"),
    ],
)
def test_refused(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_rows_without_weight_are_not_looked_at():
    broken = Rows(torch.full((4, 3), math.nan), torch.zeros(1, 1))
    assert ClipLoss()(student(), broken).loss.item() == pytest.approx(3.603428, abs=5e-7)


@pytest.mark.parametrize("kind", [ClipLoss, SigLipLoss])
def test_weights_of_teachers(kind):
    """A member without weight is as if it were not there, and the mean is linear in the members' shares."""

    def loss(*weights: float) -> Tensor:
        return kind(1.0, Teachers(DIMS, (7.0, 6.0), weights=weights))(student(), teachers()).distillation

    alone = kind(1.0, Teachers(DIMS[:1], (7.0,)))(student(), teachers().map(lambda t: t[:, : DIMS[0]])).distillation
    assert loss(1, 0).item() == alone.item() == loss(5, 0).item()
    assert loss(1, 3).item() == pytest.approx((loss(1, 0) / 4 + 3 * loss(0, 1) / 4).item(), abs=1e-12)
    assert loss(2, 2).item() == loss(1, 1).item()
