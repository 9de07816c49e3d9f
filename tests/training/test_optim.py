"""Parameter groups of every variant, schedules against open_clip's and torch's own, one step, and the moving average."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from open_clip_train import scheduler as theirs
from toys import LOSSES, batch_of, student

from mobileclip.errors import InputError
from mobileclip.models.clip import CLIP
from mobileclip.specs import REGISTRY
from mobileclip.training.optim import (
    MAX_LOG_SCALE,
    Schedule,
    adamw,
    apply_gradients,
    decays,
    levels_below_top,
    moving_average,
    parameter_groups,
    set_learning_rate,
)
from mobileclip.training.student import Student, freeze

NETS = [pytest.param(spec, form, id=f"{spec.name}-{form}") for spec in REGISTRY.values() for form in spec.forms]


def meta_student(spec, form=None) -> Student:
    with torch.device("meta"):
        return Student(CLIP(spec, form), bias=-10.0)


# --- groups ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "form"), NETS)
def test_groups_of_all_variants(spec, form) -> None:
    model = meta_student(spec, form)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, 0.2, 0.7)
    assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
    levels = {f"clip.{n}": level for n, level in levels_below_top(model.clip).items()} | {"logit_bias": 0}
    for group in groups:
        assert {0.7 ** levels[names[id(p)]] for p in group["params"]} == {group["lr_scale"]}
        assert {0.2 if decays(names[id(p)], p) else 0.0 for p in group["params"]} == {group["weight_decay"]}
    # open_clip's own rule, written out
    excluded = [n for n, p in model.named_parameters() if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    assert sorted(names[id(p)] for g in groups if not g["weight_decay"] for p in g["params"]) == sorted(excluded)
    assert {"clip.logit_scale", "logit_bias", "clip.text.ln_final.weight"} <= set(excluded)


@pytest.mark.parametrize(("spec", "form"), NETS)
def test_levels_of_all_variants(spec, form) -> None:
    levels = levels_below_top(CLIP(spec, form) if spec.name == "mobileclip_nano" else meta_student(spec, form).clip)
    trunk = {n.removeprefix("visual.trunk."): level for n, level in levels.items() if n.startswith("visual.trunk.")}
    text = {n.removeprefix("text."): level for n, level in levels.items() if n.startswith("text.")}
    tower = spec.image(form)
    depth = getattr(tower, "layers", None) or len(tower.dims)
    assert set(trunk.values()) == set(range(depth + 2))
    assert set(text.values()) == set(range(spec.text.layers + 2))
    bottom = {n.split(".")[0] for n, level in trunk.items() if level == depth + 1}
    assert bottom in ({"stem"}, {"cls_token", "pos_embed", "patch_embed"}, {"cls_token", "pos_embed", "patch_embed", "norm_pre"})
    assert {n.split(".")[0] for n, level in trunk.items() if level == 0} in ({"final_conv", "head"}, {"norm", "head"})
    assert {n.split(".")[0] for n, level in text.items() if level == spec.text.layers + 1} == {"token_embedding", "positional_embedding"}
    assert {n.split(".")[0] for n, level in text.items() if level == 0} == {"ln_final", "text_projection"}
    for i in range(depth):
        name = "stages" if hasattr(tower, "dims") else "blocks"
        assert {level for n, level in trunk.items() if n.startswith(f"{name}.{i}.")} == {depth - i}
    for i in range(spec.text.layers):
        assert {level for n, level in text.items() if n.startswith(f"transformer.resblocks.{i}.")} == {spec.text.layers - i}
    assert levels["logit_scale"] == 0


def test_adamw_without_layer_decay_has_two_groups_and_the_learning_rate_is_shared_out() -> None:
    model = student()
    optimizer = adamw(model, 1e-3, eps=1e-6)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.2}
    assert [(g["lr"], g["eps"], g["betas"]) for g in optimizer.param_groups] == [(1e-3, 1e-6, (0.9, 0.95))] * 2
    optimizer = adamw(model, 1e-3, layer_decay=0.5)
    set_learning_rate(optimizer, 8e-3)
    assert {g["lr"] for g in optimizer.param_groups} == {8e-3 * 0.5**i for i in range(6)}  # 4 stages; stem and head


def test_frozen_towers_are_in_no_group() -> None:
    model = student()
    freeze(model.clip, image=True)
    names = {id(p): n for n, p in model.named_parameters()}
    grouped = {names[id(p)] for g in parameter_groups(model, 0.2) for p in g["params"]}
    assert grouped == {n for n in names.values() if not n.startswith("clip.visual.")}
    freeze(model.clip, text=True)
    model.clip.logit_scale.requires_grad_(False)
    model.logit_bias.requires_grad_(False)
    with pytest.raises(InputError, match="all parameters are frozen"):
        parameter_groups(model, 0.2)
    for layer_decay in (0.0, 1.1, math.nan):
        with pytest.raises(InputError, match="layer decay"):
            parameter_groups(student(), 0.2, layer_decay)


# --- schedules -------------------------------------------------------------------------------------------------------------------


def optimizer_at_zero() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_schedules_are_open_clips(warmup: int) -> None:
    optimizer, steps, lr = optimizer_at_zero(), 40, 2e-3
    cases = {
        Schedule(steps, warmup): theirs.cosine_lr(optimizer, lr, warmup, steps),
        Schedule(steps, warmup, "none"): theirs.const_lr(optimizer, lr, warmup, steps),
        Schedule(steps, warmup, "linear", 12): theirs.const_lr_cooldown(optimizer, lr, warmup, steps, 12),
        Schedule(steps, warmup, "linear", 12, 0.1): theirs.const_lr_cooldown(optimizer, lr, warmup, steps, 12, cooldown_end_lr=lr / 10),
    }
    for ours, expected in cases.items():
        for step in range(steps):
            assert lr * ours(step) == pytest.approx(expected(step), rel=1e-12, abs=1e-18), (ours, step)


def test_cosine_to_a_minimum_is_torchs() -> None:
    optimizer = optimizer_at_zero()
    expected = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=2e-6)
    ours = Schedule(50, minimum=1e-3)
    for step in range(51):
        assert 2e-3 * ours(step) == pytest.approx(expected.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        expected.step()


def test_shapes() -> None:
    long = Schedule(600, 2, "cosine", 300)  # constant, then cosine
    assert [long(s) for s in (0, 1, 2, 300)] == [0.5, 1, 1, 1]
    assert long(450) == pytest.approx(0.5)
    assert long(600) == long(10**9) == 0
    assert Schedule(10, minimum=0.2)(10) == pytest.approx(0.2)
    assert Schedule(3, 3)(3) == Schedule(1, decay="none")(5) == 1
    for schedule in (Schedule(100, 10, d, minimum=0.1) for d in ("cosine", "linear", "none")):
        factors = [schedule(s) for s in range(120)]
        assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
        assert all(a >= b for a, b in itertools.pairwise(factors[9:]))


@pytest.mark.parametrize("wrong", [(0,), (5, 6), (5, -1), (9, 5, "cosine", 5), (5, 0, "linear", -1)])
def test_parts_that_do_not_fit(wrong: tuple) -> None:
    with pytest.raises(InputError, match="do not fit"):
        Schedule(*wrong)
    for minimum in (-0.1, 1.5, math.nan):
        with pytest.raises(InputError, match="choose 0 to 1"):
            Schedule(5, minimum=minimum)


# --- a step ----------------------------------------------------------------------------------------------------------------------


def backward(model: Student, seed: int = 0) -> None:
    batch = batch_of(4, seed=seed)
    LOSSES["reinforced"](model(batch), batch.teachers).loss.backward()


def test_clipping_is_by_the_norm_of_all() -> None:
    model = student()
    reference = copy.deepcopy(model)
    for m in (model, reference):
        backward(m)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in reference.parameters()))
    got = apply_gradients(model, torch.optim.SGD(model.parameters(), 1.0), max_norm=norm / 4)
    assert got.item() == pytest.approx(norm, rel=1e-9)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.detach() - b.grad / 4, rtol=0, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("start", "gradient", "end"), [(4.6, -100.0, MAX_LOG_SCALE), (0.01, 100.0, 0.0), (2.0, 1.0, 1.0)])
def test_scale_stays_between_1_and_100(start: float, gradient: float, end: float) -> None:
    model = student()
    with torch.no_grad():
        model.clip.logit_scale.fill_(start)
    model.clip.logit_scale.grad = torch.tensor(gradient, dtype=torch.float64)
    apply_gradients(model, torch.optim.SGD(model.parameters(), 1.0))
    assert model.clip.logit_scale.item() == pytest.approx(end, abs=1e-12)
    assert pytest.approx(4.6052, abs=5e-5) == MAX_LOG_SCALE


def test_overflow_leaves_the_step_out() -> None:
    model = student(dtype=torch.float32)
    optimizer, scaler = adamw(model, 1e-3), torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = copy.deepcopy(model.state_dict())
    batch = batch_of(4)
    scaler.scale(LOSSES["reinforced"](model(batch), batch.teachers).loss * 1e30).backward()
    apply_gradients(model, optimizer, max_norm=1.0, scaler=scaler)
    assert scaler.get_scale() == 2.0**59
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_few_steps_learn() -> None:
    model = student(dtype=torch.float32)
    optimizer, schedule = adamw(model, 3e-3, layer_decay=0.8), Schedule(30, 3, minimum=0.1)
    batch, values = batch_of(8), []
    for step in range(30):
        set_learning_rate(optimizer, 3e-3 * schedule(step))
        losses = LOSSES["reinforced"](model(batch), batch.teachers)
        losses.loss.backward()
        apply_gradients(model, optimizer, max_norm=1.0)
        values.append(losses.kl.item())
    assert values[-1] < 0.5 * values[0]


# --- moving average --------------------------------------------------------------------------------------------------------------


def trained(model: Student, average, steps: range) -> list[dict[str, torch.Tensor]]:
    optimizer, states = torch.optim.SGD(model.parameters(), 0.1), []
    for step in steps:
        backward(model, seed=step)
        apply_gradients(model, optimizer)
        average.update_parameters(model.clip)
        states.append(copy.deepcopy(model.clip.state_dict()))
    return states


@pytest.mark.parametrize("decay", [0.9995, 0.2])
def test_average_is_the_recurrence(decay: float) -> None:
    model = student()
    average = moving_average(model.clip, decay)
    states = trained(model, average, range(4))
    expected = {n: t.double() for n, t in states[0].items()}
    for update, state in enumerate(states[1:], start=1):
        keep = min(decay, (1 + update) / (10 + update))
        expected = {n: keep * t + (1 - keep) * state[n].double() for n, t in expected.items()}
    got = average.module.state_dict()
    for name, value in got.items():
        if name.endswith("num_batches_tracked"):
            assert value.item() == 4
        else:
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)
    moved = [n for n in got if "running_mean" in n and not torch.equal(got[n], states[-1][n])]
    assert len(moved) > 10  # BatchNorm's statistics are averaged too
    assert not average.module.training
    assert not any(p.requires_grad for p in average.parameters())
    assert isinstance(average.module, CLIP)
    assert average.module is not model.clip


def test_average_resumes_exactly(tmp_path) -> None:
    model = student()
    average = moving_average(model.clip)
    trained(model, average, range(2))
    torch.save({"model": model.state_dict(), "average": average.state_dict()}, tmp_path / "x.pt")
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    again = student(seed=1)
    again.load_state_dict(saved["model"])
    other = moving_average(again.clip)
    other.load_state_dict(saved["average"])
    trained(model, average, range(2, 4))
    trained(again, other, range(2, 4))
    for name, value in average.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_decay_that_never_forgets_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match="moving average"):
        moving_average(student().clip, decay)
