"""Two real processes, started by torchrun, give the losses and gradients of one; and torchrun's environment is checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.run import parse_args
from toys import CASES, LOSSES, batch_of, difference, gradients, student

from mobileclip.errors import InputError
from mobileclip.training import distributed
from mobileclip.training.losses import Losses

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("two") / "results.pt"
    script = Path(__file__).parent / "two_processes.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(out)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=True)


def test_both_joined(two: dict) -> None:
    assert (two["size"], two["main"], two["device"]) == (2, True, "cpu")


@pytest.mark.parametrize(("synthetic", "micro"), CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_are_one(two: dict, name: str, synthetic: bool, micro: int) -> None:
    model, batch = student().eval(), batch_of(8, synthetic=synthetic)
    losses: Losses = LOSSES[name](model(batch), batch.teachers)
    losses.loss.backward()
    result = two[f"{name}/{synthetic}/{micro}"]
    expected = torch.stack([losses.loss, losses.contrastive, losses.distillation, losses.kl]).detach()
    torch.testing.assert_close(result["values"], expected, rtol=1e-10, atol=1e-10)
    assert difference(result["gradients"], gradients(model)) < 1e-10


def test_one_exchange_of_the_students_rows_and_one_of_the_teachers(two: dict) -> None:
    """Whatever the number of caption streams and of micro-batches; backward one more, for the student only."""
    for name, loss in LOSSES.items():
        for synthetic, micro in CASES:
            calls = two[f"{name}/{synthetic}/{micro}"]["calls"]
            assert calls == {"all_gather_single": 1 + (loss.weight > 0), "reduce_scatter_single": 1}, (name, synthetic, micro)


# --- the environment -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)

    def set_all(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


GOOD = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize("values", [{}, GOOD])
def test_alone(environment, values: dict[str, str]) -> None:
    environment(**values)
    assert distributed.init("cpu") == torch.device("cpu")
    rows = torch.rand(3, 2, requires_grad=True)
    assert distributed.gather(rows) is rows
    assert torch.equal(distributed.mean(rows), rows)
    assert (distributed.rank(), distributed.world_size(), distributed.main_process()) == (0, 1, True)
    distributed.barrier()
    distributed.cleanup()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RANK": "0"}, "without LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2"}, "without RANK"),
        ({**GOOD, "RANK": "1"}, "do not fit together"),
        ({**GOOD, "RANK": "-1", "LOCAL_RANK": "-1"}, "do not fit together"),
        ({**GOOD, "WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({**GOOD, "RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "do not fit together"),
    ],
)
def test_wrong_environment(environment, values: dict[str, str], message: str) -> None:
    environment(**values)
    with pytest.raises(InputError, match=message) as error:
        distributed.init("cpu")
    assert "start with torchrun" in str(error.value)


def test_unknown_device(environment) -> None:
    with pytest.raises(InputError, match="unknown device 'cud'; did you mean 'cuda'"):
        distributed.init("cud")


@pytest.mark.parametrize(("gpus", "each"), [({"SLURM_GPUS_PER_NODE": "a100:4"}, 4), ({"SLURM_GPUS_ON_NODE": "2"}, 2), ({}, 8)])
def test_slurm(tmp_path: Path, gpus: dict[str, str], each: int) -> None:
    """The script's call of torchrun, by torchrun's own parser."""
    for name, lines in {"scontrol": "echo head\necho other", "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "head,other", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    script = Path(__file__).parents[2] / "configs/slurm.sh"
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    called = subprocess.run(["bash", script, "c.yaml", "runs/x"], env=path | job | gpus, capture_output=True, text=True, check=True)
    program, *arguments = called.stdout.splitlines()
    assert program == "torchrun"
    got = parse_args(arguments)
    assert (got.nnodes, got.nproc_per_node, got.rdzv_endpoint, got.rdzv_backend) == ("2", str(each), "head:29500", "c10d")
    assert (got.module, got.training_script, got.training_script_args) == (True, "mobileclip", ["train", "c.yaml", "-o", "runs/x"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(environment) -> None:
    with pytest.raises(InputError, match="this machine has no GPU"):
        distributed.init("cuda")
