"""Measurements that take turns, whatever device they run on; for `burst` short turns of random order.

Turns make ratios fair: whatever slows a device down for a while slows all measurements alike. In the other modes a turn is the whole
measurement. All models of a call are in memory at the same time; measure in several calls where that is too much.

A device answers commands, each with one JSON object; `Link` carries them. On a host's and a phone's runner they are lines on standard
input and output, on a web page they come over HTTP:

    {"do": "load", "request": BenchRequest, "bundle": PLACE, "inputs": PLACE}    -> Loaded
    {"do": "warm_up"}                                                            -> WarmedUp
    {"do": "block", "seconds": least time, "samples": least number}              -> Block
    {"do": "finish"}                                                             -> Finished
    {"do": "profile", "runs": number}                                            -> Profiled
    anything that fails                                                          -> Refused

The answers are models of `protocol`; `conformance/bench_reply.schema.json` is their schema.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from mobileclip import errors
from mobileclip.benchmark import operators
from mobileclip.benchmark.protocol import (
    PROFILED_RUNS,
    BenchRequest,
    Block,
    DeviceInfo,
    DeviceSamples,
    DeviceState,
    Finished,
    Loaded,
    Profiled,
    WarmedUp,
)
from mobileclip.errors import DeviceError, Interrupted, MobileClipError, one_line

BLOCK_SECONDS, BLOCK_SAMPLES = 0.5, 4
"""A turn of `burst` lasts until both are reached."""
LONG_BLOCK_SECONDS = 5.0
"""The other modes report so often, without a pause."""
STATE_SECONDS = 30.0
"""So often a device is asked for its state during a measurement, between two blocks."""
COOL_SECONDS, COOL_STEP_SECONDS = 300.0, 5.0
"""How long a warm device may cool down before the first turn, and how often it is looked at."""
MAX_ANSWER_CHARS = 64 * 2**20
MAX_UNREAD_ANSWERS = 16

_Answer = TypeVar("_Answer", bound=BaseModel)
Progress = Callable[[str], None]
Moment = Literal["before", "during", "after"]


@dataclass(frozen=True)
class Job:
    """One measurement with the files that it needs."""

    request: BenchRequest
    bundle: Path
    inputs: Path
    """What `request.inputs` names."""


@dataclass(frozen=True)
class Ended:
    """What came of a job: its samples, the error that ended it, or both if it ended half way."""

    samples: DeviceSamples | None
    error: MobileClipError | None = None


class Link(ABC):
    """A measurement on a device: a process or a page that holds one loaded tower."""

    trusted = False
    """Whether it may say which of this toolkit's errors it has met; a device only has device errors."""

    def __init__(self, job: Job, bundle: str, inputs: str) -> None:
        self.job = job
        self.bundle, self.inputs = bundle, inputs
        """Where the device finds them."""

    @abstractmethod
    def answer(self, command: Mapping[str, Any]) -> str:
        """Send one command; its answer, one line of JSON.

        Raises:
            DeviceError: It crashed, hung or is gone.
        """

    @abstractmethod
    def close(self) -> None:
        """End it, at once; leaves nothing running."""

    def error(self, text: str) -> DeviceError:
        """An error about this measurement."""
        return DeviceError(f"{self.job.bundle}: {self.job.request.target} {self.job.request.tower}: {text}")

    def ask(self, form: type[_Answer], do: str, **values: Any) -> _Answer:
        """Send a command and wait for its answer, of the form that belongs to it.

        Raises:
            MobileClipError: What the device reported, under its own class.
            DeviceError: It crashed, hung or answered nonsense.
            ValidationError: The answer has another form.
        """
        line = self.answer({"do": do, **values})
        try:
            answer = json.loads(line)
            if not isinstance(answer, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError):
            raise self.error(f"the answer to '{do}' is not valid JSON: {line[:80]!r}") from None
        if "error" in answer:
            raise self._reported(answer)
        return form.model_validate(answer)

    def _reported(self, answer: Mapping[str, Any]) -> MobileClipError:
        kind, message = getattr(errors, str(answer["error"]), None), one_line(Exception(answer.get("message")))
        if self.trusted and isinstance(kind, type) and issubclass(kind, MobileClipError) and kind is not DeviceError:
            return kind(message)
        return self.error(message)


