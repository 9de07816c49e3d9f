"""The state of a run on disk: everything that the next step depends on, in one file, written whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from mobileclip.archives import check_torch_archive
from mobileclip.errors import CheckpointError, InputError, StorageError
from mobileclip.files import reading, staged_file

State = dict[str, Any]
_NAME = re.compile(r"state-(\d{9})\.pt")


def path_of(folder: Path, step: int) -> Path:
    """The file of a step."""
    return folder / f"state-{step:09d}.pt"


def is_name(path: Path) -> bool:
    """Whether a file is named as the state of a run."""
    return _NAME.fullmatch(path.name) is not None


def saved_steps(folder: Path) -> list[int]:
    """Steps that were saved, in order."""
    return sorted(int(found[1]) for p in folder.glob("state-*.pt") if (found := _NAME.fullmatch(p.name)))


def save(folder: Path, step: int, state: State, keep: int) -> Path:
    """Write a step's state, then remove all but the last `keep`.

    Raises:
        StorageError: The disk is full or read-only; earlier files stay.
    """
    path = path_of(folder, step)
    with staged_file(path) as tmp:
        try:
            with tmp.open("wb") as f:
                torch.save(state, f)
        except RuntimeError as e:  # what torch makes of a full disk
            raise StorageError(f"{path}: cannot be written ({str(e).splitlines()[0][:100]}); free some space and run again") from e
    for old in saved_steps(folder)[:-keep]:
        path_of(folder, old).unlink(missing_ok=True)
    return path


def load(path: Path) -> State:
    """Read a step's state; no code in it is run.

    Raises:
        CheckpointError: Damaged, or not written by this version.
    """
    with reading(path):
        check_torch_archive(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as e:  # torch.load raises whatever its parts raise
            raise CheckpointError(f"{path}: is damaged ({type(e).__name__}); remove it to go on from the one before") from None
    if not isinstance(state, dict) or not {"config", "step", "student", "optimizer"} <= state.keys():
        raise CheckpointError(f"{path}: is not the state of a training run")
    return state


def check_same_run(path: Path, stored: State, config: dict[str, Any]) -> None:
    """Refuse to go on with another config.

    Raises:
        InputError: Shows what differs.
    """
    before, now = _flat(stored["config"]), _flat(config)
    differ = [f"{k}: {before.get(k)!r} before, {now.get(k)!r} now" for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    if not differ:
        return
    raise InputError(f"{path.parent}: belongs to a run with another config ({'; '.join(differ[:5])}); choose another folder with -o")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in _flat(child, f"{prefix}.{key}" if prefix else str(key)).items()}
    return {prefix: value}
