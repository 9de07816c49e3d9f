"""What goes wrong around a training run: kill -9, a second trainer, full disks, teachers that are missing or do not fit, hostile shards."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mobileclip.data.augment import Policy, draw
from mobileclip.data.embeddings import Reinforcement, write
from mobileclip.data.shards import write_shard
from mobileclip.errors import GateError, InputError, StorageError
from mobileclip.specs import REGISTRY
from mobileclip.training import state, trainer
from mobileclip.training.log import read_log
from mobileclip.training.trainer import train
from tests.training.conftest import digests, exit_code, forked, picture, settings
from tests.training.toys import TRAINABLE, parts_that_differ

SEED = 20261
WIDTH, VIEWS = 6, 2
TEACHER = {"distillation": 0.5, "teachers": [{"name": "t", "width": WIDTH}]}


def silent(step: str) -> None:
    pass


def unit(rng: np.random.Generator, rows: int, width: int = WIDTH) -> np.ndarray:
    values = rng.normal(size=(rows, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def reinforced(index: int) -> Reinforcement:
    rng = np.random.default_rng(index)
    params = [draw(80, 80, rng, Policy(64)) for _ in range(VIEWS)]
    return Reinforcement(params, {"syn_text": ["one", "two"]}, unit(rng, VIEWS), unit(rng, 1), {"syn_text": unit(rng, 2)})


def sample(index: int, of: Reinforcement | None = None) -> tuple[str, dict[str, bytes]]:
    return f"{index:032x}", {"png": picture(index), "txt": b"a caption"} | (write(of, "fp32") if of else {})


def distilled(folder: Path, workers: int = 0, **changes: object):
    data = {"shards": [str(folder)], "augmentation": "stored", "captions": "both", "workers": workers, "max_bad": 0.5}
    return settings(folder, data=data, loss=TEACHER, **changes)


def runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def draw_each_step(step: str) -> None:
    if step.startswith("step "):
        torch.rand(1)


@pytest.mark.trains_in_forks
@pytest.mark.parametrize(("reinforces", "kills"), [(False, 3), (True, 3), pytest.param(True, 50, marks=pytest.mark.slow)])
def test_kill_at_random_moments(reinforces, kills, tmp_path, monkeypatch):
    """Runs are killed, and go on to be killed again, until they have ended, each to the bit as one that nobody killed."""
    monkeypatch.setitem(REGISTRY, "mobileclip_nano", TRAINABLE)
    for n in range(3):
        write_shard(tmp_path / f"{n}.tar", [sample(i, reinforced(i)) for i in range(8 * n, 8 * n + 8)])
    changes = {"schedule": {"samples": 64, "warmup_steps": 2}, "save_every": 3}
    config = settings(tmp_path, data={"shards": [str(tmp_path)], "workers": 1}, **changes)
    if reinforces:
        config = distilled(tmp_path, workers=1, precision="fp16", **changes)
        # grows until it is too large every few steps, so that the run depends on it
        monkeypatch.setattr(trainer, "make_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=2))
    train(config, tmp_path / "whole", progress=draw_each_step)
    expected = state.load(state.path_of(tmp_path / "whole", 16))

    def start(folder: Path) -> int:
        return forked(lambda: train(config, folder, progress=draw_each_step))

    def check(folder: Path) -> None:
        assert parts_that_differ(state.load(state.path_of(folder, 16)), expected) == []
        assert digests(folder) == digests(tmp_path / "whole")
        assert [line["step"] for line in read_log(folder)] == list(range(1, 17))
        assert not list(folder.glob(".mobileclip-tmp-*"))

    began = time.monotonic()
    assert exit_code(start(tmp_path / "timed")) == 0
    duration_s = time.monotonic() - began
    check(tmp_path / "timed")
    draw = random.Random(SEED)
    run, steps = 0, []
    while len(steps) < kills:
        folder = tmp_path / f"run{run}"
        child = start(folder)
        time.sleep(draw.uniform(0, duration_s))
        os.kill(child, signal.SIGKILL)
        code = exit_code(child)
        if code == -signal.SIGKILL:
            steps.append(max((line["step"] for line in read_log(folder)), default=0))
        else:  # it was faster
            assert code == 0
            check(folder)
            run += 1
    assert exit_code(start(folder)) == 0
    check(folder)
    assert len(set(steps)) > kills / 5, "the moments are not all over the run"


@pytest.mark.trains_in_forks
@pytest.mark.skipif(multiprocessing.get_all_start_methods()[0] != "fork", reason="workers are not forks here")
def test_worker_that_starts_while_its_trainer_is_killed(tmp_path):
    """It ends as well."""
    write_shard(tmp_path / "0.tar", [sample(i) for i in range(8)])
    started = tmp_path / "started"

    def train_with_a_slow_worker() -> None:
        trainer_id, seed = os.getpid(), random.seed

        def seed_once_the_trainer_is_dead(number: int) -> None:  # what a worker does early
            if os.getpid() != trainer_id:
                started.write_text(str(os.getpid()))
                while os.getppid() == trainer_id:
                    time.sleep(0.02)
            seed(number)

        random.seed = seed_once_the_trainer_is_dead
        train(settings(tmp_path, data={"shards": [str(tmp_path)], "workers": 1}), tmp_path / "run", progress=silent)

    child = forked(train_with_a_slow_worker)
    until = time.monotonic() + 100
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    worker = int(started.read_text())
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    until = time.monotonic() + 10
    while (left := runs(worker)) and time.monotonic() < until:
        time.sleep(0.1)
    if left:
        os.kill(worker, signal.SIGKILL)
    assert not left, "the worker waits for ever"


def test_two_trainers_in_one_folder(tmp_path):
    """The second command ends with a line of error; the first one, which stands still meanwhile, ends as if alone."""
    write_shard(tmp_path / "0.tar", [sample(i) for i in range(8)])
    config = settings(tmp_path, schedule={"samples": 40, "warmup_steps": 1})
    (tmp_path / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "mobileclip", "train", tmp_path / "run.yaml", "-o", tmp_path / "run"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        next(line for line in first.stderr if line.startswith("step "))
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        first.send_signal(signal.SIGCONT)
        error = first.communicate(timeout=120)[1]
    finally:
        first.kill()
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("another process works there; wait for it, or choose another folder with -o")
    assert first.returncode == 0, error
    train(config, tmp_path / "alone", progress=silent)
    assert digests(tmp_path / "run") == digests(tmp_path / "alone")
    assert [line["step"] for line in read_log(tmp_path / "run")] == list(range(1, 11))


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can be written beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_keeps_the_state_before(tmp_path):
    write_shard(tmp_path / "0.tar", [sample(i) for i in range(8)])
    config = settings(tmp_path, save_every=1)
    train(config, tmp_path / "whole", progress=silent)
    limits: list[object] = []

    def fill(step: str) -> None:
        if step.startswith("step 3") and not limits:
            limits.append(files_up_to(10 << 20))
            limits[0].__enter__()

    try:
        with pytest.raises(StorageError, match=r"state-000000003\.pt: .*free some space"):
            train(config, tmp_path / "run", progress=fill)
    finally:
        limits[0].__exit__(None, None, None)
    assert state.saved_steps(tmp_path / "run") == [1, 2]
    assert not list((tmp_path / "run").glob(".mobileclip-tmp-*"))
    train(config, tmp_path / "run", progress=silent)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_teacher_that_is_missing(tmp_path):
    """Shards without embeddings: every sample is bad, and why is told."""
    write_shard(tmp_path / "0.tar", [sample(i) for i in range(8)])
    with pytest.raises(InputError, match=r"samples are bad \(no_reinforcement [0-9,]+\)"):
        train(distilled(tmp_path), tmp_path / "run", progress=silent)


def test_teacher_of_another_width(tmp_path):
    write_shard(tmp_path / "0.tar", [sample(i, reinforced(i)) for i in range(8)])
    config = distilled(tmp_path).model_copy(update={"loss": distilled(tmp_path).loss.model_copy(update={"teachers": ()})})
    other = config.loss.model_validate(TEACHER | {"teachers": [{"name": "t", "width": WIDTH}, {"name": "u", "width": 4}]})
    with pytest.raises(InputError, match=r"\(bad_reinforcement [\d,]+\).*rows of 6 values, where the teachers' widths add up to 10"):
        train(config.model_copy(update={"loss": other}), tmp_path / "run", progress=silent)


def test_hostile_embeddings_and_shards_are_skipped_and_counted(tmp_path):
    good = [sample(i, reinforced(i)) for i in range(12)]
    nan = reinforced(20)
    nan.image[0, 0] = np.nan
    key_of_short, short = sample(21, reinforced(21))
    short["paug.json"] = b'{"param_aug": [[[0, 0, 80, 80]]]}'  # one view, and embeddings of two
    key, cut = sample(22, reinforced(22))
    cut["npz"] = cut["npz"][: len(cut["npz"]) // 2]
    key_of_code, code = sample(23, reinforced(23))
    del code["npz"]
    code["pth.gz"] = b"cos\nsystem\n(S'exit'\ntR."
    write_shard(tmp_path / "0.tar", [*good, sample(20, nan), (key_of_short, short), (key, cut), (key_of_code, code)])
    (tmp_path / "1.tar").write_bytes(b"no shard" * 1000)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "2.tar").write_bytes(whole[: len(whole) // 2])
    config = distilled(tmp_path, schedule={"samples": 60, "warmup_steps": 1}, save_every=100)
    train(config, tmp_path / "run", progress=silent)
    last = read_log(tmp_path / "run")[-1]
    assert (last["seen"], last["skipped"]) == (60, {"bad_reinforcement": 3 * 4, "damaged_shard": 3 * 2})  # three epochs of 20 sound ones


def test_loss_of_a_teacher_that_is_not_finite_stops_the_run(tmp_path):
    write_shard(tmp_path / "0.tar", [sample(i, reinforced(i)) for i in range(8)])
    config = distilled(tmp_path, optimizer={"lr": 1e30, "max_norm": None}, schedule={"samples": 40, "warmup_steps": 0}, save_every=1)
    with pytest.raises(GateError, match="no longer finite at step 2; no state that is known to be good"):
        train(config, tmp_path / "run", progress=silent)
