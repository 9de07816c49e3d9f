"""Runs of two processes through torchrun and the command line, as they end, are stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mobileclip.data.shards import write_shard
from mobileclip.files import locked
from mobileclip.training import state
from mobileclip.training.log import read_log
from tests.training.conftest import digests, picture, settings

SLURM = Path(__file__).parents[2] / "configs/slurm.sh"


def torchrun(processes):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "mobileclip", "train"]


def ran(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def config_file(folder, shards, samples, **changes):
    path = folder / "run.yaml"
    config = settings(shards, schedule={"samples": samples, "warmup_steps": 1}, **changes)
    path.write_text(json.dumps(config.model_dump(mode="json")))
    return path


def test_two_processes(shards, tmp_path):
    """With another number of processes the run is refused, and so is a folder in which another trainer works."""
    config, folder = config_file(tmp_path, shards, 16), tmp_path / "run"
    first = ran([*torchrun(2), config, "-o", folder])
    assert first.returncode == 0, first.stderr[-2000:]
    last = read_log(folder)[-1]
    assert (last["step"], last["samples"], last["seen"]) == (4, 16, 16)
    other = ran([*torchrun(1), config, "-o", folder])
    assert "another config (processes: 2 before, 1 now)" in other.stderr


@pytest.mark.slow
def test_two_processes_in_a_folder_where_another_trainer_works(shards, tmp_path):
    """The main process refuses it, and the other one does not wait for it."""
    with locked(tmp_path / "run/run"):
        refused = ran([*torchrun(2), config_file(tmp_path, shards, 16), "-o", tmp_path / "run"])
    assert refused.returncode != 0
    (error,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "another process works there" in error
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".run.lock"]


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The config of a run of 20 steps, and what comes of it when nothing happens. Bad samples let the processes be at different places."""
    folder = tmp_path_factory.mktemp("long")
    samples = [{"png": picture(i)} | ({"txt": f"part {i}".encode()} if i % 5 else {}) for i in range(24)]
    write_shard(folder / "0.tar", [(f"{i:032x}", members) for i, members in enumerate(samples)])
    config = config_file(folder, folder, 80, data={"shards": [str(folder)], "workers": 1, "max_bad": 0.5}, save_every=1000)
    whole = ran([*torchrun(2), config, "-o", folder / "whole"])
    assert whole.returncode == 0, whole.stderr[-2000:]
    return config, digests(folder / "whole")


def begun(command, folder, steps, **options):
    """The command's process once so many steps are logged."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    while len(read_log(folder)) < steps:
        assert process.poll() is None, process.communicate()[0][-2000:]
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "SLURM"])
def test_two_processes_that_are_stopped(long, tmp_path, launcher):
    """By a scheduler's SIGTERM to torchrun: everything is saved, and the run that goes on ends with the same bytes.

    SLURM sends it to a step's tasks, which are torchrun alone; what srun and scontrol do on one node, two lines do.
    """
    config, expected = long
    folder, environment = tmp_path / "run", dict(os.environ)
    command = [*torchrun(2), config, "-o", folder]
    if launcher == "SLURM":
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for name, lines in {"scontrol": "echo localhost", "srun": f'exec "${{@/%:29500/:{port}}}"'}.items():
            (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
            (tmp_path / name).chmod(0o755)
        environment |= {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7", "SLURM_GPUS_PER_NODE": "2"}
        environment["PATH"] = f"{tmp_path}:{Path(sys.executable).parent}:{environment['PATH']}"
        command = ["bash", SLURM, config, folder]
    process = begun(command, folder, 1, env=environment)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert len(state.saved_steps(folder)) == 1, told[-2000:]
    assert "saved None" not in told
    again = ran(command, env=environment)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "going on from step" in again.stderr
    assert digests(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["one", "all"])
def test_two_processes_that_are_killed(long, tmp_path, killed):
    """By SIGKILL, between two states: torchrun ends what is left, and the run that goes on ends with the same bytes."""
    config, expected = long
    folder = tmp_path / "run"
    command = [*torchrun(2), config, "-o", folder, "--set", "save_every=4"]
    process = begun(command, folder, 6)
    agent = psutil.Process(process.pid)
    second = [child for child in agent.children() if child.environ().get("RANK") == "1"]
    assert len(second) == 1
    for victim in second if killed == "one" else [agent, *agent.children(recursive=True)]:
        victim.kill()
    told = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert not (folder / "model.safetensors").exists(), "the run was over before"
    again = ran(command)
    assert again.returncode == 0, told[-2000:] + again.stderr[-2000:]
    assert "going on from step" in again.stderr
    assert digests(folder) == expected