class ProcessLink(Link):
    """A process that speaks over its standard input and output."""

    def __init__(
        self, job: Job, bundle: str, inputs: str, command: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(job, bundle, inputs)
        self._timeout_s = timeout_s
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the link)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=os.environ | (environment or {}),
            text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin: IO[str] = self.process.stdin
        self._answers: queue.Queue[str] = queue.Queue(MAX_UNREAD_ANSWERS)
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, stdout: IO[str]) -> None:
        while line := stdout.readline(MAX_ANSWER_CHARS):
            self._answers.put(line)
        self._answers.put("")

    def answer(self, command: Mapping[str, Any]) -> str:  # noqa: D102 (as above)
        do = command["do"]
        with contextlib.suppress(BrokenPipeError):  # dead already: the missing answer tells
            self._stdin.write(json.dumps(command) + "\n")
            self._stdin.flush()
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise self.error(f"no answer within {self._timeout_s:g} s of '{do}'; it was stopped") from None
        if not line:
            raise self.error(f"the process ended during '{do}' ({self.ending()})")
        return line

    def ending(self) -> str:
        """Why the process ended, for people."""
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            return "it closed its output and was stopped"
        self._stderr.seek(max(0, os.fstat(self._stderr.fileno()).st_size - 4000))
        lines = self._stderr.read().strip().splitlines()
        if code in (-9, 137):
            return "killed, out of memory perhaps"
        return f"exit code {code}" + (f": {lines[-1][:200]}" if lines else "")

    def close(self) -> None:  # noqa: D102 (as above)
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._stderr.close()


@dataclass
class _Collected:
    """What has been collected for one job so far."""

    told: dict[str, Any] = field(default_factory=dict)
    """All answers but those of the blocks."""
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in Block.model_fields})
    block_samples: list[int] = field(default_factory=list)
    states: list[DeviceState] = field(default_factory=list)
    looked_s: float = 0.0
    """When the device was last asked for its state."""

    def share(self, request: BenchRequest) -> float:
        """How much of what was asked for is there; 1 is enough."""
        latency_ms = self.columns["latency_ms"]
        seconds = sum(latency_ms) / 1e3
        return min(len(latency_ms) / request.min_samples, seconds / request.min_seconds if request.min_seconds else 1.0, 1.0)


