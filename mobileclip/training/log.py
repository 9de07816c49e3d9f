"""What a run tells: a line of JSON for each logged step, TensorBoard, and W&B where it is asked for."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobileclip.files import reading, write_bytes, writing

LOG = "log.jsonl"


class Log:
    """The logs of one run folder; lines behind `step` are removed, as a resumed run writes them again.

    Args:
        folder: Of the run.
        step: Where the run goes on.
        about: The config, for W&B.
        progress: Told if there will be no TensorBoard.
    """

    def __init__(self, folder: Path, step: int, about: dict[str, Any], progress: Callable[[str], None] | None = None) -> None:
        self._path = folder / LOG
        lines = [line for line in read_log(folder) if line["step"] <= step]
        write_bytes(self._path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._tensorboard: Any = None
        self._wandb: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        elif progress:
            progress(f"no TensorBoard, only {self._path}; for both: pip install 'mobileclip-toolkit[train]'")
        if importlib.util.find_spec("wandb") and os.environ.get("WANDB_PROJECT"):
            import wandb

            identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
            self._wandb = wandb.init(dir=str(folder), name=folder.name, id=identity, resume="allow", config=about)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add what is known at a step."""
        with writing(self._path), self._path.open("a") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        if self._tensorboard:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()  # a run that is killed has it all, as in the lines of JSON
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Flush everything."""
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that a killed process left unfinished is left out."""
    path = folder / LOG
    if not path.exists():
        return []
    with reading(path):
        lines = path.read_text(errors="replace").split("\n")
    values = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            values.append(value)
    return values
