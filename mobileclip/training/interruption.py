"""Ctrl-C and a scheduler's SIGTERM end a run between two steps, with everything saved."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import torch
import torch.distributed as dist

from mobileclip.training import distributed


class Interruption:
    """While it is entered the first SIGINT or SIGTERM is only noted; a second one interrupts at once.

    It can be entered again: what one loop was told too late, the next one still knows.
    """

    def __init__(self) -> None:
        self.told = False
        """Whether this process was told to stop."""
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interruption:
        try:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: the caller handles signals
            self._before = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.told:
            raise KeyboardInterrupt
        self.told = True

    def agreed(self, step: int, device: torch.device) -> bool:
        """Whether any process was told to stop; with several, all ask at the same steps."""
        if not dist.is_initialized():
            return self.told
        if step % 2:  # on a GPU the answer has to be waited for
            return False
        return bool(distributed.mean(torch.tensor(float(self.told), device=device)) > 0)

    def leave(self, saved: Path | None, progress: Callable[[str], None]) -> NoReturn:
        """End the run once all processes are there; the one that has saved says where."""
        distributed.barrier()  # torchrun ends all processes as soon as one has ended
        if saved:
            progress(f"saved {saved}; run the same command to go on")
        raise KeyboardInterrupt
