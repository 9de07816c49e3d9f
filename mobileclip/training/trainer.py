"""The training loop: data, loss, optimizer, checkpoints and logs put together. `train` is the whole of it."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mobileclip import checkpoints
from mobileclip.checkpoints import Checkpoint
from mobileclip.data.loader import Loader
from mobileclip.data.samples import Tally
from mobileclip.data.stream import Position
from mobileclip.errors import GateError, MissingToolError, one_line
from mobileclip.files import locked, remove_stale
from mobileclip.models.clip import CLIP
from mobileclip.training import distributed, state
from mobileclip.training.accumulation import accumulated_step
from mobileclip.training.checkpointing import checkpoint_blocks
from mobileclip.training.config import TrainConfig
from mobileclip.training.interruption import Interruption
from mobileclip.training.log import Log
from mobileclip.training.meter import Meter, progress_line
from mobileclip.training.optim import Schedule, apply_gradients, moving_average, set_learning_rate
from mobileclip.training.setup import (
    DTYPES,
    check_teachers,
    deciding,
    make_loss,
    make_optimizer,
    make_recipe,
    make_scaler,
    micro_batch,
    shards,
    start_model,
)
from mobileclip.training.student import Student, freeze
from mobileclip.training.texts import pretrain_text

MODEL, EMA_MODEL = "model.safetensors", "model-ema.safetensors"
Progress = Callable[[str], None]
Evaluate = Callable[[CLIP], Mapping[str, float]]
"""Score a model in eval mode: name of a figure to its value."""

_SIGLIP_SCALE, _SIGLIP_BIAS = 10.0, -10.0


def train(
    config: TrainConfig, folder: Path, *, progress: Progress, evaluate: Evaluate | None = None, device: str | None = None
) -> dict[str, Any]:
    """Run, or go on with, a training run. The same config, data and threads give the same weights, however often it was interrupted.

    From three processes on the weights of a run that went on are near, not equal: in its first step DDP adds in another order.

    Args:
        config: What to do.
        folder: For states, logs and the finished weights; holds one run.
        progress: Told how far it is.
        evaluate: Called every `evaluate_every` steps and at the end, in the main process.
        device: `cpu` or `cuda`; default: CUDA where there is one.

    Returns:
        The last logged values, with the paths of the weights; empty in other processes than the main one.

    Raises:
        InputError: The folder belongs to another config or another running trainer, or the data is too bad.
        GateError: The loss is no longer finite; the last good state is named.
        StorageError: A state cannot be written; the one before stays.
        MissingToolError: torch.compile has no compiler that works.
        KeyboardInterrupt: Interrupted; everything is saved.
    """
    with _threads(config.threads):
        place = distributed.init(device)
        try:
            with _own(folder) if distributed.main_process() else contextlib.nullcontext():
                return _Run(config, folder, place, progress, evaluate).run()
        except RuntimeError as e:
            if not type(e).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise MissingToolError(f"torch.compile failed ({one_line(e)}); install a C++ compiler, or set compile: false") from e
        finally:
            distributed.cleanup()


@contextlib.contextmanager
def _own(folder: Path) -> Iterator[None]:
    """Lock the folder, and remove what a killed run left half written."""
    with locked(folder / "run", wait=False):
        remove_stale(folder)
        yield


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    def __init__(self, config: TrainConfig, folder: Path, device: torch.device, progress: Progress, evaluate: Evaluate | None) -> None:
        self.config, self.folder, self.device, self.progress, self.evaluate = config, folder, device, progress, evaluate
        world = distributed.world_size()
        micro_batch(config)
        check_teachers(config)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        found, self.interruption = state.newest(folder, deciding(config)), Interruption()
        if not found:
            state.newest(folder, deciding(config), "texts")  # a lesson of another config stays what it is
        clip = start_model(config).to(device)
        if config.text_pretraining and not found:
            pretrain_text(clip, config, folder, progress, self.interruption)
            gc.collect()  # its copy of the model and its optimizer refer to each other
        freeze(clip, image="image" in config.freeze, text="text" in config.freeze)
        self.ema = moving_average(clip, config.ema) if config.ema is not None else None
        if config.gradient_checkpointing:
            checkpoint_blocks(clip)
        self.student = Student(clip, dtype=DTYPES[config.precision], bias=_SIGLIP_BIAS if config.loss.kind == "siglip" else None)
        if config.loss.kind == "siglip" and config.init is None:
            nn.init.constant_(clip.logit_scale, math.log(_SIGLIP_SCALE))
        s, lr = config.schedule, config.optimizer.lr
        self.optimizer = make_optimizer(self.student, config, lr)
        self.schedule = Schedule(config.steps, s.warmup_steps, s.decay, s.decay_steps, s.min_lr / lr)
        self.scaler = make_scaler(config, device)
        self.loss = make_loss(config)
        self.loader = Loader(
            {"shards": shards(config), "seed": config.seed, "window": config.data.window,
             "rank": distributed.rank(), "world": world},
            make_recipe(config), config.batch_size // world, config.data.workers, config.data.max_bad,
        )  # fmt: skip
        self.step = self.judged = 0
        """Steps that were made, and the last one whose loss is known to be finite."""
        if found:
            self._resume(*found)
        forward: nn.Module = torch.compile(self.student) if config.compile else self.student  # type: ignore[assignment]
        self._forward = distributed.parallel(forward)

    # --- state ---------------------------------------------------------------------------------------------------------------

    def _resume(self, path: Path, stored: state.State) -> None:
        with state.taking_over(path):
            self._take_over(stored)
        if distributed.main_process():
            self.progress(f"going on from step {self.step:,} of {self.config.steps:,}")

    def _take_over(self, stored: state.State) -> None:
        self.step = self.judged = stored["step"]
        self.student.load_state_dict(stored["student"])
        self.optimizer.load_state_dict(stored["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(stored["ema"])
        if self.scaler is not None:
            self.scaler.load_state_dict(stored["scaler"])
        mine = stored["processes"][distributed.rank()]
        torch.set_rng_state(mine["rng"])
        self.loader.position = Position(*mine["position"])
        self.loader.tally = Tally(mine["seen"], Counter(mine["skipped"]))

    def _save(self) -> Path | None:
        """Write the state of this step; each process adds what is its own."""
        mine = {
            "rng": torch.get_rng_state(),
            "position": list(self.loader.position),
            "seen": self.loader.tally.seen,
            "skipped": dict(self.loader.tally.skipped),
        }
        processes = distributed.objects(mine)
        if not distributed.main_process():
            return None
        whole = {
            "config": deciding(self.config),
            "step": self.step,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else {},
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
            "processes": processes,
        }
        return state.save(self.folder, self.step, whole, self.config.keep)

    # --- loop ----------------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """From the current step to the last."""
        log = Log(self.folder, self.step, self.config.deciding(), self.progress) if distributed.main_process() else None
        batches = iter(self.loader)
        meter = Meter(self.device)
        self.student.train()
        values: dict[str, Any] = {}
        try:
            with self.interruption:
                if self.config.text_pretraining and not state.saved_steps(self.folder):
                    self._save()  # what is behind it need not be done again
                if log:
                    state.remove(self.folder, "texts")
                while self.step < self.config.steps:
                    began = time.perf_counter()
                    batch = next(batches)
                    waited = time.perf_counter() - began
                    batch = (batch.pin_memory() if self.device.type == "cuda" else batch).to(self.device)
                    set_learning_rate(self.optimizer, self.config.optimizer.lr * self.schedule(self.step))
                    losses = accumulated_step(self._forward, batch.split(self.config.accumulation), self.loss, self._backward)
                    max_norm = self.config.optimizer.max_norm or math.inf
                    norm = apply_gradients(self.student, self.optimizer, max_norm=max_norm, scaler=self.scaler)
                    if self.ema is not None:
                        self.ema.update_parameters(self.student.clip)
                    self.step += 1
                    meter.add(losses, norm, len(batch) * distributed.world_size(), waited, time.perf_counter() - began)
                    values = self._after_step(meter, log) or values
            if self.step % self.config.save_every:
                self._save()
            self.loader.check(self._tally())  # a short run was not judged yet; where more is allowed it goes on from here
            scores = self._finish(log)
            return values | scores if log else {}
        finally:
            batches.close()  # type: ignore[attr-defined]
            if log:
                log.close()

    def _backward(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()

    def _after_step(self, meter: Meter, log: Log | None) -> dict[str, Any] | None:
        config, step, last = self.config, self.step, self.step == self.config.steps
        logs, saves = step % config.log_every == 0 or last, step % config.save_every == 0
        interrupted = self.interruption.agreed(step, self.device)
        if logs or saves or interrupted or self.device.type == "cpu":
            self._judge(meter)
        values = None
        if logs:
            values = self._values(meter)
            if log:
                log.write(step, values)
                self.progress(progress_line(step, config.steps, values))
        if saves or interrupted:
            path = self._save()
            if interrupted:
                self.interruption.leave(path, self.progress)
        if config.evaluate_every and step % config.evaluate_every == 0 and not last:
            self._evaluate(log)
        return values

    def _judge(self, meter: Meter) -> None:
        """See that the losses are finite. A state is good if a later step than its own was: before that nothing has tried its weights."""
        if meter.finite(self.scaler is not None):
            self.judged = self.step
            return
        good, taught = [step for step in state.saved_steps(self.folder) if step < self.judged], self.config.text_pretraining
        if good:
            where = f"the last good state is {state.path_of(self.folder, good[-1])}"
            with_it = "that state as init, text_pretraining: null" if taught else "that state as init"
            again = f"go on in another folder with {with_it} and a lower optimizer.lr"
        else:
            where = "no state that is known to be good was saved"
            again = f"start in another folder with a lower optimizer.lr{' or text_pretraining.lr' if taught else ''}"
        raise GateError(f"the loss is no longer finite at step {self.step:,}; {where}; check the data, or {again}")

    def _values(self, meter: Meter) -> dict[str, Any]:
        tally, values = self._tally(), meter.values()
        return values | {
            "lr": self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["lr_scale"],
            "logit_scale": float(self.student.clip.logit_scale.detach().exp()),
            "samples": self.step * self.config.batch_size,
            "epoch": self.loader.position.epoch,
            "seen": tally.seen,
            "skipped": dict(tally.skipped),
        }

    def _tally(self) -> Tally:
        """Of all processes."""
        return sum(distributed.objects(self.loader.tally), Tally())

    @property
    def _averaged(self) -> CLIP | None:
        return cast(CLIP, self.ema.module) if self.ema is not None else None

    def _evaluate(self, log: Log | None) -> dict[str, float]:
        scores: dict[str, float] = {}
        if self.evaluate is not None and log:
            model = self._averaged or self.student.clip
            training = model.training
            with _kept_random_state(), torch.inference_mode():
                scores = dict(self.evaluate(model.eval()))
            model.train(training)
            self.student.train()
            log.write(self.step, scores)
            self.progress(f"step {self.step:,}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        distributed.barrier()
        return scores

    def _finish(self, log: Log | None) -> dict[str, Any]:
        paths = {}
        if distributed.main_process():
            models = {MODEL: self.student.clip} | ({EMA_MODEL: self._averaged} if self._averaged else {})
            for name, model in models.items():
                checkpoints.save(as_checkpoint(model), self.folder / name)
                paths[name.removesuffix(".safetensors")] = str(self.folder / name)
        return {**self._evaluate(log), **paths, "step": self.step}


def as_checkpoint(model: CLIP) -> Checkpoint:
    """The weights of a model in train form."""
    weights = {n: (t.detach().float() if t.is_floating_point() else t).cpu().contiguous() for n, t in model.state_dict().items()}
    return Checkpoint(model.spec, model.form, False, weights, (model.spec.name,))


@contextlib.contextmanager
def _kept_random_state() -> Iterator[None]:
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)
