"""Every field of a config reaches the run; what the parts do is tested with them. The model is a tiny one."""

from __future__ import annotations

import hashlib
import importlib
import signal
import sys
from dataclasses import replace

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from toys import TINY, TRAINABLE, parts_that_differ

from mobileclip import checkpoints, hub, names
from mobileclip.checkpoints import recipe_checkpoint
from mobileclip.data.augment import Policy
from mobileclip.errors import CheckpointError, GateError, InputError, MissingToolError
from mobileclip.models.clip import CLIP
from mobileclip.specs import REGISTRY
from mobileclip.training import distributed, state, trainer
from mobileclip.training.log import Log, read_log
from mobileclip.training.losses import ClipLoss, SigLipLoss, Teachers
from mobileclip.training.scoring import evaluator
from mobileclip.training.setup import make_loss, make_optimizer, make_recipe, make_scaler, start_model
from mobileclip.training.student import Student
from mobileclip.training.trainer import train
from tests.training.conftest import picture, settings

TEACHERS = [{"name": "a", "width": 3, "scale": 7, "bias": -1, "weight": 2}, {"name": "b", "width": 4}]


@pytest.fixture(autouse=True, scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, "mobileclip_nano", TRAINABLE)
        yield


def silent(step):
    pass


def weights(config, folder):
    train(config, folder, progress=silent)
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.safetensors", "model-ema.safetensors")]


