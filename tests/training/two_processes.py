"""Run by torchrun from test_distributed.py: each process takes its part of the batch and the first one writes what came out."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from toys import CASES, LOSSES, batch_of, gradients, student

from mobileclip.training import distributed
from mobileclip.training.accumulation import accumulated_step
from mobileclip.training.losses import Losses

CALLS: Counter[str] = Counter()


def counted(name: str) -> None:
    real = getattr(dist, name)

    def call(*args, **kwargs):
        CALLS[name] += 1
        return real(*args, **kwargs)

    setattr(dist, name, call)


def outcome(losses: Losses, model: torch.nn.Module) -> dict[str, object]:
    values = torch.stack([losses.loss, losses.contrastive, losses.distillation, losses.kl])
    calls = dict(CALLS)
    return {"values": distributed.mean(values), "gradients": gradients(model), "calls": calls}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    device = distributed.init("cpu", timeout_s=60)
    rank, size = distributed.rank(), distributed.world_size()
    results: dict[str, object] = {"size": size, "main": distributed.main_process(), "device": str(device)}
    for name in ("all_gather_single", "reduce_scatter_single"):
        counted(name)
    for name, loss in LOSSES.items():
        for synthetic, micro in CASES:
            model = student().eval()  # with its running statistics BatchNorm does not depend on the batch
            parallel = DistributedDataParallel(model, broadcast_buffers=False)
            mine = batch_of(8, synthetic=synthetic).split(size)[rank].to(device)
            CALLS.clear()
            losses = accumulated_step(parallel, mine.split(micro), loss, lambda x: x.backward())
            results[f"{name}/{synthetic}/{micro}"] = outcome(losses, model)
    distributed.barrier()
    if distributed.main_process():
        torch.save(results, out)
    distributed.cleanup()
    assert not dist.is_initialized()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
