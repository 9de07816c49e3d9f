"""Run from test_plan.py: trains with several batch sizes, and prints by how many bytes the process grew for each at most.

What a first run loads is not counted: a small model is trained before.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from mobileclip.specs import REGISTRY
from mobileclip.training.trainer import train
from tests.training.conftest import settings
from tests.training.toys import TRAINABLE


def peak() -> int:
    """Of this process alone; what getrusage tells can be of the one that started it."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def run(shards: Path, folder: Path, batch_size: int) -> int:
    config = settings(shards, batch_size=batch_size, schedule={"samples": 3 * batch_size, "warmup_steps": 1}, save_every=3)
    train(config, folder, progress=lambda step: None)
    return peak()


def main(shards: Path, folder: Path, *sizes: int) -> None:
    nano = REGISTRY["mobileclip_nano"]
    REGISTRY["mobileclip_nano"] = TRAINABLE
    before = run(shards, folder / "small", 4)
    REGISTRY["mobileclip_nano"] = nano
    sys.stdout.write(json.dumps([run(shards, folder / str(size), size) - before for size in sizes]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
