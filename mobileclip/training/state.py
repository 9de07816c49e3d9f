"""The state of a run, or of its text pretraining, on disk: all that the next step depends on in one file, written whole or not at all."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from mobileclip.archives import check_torch_archive
from mobileclip.errors import CheckpointError, InputError, StorageError
from mobileclip.files import reading, staged_file
from mobileclip.training import distributed

State = dict[str, Any]
Stage = Literal["state", "texts"]
"""Of the run proper, or of `text_pretraining`."""
_NAME = re.compile(r"(state|texts)-(\d{9})\.pt")


def path_of(folder: Path, step: int, stage: Stage = "state") -> Path:
    """The file of a step."""
    return folder / f"{stage}-{step:09d}.pt"


def is_name(path: Path) -> bool:
    """Whether a file is named as the state of a run proper."""
    found = _NAME.fullmatch(path.name)
    return found is not None and found[1] == "state"


def saved_steps(folder: Path, stage: Stage = "state") -> list[int]:
    """Steps that were saved, in order."""
    return sorted(int(found[2]) for p in folder.glob(f"{stage}-*.pt") if (found := _NAME.fullmatch(p.name)))


def remove(folder: Path, stage: Stage, keep: int = 0) -> None:
    """Remove all states of a stage but the last `keep`."""
    steps = saved_steps(folder, stage)
    for old in steps[: max(len(steps) - keep, 0)]:
        path_of(folder, old, stage).unlink(missing_ok=True)


def save(folder: Path, step: int, state: State, keep: int, stage: Stage = "state") -> Path:
    """Write a step's state, then remove all but the last `keep`.

    Raises:
        StorageError: The disk is full or read-only; earlier files stay.
    """
    path = path_of(folder, step, stage)
    with staged_file(path) as tmp:
        try:
            with tmp.open("wb") as f:
                torch.save(state, f)
        except RuntimeError as e:  # what torch makes of a full disk
            raise StorageError(f"{path}: cannot be written ({str(e).splitlines()[0][:100]}); free some space and run again") from e
    remove(folder, stage, keep)
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


def newest(folder: Path, config: dict[str, Any], stage: Stage = "state") -> tuple[Path, State] | None:
    """The last state of a stage and its file; None if there is none yet.

    Raises:
        InputError: It belongs to a run with another config, or the processes do not see the same states.
        CheckpointError: See `load`.
    """
    steps = saved_steps(folder, stage)
    if any(found != steps for found in distributed.objects(steps)):
        raise InputError(f"{folder}: the processes see different states there; it must be one folder for all machines")
    if not steps:
        return None
    path = path_of(folder, steps[-1], stage)
    stored = load(path)
    check_same_run(path, stored, config)
    return path, stored


@contextlib.contextmanager
def taking_over(path: Path) -> Iterator[None]:
    """While the parts of a state go where they belong: whatever does not fit means that it is damaged.

    Raises:
        CheckpointError: It is.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        raise CheckpointError(f"{path}: is damaged ({type(e).__name__}); remove it to go on from the one before") from e


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
