"""Configs: the published recipes hold together, and a wrong one names the line and the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobileclip.data.shards import write_shard
from mobileclip.errors import InputError
from mobileclip.training.config import TrainConfig, load_config
from mobileclip.training.losses import ClipLoss
from mobileclip.training.optim import Schedule
from mobileclip.training.setup import make_loss, make_recipe
from mobileclip.training.trainer import train

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
# name: batch size, steps, lambda, (scales of the teachers), warm-up, decay, least rate, all from the papers' tables and scripts
PUBLISHED = {
    "datacomp12m_b": (8192, 30_000, 0.0, (), 1000, 29_000, 0),
    "datacompdr12m_b": (8192, 30_000, 1.0, (100, 100), 1000, 29_000, 0),
    "datacompdr1b_b": (65_536, 200_000, 0.75, (100, 100), 2000, 198_000, 1e-6),
    "datacompdr1b_blt": (65_536, 600_000, 0.75, (100, 100), 2000, 300_000, 1e-6),
    "datacompdr1b_s0": (65_536, 200_000, 1.0, (100, 100), 2000, 198_000, 1e-6),
    "datacompdr1b_s1": (65_536, 200_000, 1.0, (100, 100), 2000, 198_000, 1e-6),
    "datacompdr1b_s2": (65_536, 200_000, 1.0, (100, 100), 2000, 198_000, 1e-6),
    "dfndr12m_b": (8192, 30_000, 1.0, (70, 60), 1000, 29_000, 0),
    "dfndr2b_b": (65_536, 200_000, 1.0, (70, 60), 2000, 198_000, 1e-6),
    "dfndr2b_s0": (65_536, 200_000, 1.0, (70, 60), 10_000, 190_000, 1e-6),
    "dfndr2b_s2": (65_536, 200_000, 1.0, (70, 60), 10_000, 190_000, 1e-6),
    "dfndr2b_s3": (114_688, 200_000, 1.0, (70, 60), 2000, 198_000, 0),
    "dfndr2b_s4": (114_688, 200_000, 1.0, (70, 60), 2000, 198_000, 0),
}
GOOD = """\
schema_version: 1
model: mobileclip_nano
data:
  shards: [data]