@pytest.fixture(scope="module")
def plain(tiny, shards, tmp_path_factory):
    return weights(settings(shards), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "change",
    [
        {"accumulation": 2}, {"precision": "bf16"}, {"precision": "fp16"}, {"optimizer": {"max_norm": 1e-3}}, {"loss": {"kind": "siglip"}},
        {"data": {"shards": ["SHARDS"], "workers": 0, "window": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_it_matters(plain, shards, tmp_path, change):
    if "data" in change:
        change = {"data": change["data"] | {"shards": [str(shards)]}}
    assert weights(settings(shards, **change), tmp_path)[0] != plain[0]


def test_decay_of_the_average_matters(plain, shards, tmp_path):
    same, average = weights(settings(shards, ema=0.05), tmp_path)
    assert same == plain[0]
    assert average != plain[1]


def test_schedule(shards, tmp_path):
    schedule = {"samples": 32, "warmup_steps": 2, "decay": "linear", "decay_steps": 4, "min_lr": 2e-4}
    train(settings(shards, schedule=schedule, optimizer={"lr": 1e-3, "layer_decay": 0.5}), tmp_path, progress=silent)
    rates = [line["lr"] for line in read_log(tmp_path) if "lr" in line]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 8e-4, 6e-4, 4e-4])


def test_optimizer(shards):
    o = {"lr": 1e-2, "betas": [0.8, 0.9], "eps": 1e-5, "weight_decay": 0.1, "layer_decay": 0.5}
    config = settings(shards, optimizer=o)
    groups = make_optimizer(Student(start_model(config)), config, 4e-3).param_groups
    assert {(g["betas"], g["eps"]) for g in groups} == {((0.8, 0.9), 1e-5)}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.1}
    assert {g["lr"] for g in groups} == {4e-3 * 0.5**i for i in range(6)}


def test_loss(shards):
    stored = {"shards": [str(shards)], "augmentation": "stored"}
    for kind, expected in (("clip", ClipLoss), ("siglip", SigLipLoss)):
        config = settings(shards, data=stored, loss={"kind": kind, "distillation": 0.5, "teachers": TEACHERS})
        assert make_loss(config) == expected(0.5, Teachers((3, 4), (7, 100), (-1, 0), (2, 1)))


def test_recipe(shards):
    data = {
        "shards": [str(shards)], "captions": "random", "mix": 0.3, "synthetic_keys": "^x$", "in_turn": True, "min_side": 9,
        "augmentation": {"scale": [0.1, 0.2], "ratio": [1, 2], "rand_augment": True},
    }  # fmt: skip
    made = make_recipe(settings(shards, data=data))
    assert made.policy == Policy(TINY.preprocess.resolution, (0.1, 0.2), (1, 2), rand_augment=True)
    assert (made.captions, made.mix, made.synthetic_keys, made.in_turn, made.min_side, made.width) == ("random", 0.3, "^x$", True, 9, None)
    stored = data | {"augmentation": "stored"}
    assert make_recipe(settings(shards, data=stored, loss={"distillation": 1, "teachers": TEACHERS})).width == 7


def test_sigmoid_loss_starts_at_its_own_scale_and_bias(shards, tmp_path):
    def started(folder, **changes):
        config = settings(shards, optimizer={"lr": 1e-9}, schedule={"samples": 4, "warmup_steps": 0}, **changes)
        train(config, tmp_path / folder, progress=silent)
        student = state.load(state.path_of(tmp_path / folder, 1))["student"]
        return student["clip.logit_scale"].exp().item(), student.get("logit_bias")

    scale, bias = started("plain")
    assert (scale, bias) == (pytest.approx(1 / 0.07, rel=1e-4), None)
    assert started("sigmoid", loss={"kind": "siglip"}) == pytest.approx((10, -10), rel=1e-4)
    kept, _ = started("from weights", loss={"kind": "siglip"}, init=str(tmp_path / "plain/model.safetensors"))
    assert kept == pytest.approx(scale)  # what a trained model has learned stays


def test_starts_from_a_state_of_either_form(shards, tmp_path, monkeypatch):
    """A run has the form of the weights it started from, and its states have no name for it."""
    spec = REGISTRY["mobileclip_nano"]
    monkeypatch.setitem(REGISTRY, "mobileclip_nano", replace(spec, native=replace(spec.open_clip, head_bias=False)))
    config = settings(shards)
    for form in ("native", "open_clip"):
        student = Student(CLIP(REGISTRY["mobileclip_nano"], form))
        path = state.save(tmp_path, 1, {"config": {}, "step": 1, "student": student.state_dict(), "optimizer": {}}, keep=1)
        started = start_model(config.model_copy(update={"init": str(path)}))
        assert started.form == form
        assert all(torch.equal(t, student.clip.state_dict()[n]) for n, t in started.state_dict().items())


def test_starts_from_published_weights(shards, tmp_path, monkeypatch):
    """In Apple's own form, by the name of the variant or of the file, and the run keeps that form; fused ones are refused."""
    small = replace(TRAINABLE, name="mobileclip_s1", native=replace(TRAINABLE.open_clip, head_bias=False))
    spec = replace(small, published_form="native", weights=REGISTRY["mobileclip_s1"].weights)
    monkeypatch.setitem(REGISTRY, spec.name, spec)
    files = {(spec.weights.repo_id, spec.weights.filename): tmp_path / "mobileclip_s1.pt"}
    monkeypatch.setattr(hub, "cached", lambda *asked: files.get(asked))
    config = settings(shards, model=spec.name, init=spec.name)
    path, published = tmp_path / "mobileclip_s1.pt", recipe_checkpoint(spec)
    checkpoints.save(published, path)
    assert all(names.is_native(n) for n in torch.load(path, weights_only=True) if n != "logit_scale")
    for init in (spec.name, str(path)):
        started = start_model(config.model_copy(update={"init": init}))
        assert started.form == "native"
        assert all(torch.equal(t, published.state[n]) for n, t in started.state_dict().items())
    train(config, tmp_path / "run", progress=silent)
    trained = checkpoints.load(tmp_path / "run/model.safetensors")
    assert (trained.spec, trained.form, trained.fused) == (spec, "native", False)
    assert any(not torch.equal(t, published.state[n]) for n, t in trained.state.items())
    checkpoints.save(checkpoints.fused(published), path)
    with pytest.raises(CheckpointError, match=r"mobileclip_s1.pt: is fused for inference, its training branches are gone; start from the"):
        train(config, tmp_path / "fused", progress=silent)
    files.clear()
    with pytest.raises(InputError, match="its weights are not here yet; run `mobileclip pull mobileclip_s1`"):
        start_model(config)


def test_weights_that_are_not_there(shards):
    with pytest.raises(InputError, match=r"init: weights/none.pt: no such file; give a checkpoint file or the name of a variant"):
        start_model(settings(shards, init="weights/none.pt"))


def test_weights_and_biases(tmp_path, monkeypatch):
    """A package of that name stands in for it. A run that goes on is the same there."""
    (tmp_path / "wandb.py").write_text(
        "made, told = [], []\n"
        "def init(**options): made.append(options); return type('Run', (), {'log': lambda s, v, step: told.append((step, v)),"
        " 'finish': lambda s: told.append('end')})()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    log = Log(tmp_path, 0, {"seed": 3})
    log.write(1, {"loss": 0.5})
    log.close()
    monkeypatch.setenv("WANDB_PROJECT", "mobileclip")
    for step in (1, 2):
        log = Log(tmp_path, step - 1, {"seed": 3})
        log.write(step, {"loss": 0.5, "skipped": {}})
        log.close()
    wandb = importlib.import_module("wandb")
    assert wandb.told == [(1, {"loss": 0.5}), "end", (2, {"loss": 0.5}), "end"]
    assert [(m["config"], m["resume"]) for m in wandb.made] == [({"seed": 3}, "allow")] * 2
    assert wandb.made[0]["id"] == wandb.made[1]["id"]
    monkeypatch.delitem(sys.modules, "wandb")


def test_one_folder_for_all_processes(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "objects", lambda value: [value, [1]])
    with pytest.raises(InputError, match="the processes see different states there; it must be one folder for all machines"):
        train(settings(shards), tmp_path, progress=silent)


def test_an_evaluation_that_fails_is_named_and_costs_no_weights(shards, tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "0.png").write_bytes(picture(0))
        (tmp_path / "data" / label / "1.png").write_bytes(b"no picture")
    config = settings(shards, evaluations=[{"name": "pets", "data": str(tmp_path / "data")}])
    with pytest.raises(InputError, match=r"evaluations, pets: 2 of 4 samples are bad \(bad_image 2\), more than data.max_bad 1.00%"):
        train(config, tmp_path / "run", progress=silent, evaluate=evaluator(config))
    assert (tmp_path / "run/model.safetensors").exists()


def test_threads_checkpointing_and_compiling(plain, shards, tmp_path, monkeypatch):
    """These do not change the weights, so it is seen whether they were asked for."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda student: asked.append(type(student)) or student)
    assert weights(settings(shards, compile=True), tmp_path / "compiled") == plain
    assert asked == [Student]
    real = trainer.checkpoint_blocks
    monkeypatch.setattr(trainer, "checkpoint_blocks", lambda clip: asked.append("blocks") or real(clip))
    assert weights(settings(shards, gradient_checkpointing=True), tmp_path / "checkpointed") == plain
    assert asked == [Student, "blocks"]
    before = torch.get_num_threads()
    config = settings(shards, threads=before + 1, schedule={"samples": 4, "warmup_steps": 1})
    train(config, tmp_path / "threads", progress=lambda step: asked.append(torch.get_num_threads()))
    assert asked[2:] == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_compiled(shards, tmp_path):
    """By torch's own compiler: the first loss of the run that is not compiled, to rounding; Adam's first steps magnify it in the next."""
    logs = []
    for compiled in (False, True):
        config = settings(shards, compile=compiled, schedule={"samples": 12, "warmup_steps": 1})
        train(config, tmp_path / str(compiled), progress=silent)
        logs.append([line["loss"] for line in read_log(tmp_path / str(compiled))])
    assert logs[1][0] == pytest.approx(logs[0][0], rel=1e-5)
    assert logs[1] == pytest.approx(logs[0], rel=5e-3)


def test_a_compiler_that_is_missing_is_named(shards, tmp_path, monkeypatch):
    def fails(module):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no compiler\nat all"), None)

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(MissingToolError, match=r"torch.compile failed .*no compiler at all.*set compile: false"):
        train(settings(shards, compile=True), tmp_path, progress=silent)


@pytest.mark.parametrize("change", [{"precision": "fp16"}, {"loss": {"kind": "siglip"}, "accumulation": 2, "ema": None}], ids=str)
def test_going_on_brings_everything_back(shards, tmp_path, change):
    """The last state of a run that was cut is that of one that was not: optimizer, scaler, random numbers, position and counts."""
    config = settings(shards, save_every=100, **change)

    def run(name, cut_at=None):
        def draw(step):
            if step.startswith("step"):
                torch.rand(1)
            if step.startswith(f"step {cut_at}"):
                signal.raise_signal(signal.SIGINT)

        train(config, tmp_path / name, progress=draw)

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", 3)
    assert state.saved_steps(tmp_path / "cut")[0] in (3, 4)
    run("cut")
    whole, cut = (state.load(state.path_of(tmp_path / name, 6)) for name in ("whole", "cut"))
    assert parts_that_differ(whole, cut) == []
    assert bool(whole["scaler"]) == (config.precision == "fp16")


@pytest.mark.parametrize("ema", [0.9, None])
def test_evaluation_is_in_eval_mode_and_draws_no_random_numbers(shards, tmp_path, ema):
    def run(name, evaluate):
        drawn = []

        def draw(step):
            if "loss" in step:
                drawn.append(torch.rand(1).item())

        train(settings(shards, evaluate_every=2, ema=ema), tmp_path / name, progress=draw, evaluate=evaluate)
        return drawn, (tmp_path / name / "model.safetensors").read_bytes()

    def evaluate(model):
        modes.append(model.training)
        return {"score": torch.rand(3).sum().item()}

    modes = []
    assert run("evaluated", evaluate) == run("plain", None)
    assert modes == [False, False, False]


def test_a_scaler_may_leave_out_steps(shards, tmp_path, monkeypatch):
    """The first scale is too large for float16; that is not a loss that is no longer finite."""
    monkeypatch.setattr(trainer, "make_scaler", lambda config, device: torch.amp.GradScaler("cpu", init_scale=2.0**40))
    train(settings(shards, precision="fp16"), tmp_path, progress=silent)
    assert read_log(tmp_path)[0]["skipped_steps"] == 1
    assert make_scaler(settings(shards), torch.device("cpu")) is None


def test_a_scaler_that_leaves_out_every_step_ends_the_run(shards, tmp_path, monkeypatch):
    """Whether or not something was logged meanwhile: nothing would ever be learned."""
    monkeypatch.setattr(
        trainer, "make_scaler", lambda config, device: torch.amp.GradScaler("cpu", init_scale=2.0**100, backoff_factor=0.99)
    )
    config = settings(shards, precision="fp16", log_every=7, schedule={"samples": 120, "warmup_steps": 1})
    with pytest.raises(GateError, match="no longer finite at step 21;"):
        train(config, tmp_path, progress=silent)