class Rounds:
    """Turns over the links until each has enough samples.

    Args:
        links: One a job.
        device: What they run on.
        state: Asks it how it feels.
        order: Of the turns.
        progress: Told what is being done.
    """

    def __init__(
        self, links: Sequence[Link], device: DeviceInfo, state: Callable[[Moment], DeviceState], order: random.Random, progress: Progress
    ) -> None:
        self._links, self._device, self._state, self._order, self._progress = links, device, state, order, progress
        self._collected = [_Collected() for _ in links]
        self._ended: dict[int, Ended] = {}
        self._told = -1

    def run(self) -> list[Ended]:
        """Load all, let the device cool down, warm all up, then take turns. One entry a link; one that fails leaves the others alone.

        Ctrl-C ends all that are not finished; what was measured is kept, and their error is `Interrupted`.
        """
        try:
            for i in range(len(self._links)):
                self._try(i, self._load)
            self._cool_down()
            for i in self._open:
                self._try(i, self._warm_up)
            while remaining := self._open:
                self._tell()
                self._order.shuffle(remaining)
                for i in remaining:
                    self._try(i, self._turn)
            for i, link in enumerate(self._links):  # only now: what goes wrong here must not end what is still measured
                self._look_at_operators(i, link)
        except KeyboardInterrupt:
            for i in self._open:
                self._ended[i] = self._cut_short(self._collected[i], Interrupted(f"{self._links[i].job.request.label}: interrupted"))
        return [self._ended[i] for i in range(len(self._links))]

    def _tell(self) -> None:
        if (done := self._percent_done() // 10 * 10) > self._told:
            self._told = done
            self._progress(f"timing {len(self._links)} measurement(s): {done} % done")

    @property
    def _open(self) -> list[int]:
        return [i for i in range(len(self._links)) if i not in self._ended]

    def _percent_done(self) -> int:
        shares = [
            1.0 if i in self._ended else collected.share(link.job.request)
            for i, (link, collected) in enumerate(zip(self._links, self._collected, strict=True))
        ]
        return int(100 * sum(shares) / len(shares))

    def _cool_down(self) -> None:
        until = time.monotonic() + COOL_SECONDS
        with contextlib.suppress(MobileClipError):  # each measurement meets it by itself
            while self._open and (thermal := self._state("before").thermal) not in ("nominal", "unknown"):
                if (left_s := until - time.monotonic()) <= 0:
                    return
                self._progress(f"the device is warm (thermal state {thermal}); it may cool down for {left_s:.0f} s more")
                time.sleep(COOL_STEP_SECONDS)

    def _try(self, i: int, step: Callable[[Link, _Collected], DeviceSamples | None]) -> None:
        link, collected = self._links[i], self._collected[i]
        try:
            done = step(link, collected)
        except MobileClipError as e:
            self._ended[i] = self._cut_short(collected, e)
        except (TypeError, ArithmeticError, ValidationError) as e:
            error = link.error(f"an answer has the wrong form ({type(e).__name__}: {one_line(e)[:120]})")
            self._ended[i] = self._cut_short(collected, error)
        else:
            if done is not None:
                self._ended[i] = Ended(done)
            return
        link.close()

    def _load(self, link: Link, collected: _Collected) -> None:
        self._progress(f"loading {link.job.request.label}")
        request = link.job.request.model_dump(mode="json")
        collected.told |= dict(link.ask(Loaded, "load", request=request, bundle=link.bundle, inputs=link.inputs))

    def _warm_up(self, link: Link, collected: _Collected) -> None:
        self._progress(f"warming up {link.job.request.label}")
        collected.told |= dict(link.ask(WarmedUp, "warm_up"))

    def _turn(self, link: Link, collected: _Collected) -> DeviceSamples | None:
        request, latency_ms = link.job.request, collected.columns["latency_ms"]
        if not latency_ms:
            if request.mode != "burst":  # the one before has warmed it up
                self._cool_down()
            self._look(collected, "before")
        collected.block_samples.append(0)
        if request.mode == "burst":
            self._block(link, collected, BLOCK_SECONDS, BLOCK_SAMPLES)
        else:
            while collected.share(request) < 1:
                self._block(link, collected, LONG_BLOCK_SECONDS, 1)
                self._tell()
        if collected.share(request) < 1:
            return None
        self._look(collected, "after")
        collected.told |= dict(link.ask(Finished, "finish"))
        return self._samples(collected)

    def _look_at_operators(self, i: int, link: Link) -> None:
        """Where the operators run, and what each costs if that was asked for. Nothing depends on it."""
        samples, per_op = self._ended[i].samples, link.job.request.per_op
        if samples is None or self._ended[i].error is not None:
            return
        try:
            found = operators.of_reply(link.ask(Profiled, "profile", runs=PROFILED_RUNS if per_op else 1))
        except (MobileClipError, TypeError, ValueError, ArithmeticError) as e:
            if per_op:
                self._progress(f"{link.job.request.label}: the operators' costs are not known ({one_line(e)})")
        else:
            told = {"placement": operators.placement(found), "operators": found if per_op else ()}
            self._ended[i] = Ended(samples.model_copy(update=told))
        link.close()

    def _look(self, collected: _Collected, moment: Moment) -> None:
        collected.states.append(self._state(moment))
        collected.looked_s = time.monotonic()

    def _block(self, link: Link, collected: _Collected, seconds: float, samples: int) -> None:
        request = link.job.request
        if time.monotonic() - collected.looked_s > STATE_SECONDS:
            self._look(collected, "during")
        seconds, samples = min(seconds, request.min_seconds), min(samples, request.min_samples)
        block = link.ask(Block, "block", seconds=seconds, samples=samples)
        # 0.9: times are rounded; with less than was asked for it would never end
        if len(block.latency_ms) < samples or sum(block.latency_ms) < 0.9e3 * seconds:
            raise TypeError("latency_ms must reach what was asked for")
        earlier, timed = collected.columns, len(collected.columns["latency_ms"])
        if earlier["start_ms"] and block.start_ms and block.start_ms[0] < earlier["start_ms"][-1]:
            raise TypeError("start_ms goes back in time")
        if any(not timed <= k.sample < timed + len(block.latency_ms) for k in block.kept):
            raise TypeError("an output was kept of a run that was not timed")
        for name in Block.model_fields:
            earlier[name] += getattr(block, name)
        collected.block_samples[-1] += len(block.latency_ms)

    def _samples(self, collected: _Collected, ended_early: str = "") -> DeviceSamples:
        blocks, columns = [n for n in collected.block_samples if n], dict(collected.columns)
        for name in ("start_ms", "wait_ms"):  # where one block does not tell it, the rest is of no use
            if len(columns[name]) != len(columns["latency_ms"]):
                columns[name] = []
        return DeviceSamples.model_validate(
            {
                **collected.told,
                **columns,
                "device": self._device,
                "states": collected.states,
                "block_samples": blocks,
                "ended_early": ended_early,
            }
        )

    def _cut_short(self, collected: _Collected, error: MobileClipError) -> Ended:
        """Keep what was measured until then."""
        with contextlib.suppress(ValidationError):
            return Ended(self._samples(collected, ended_early=one_line(error)), error)
        return Ended(None, error)
