"""One process a device, as torchrun starts them: joining, gathering with gradient, leaving. Without torchrun all of it is a no-op."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mobileclip.errors import InputError
from mobileclip.files import did_you_mean

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def device_kind(device: str | None) -> str:
    """`cpu` or `cuda`; default: CUDA where there is one.

    Raises:
        InputError: Another kind, or there is no GPU.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cpu", "cuda"):
        raise did_you_mean("device", kind, ("cpu", "cuda"))
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: this machine has no GPU that torch can use; train on the CPU")
    return kind


def init(device: str | None = None, timeout_s: float = 3600) -> torch.device:
    """Join the processes that torchrun started, by NCCL on CUDA, else by gloo.

    Args:
        device: "cpu" or "cuda"; default: CUDA where there is one.
        timeout_s: How long to wait for the others, here and in each exchange: longer than the main process evaluates.

    Returns:
        The device of this process.

    Raises:
        InputError: No such device, fewer GPUs than processes on this machine, or a part of torchrun's environment is missing or wrong.
    """
    kind = device_kind(device)
    environment = _environment()
    if kind == "cuda":
        if environment["LOCAL_RANK"] >= torch.cuda.device_count():
            raise InputError(
                f"process {environment['LOCAL_RANK']} of this machine has no GPU, there are {torch.cuda.device_count()}; "
                "start fewer with torchrun --nproc-per-node, or train on the CPU"
            )
        torch.cuda.set_device(environment["LOCAL_RANK"])
    place = torch.device(kind, environment["LOCAL_RANK"]) if kind == "cuda" else torch.device(kind)
    if environment["WORLD_SIZE"] > 1:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    return place


def _environment() -> dict[str, int]:
    """RANK, LOCAL_RANK and WORLD_SIZE."""
    if not any(name in os.environ for name in ("RANK", "WORLD_SIZE")):
        return {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if missing:
        raise InputError(f"the environment has a part of torchrun's variables only, without {', '.join(missing)}; start with torchrun")
    try:
        rank, local_rank, size = (int(os.environ[name]) for name in _TORCHRUN[:3])
    except ValueError:
        rank, local_rank, size = -1, -1, 0
    if not (0 <= local_rank <= rank < size):
        given = ", ".join(f"{name}={os.environ[name]!r}" for name in _TORCHRUN[:3])
        raise InputError(f"{given}: these do not fit together; start with torchrun")
    return {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": size}


def cleanup() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 to `world_size() - 1`."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def main_process() -> bool:
    """True in the one process that writes files and logs."""
    return rank() == 0


def parallel(module: nn.Module) -> nn.Module:
    """A module whose gradients are the means over the processes. BatchNorm's statistics stay each process's own."""
    return DistributedDataParallel(module, broadcast_buffers=False) if world_size() > 1 else module


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def mean(values: Tensor) -> Tensor:
    """Mean over the processes, without gradient; each must bring the same shape."""
    values = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(values)
    return values / world_size()


def objects(value: Any) -> list[Any]:
    """What each process brings, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks; the gradient flows back to the process that a row came from.

    That gradient is the sum over the processes, as each has a loss of its own; averaging the parameters' gradients, as DDP does, then
    gives that of the mean of these losses.

    Args:
        rows: (b, d), the same shape in each process.

    Returns:
        (b * processes, d).
    """
    if world_size() == 1:
        return rows
    return _Gather.apply(rows) if rows.requires_grad and torch.is_grad_enabled() else _gathered(rows)


def _gathered(rows: Tensor) -> Tensor:
    out = rows.new_empty(world_size() * rows.shape[0], *rows.shape[1:])
    dist.all_gather_single(out, rows.contiguous())
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gathered(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        own = gradient.new_empty(gradient.shape[0] // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_single(own, gradient.contiguous())
        return own