schedule: {samples: 1_000, warmup_steps: 1}
batch_size: 10
"""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs(path):
    config = load_config(path)
    assert isinstance(make_loss(config), ClipLoss)
    recipe = make_recipe(config)
    assert (recipe.policy is None) == (config.data.augmentation == "stored")
    schedule = Schedule(config.steps, config.schedule.warmup_steps, config.schedule.decay, config.schedule.decay_steps)
    assert schedule(config.schedule.warmup_steps) == 1
    if path.stem in PUBLISHED:
        teachers = tuple(t.scale for t in config.loss.teachers)
        s, o = config.schedule, config.optimizer
        course = (s.warmup_steps, s.decay_steps or config.steps - s.warmup_steps, s.min_lr)
        assert (config.batch_size, config.steps, config.loss.distillation, teachers, *course) == PUBLISHED[path.stem]
        assert (o.lr, o.betas, o.weight_decay, o.max_norm, s.decay) == (1e-3, (0.9, 0.95), 0.2, 1.0, "cosine")
        assert config.ema == (0.9995 if "datacompdr1b" in path.stem else None)


def test_all_published_recipes_are_there():
    assert PUBLISHED.keys() <= {p.stem for p in CONFIGS}


def test_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + "optimizer: {lr: 5e-4}\n")
    config = load_config(path)
    assert (config.steps, config.optimizer.lr, config.optimizer.weight_decay) == (100, 5e-4, 0.2)
    assert load_config(path, ["data.max_bad=1%"]) == config == TrainConfig.model_validate(config.model_dump())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch_size: 10", "batch_size: 1"), ":6: batch_size: Input should be greater than or equal to 2"),
        (("batch_size: 10", "batchsize: 10"), ":6: batchsize: Extra inputs are not permitted"),
        (("  shards: [data]", "  shards: []"), ":4: data.shards: "),
        (("  shards: [data]", "  shards: [data]\n  max_bad: 2"), ":5: data.max_bad: "),
        (("  shards: [data]", "  shards: [data]\n  max_bad: 200%"), ":5: data.max_bad: Input should be less than or equal to 1"),
        (("  shards: [data]", "  shards: [data]\n  max_bad: x%"), ":5: data.max_bad: is not a share; write for example 1% or 0.01"),
        (("model: mobileclip_nano", "model: mobileclip_nono"), ":2: model: unknown model 'mobileclip_nono'; did you mean"),
        (("model: mobileclip_nano\n", ""), "model: Field required"),
        (("warmup_steps: 1", "warmup_steps: 101"), ":5: schedule.warmup_steps: warm-up and decay are longer than the 100 steps"),
        (("batch_size: 10", "batch_size: 10\nloss: {distillation: 1.0}"), ":3: data.augmentation: loss.distillation needs `stored` here"),
        (("schema_version: 1", "schema_version: 2"), ":1: schema_version: "),
        (("batch_size: 10", "batch_size: 10\nbatch_size: 11"), ":7: batch_size is there twice"),
        (("batch_size: 10", "batch_size: .nan"), ":6: batch_size: "),
        (("batch_size: 10", "batch_size: 1000000000000"), ":6: batch_size: Input should be less than or equal to 1048576"),
        (("[data]", "[data"), "is not YAML"),
        (("shards: [data]", "shards: &a [*a]"), "anchors"),
        (("batch_size: 10", "batch_size: !!python/object/apply:os.system [exit]"), ""),
        (
            ("batch_size: 10", "compile: true\ngradient_checkpointing: true\nbatch_size: 10"),
            ":6: compile: does not go together with gradient_checkpointing",
        ),
        (("  shards: [data]", "  shards: [data]\n  synthetic_keys: ("), ":5: data.synthetic_keys: is no regular expression"),
        (("batch_size: 10", "optimizer: {betas: [0.9, 1.0]}\nbatch_size: 10"), ":6: optimizer.betas"),
        (("batch_size: 10", "batch_size: !!int abc"), "not a value of its type"),
        (("batch_size: 10", "batch_size: 2024-13-45"), "not a value of its type"),
        (("batch_size: 10", "freeze: [image, text]\nbatch_size: 10"), ":6: freeze: with both towers frozen there is nothing to train"),
        (
            ("schedule: {samples: 1_000, warmup_steps: 1}", "schedule:\n  samples: 1_000\n  warmup_steps: 1\n  min_lr: 0.5"),
            ":8: schedule.min_lr: 0.5 is above optimizer.lr",
        ),
        (
            ("schedule: {samples: 1_000, warmup_steps: 1}", "schedule:\n  samples: 1_000\n  warmup_steps: 1\n  decay_steps: 100"),
            ":8: schedule.decay_steps: warm-up",
        ),
        (
            ("batch_size: 10", "loss:\n  teachers: [{name: a, width: 2, weight: 0}]\nbatch_size: 10"),
            ":7: loss.teachers: all have the weight 0",
        ),
        (
            ("[data]", "[data]\n  augmentation:\n    scale: [1.0, 0.5]"),
            ":6: data.augmentation.scale: write the lower and the upper end, both above 0 and at most 1, not [1.0, 0.5]",
        ),
        (("batch_size: 10", "optimizer: {lr: 1e300}\nbatch_size: 10"), ":6: optimizer.lr: Input should be less than"),
        (("batch_size: 10", "threads: 1_000_000_000\nbatch_size: 10"), ":6: threads: Input should be less than"),
        (("batch_size: 10", "evaluations: [{name: a, data: b}, {name: a, data: c}]\nbatch_size: 10"), ":6: evaluations: two have one name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    path = tmp_path / "run.yaml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(InputError) as e:
        load_config(path)
    assert message in str(e.value)
    assert str(path) in str(e.value)


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        ("batch_size: 10\naccumulation: 3", [], "run.yaml:6: batch_size: 10 does not divide by 1 processes x 3 micro-batches"),
        ("batch_size: 10", ["accumulation=3", "batch_size=11"], "--set: batch_size: 11 does not divide"),
        ("batch_size: 10\ninit: gone.pt", [], "run.yaml:7: init: gone.pt: no such file"),
        ("batch_size: 10\ninit: mobileclip_nono", [], "run.yaml:7: init: unknown model 'mobileclip_nono'"),
        ("batch_size: 10", [], "run.yaml:4: data.shards: data: no such shard or table"),
        ("batch_size: 10", ["data.shards=[run.tar]", "data.join=[[gone.tar]]"], "--set: data.join: gone.tar: no such shard or table"),
    ],
)
def test_what_turns_out_wrong_later_is_named_too(tmp_path, monkeypatch, lines, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(GOOD.replace("batch_size: 10", lines))
    write_shard(tmp_path / "run.tar", [])
    with pytest.raises(InputError) as e:
        train(load_config(Path("run.yaml"), changes), tmp_path / "run", progress=print)
    assert str(e.value).startswith(message)


def test_fields_are_set_instead(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    config = load_config(path, ["seed=3", "optimizer.lr=5e-4", "data.shards=[a, b]", "freeze=[text]"])
    assert (config.seed, config.optimizer.lr, config.data.shards, config.freeze) == (3, 5e-4, ("a", "b"), ("text",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "--set 'seed': write FIELD=VALUE"),
        ("=3", "write FIELD=VALUE"),
        ("seed=[", "the value is not YAML"),
        ("seed=-1", "--set: seed: Input should be greater"),
        ("data={shards: [x], window: 0}", "--set: data.window: Input should be greater"),
        ("optimizer.ir=1", "--set: optimizer.ir: Extra inputs are not permitted"),
        ("seed.x=1", "Input should be a valid integer"),
        ("model.x=1", "model is no group of fields"),
        ("seed=&a [*a]", "anchors"),
    ],
)
def test_what_is_wrongly_set_is_named(tmp_path, change, message):
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    with pytest.raises(InputError) as e:
        load_config(path, [change])
    assert message in str(e.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 10_000, b"x" * (2 << 20), b"- 1\n", b"a: " + b"&a [" * 30])
def test_not_a_config(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError):
        load_config(path)
