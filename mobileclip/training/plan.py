"""What a run will be, before it starts: model, data, schedule, memory and cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from mobileclip.data.batch import Batch
from mobileclip.data.shards import DamagedShard
from mobileclip.data.source import Shard, is_local, opened
from mobileclip.errors import InputError
from mobileclip.models.clip import parameter_counts
from mobileclip.training import distributed
from mobileclip.training.accumulation import accumulated_step
from mobileclip.training.checkpointing import checkpoint_blocks
from mobileclip.training.config import TrainConfig
from mobileclip.training.losses import ClipLoss
from mobileclip.training.scoring import evaluator
from mobileclip.training.setup import DTYPES, check_teachers, make_loss, make_recipe, micro_batch, shards, start_model, text_batch
from mobileclip.training.student import Student, freeze
from mobileclip.training.texts import read_vocabulary

_PROBE = 8
"""Samples of the trial step."""
_COUNTED_SHARDS = 64


def plan(config: TrainConfig, device: str | None = None, processes: int = 1) -> dict[str, Any]:
    """Describe a run of so many processes and try one small step of it with made-up pictures.

    What the run would refuse is refused, but for shards that cannot be found and evaluations without data: these are notes in `data`.

    Returns:
        Sections `model`, `data`, `text_pretraining` where there is one, `schedule`, `memory` (bytes, of one process) and `cost`, ready for
        JSON.

    Raises:
        InputError: The parts of the config do not fit together, or not to the data.
        CheckpointError: `init` cannot be trained on.
    """
    place = torch.device(distributed.device_kind(device))
    loss = make_loss(config)
    make_recipe(config)
    check_teachers(config)
    clip = start_model(config).to(place)
    freeze(clip, image="image" in config.freeze, text="text" in config.freeze)
    image, text = parameter_counts(clip)
    trained = sum(p.numel() for p in clip.parameters() if p.requires_grad)
    if config.gradient_checkpointing:
        checkpoint_blocks(clip)
    student = Student(clip, dtype=DTYPES[config.precision])
    samples, per_step = config.steps * config.batch_size, config.batch_size
    size = micro_batch(config, processes)
    pairs = (2 if config.loss.kind == "clip" else 1) * (2 if config.data.captions == "both" else 1)  # of rows and columns
    matrices = pairs * (3 if config.loss.distillation else 2)  # logits, their gradient and, with teachers, a target
    student.train()
    batch = _batch(config, student).to(place)
    activations, flops, seconds = _try(student, lambda: accumulated_step(student, [batch], loss, Tensor.backward), place)
    widths = sum(t.width for t in config.loss.teachers if t.weight) if config.loss.distillation else 0
    more_columns = config.batch_size - _PROBE  # than in the trial step: products of rows, the student's with two gradients
    flops_per_sample = flops / _PROBE + pairs * more_columns * (6 * clip.spec.embed_dim + 2 * widths)
    weights = 4 * (image + text)
    data = _data(config)
    epochs = samples / data["samples"] if data["samples"] else None
    stage = config.text_pretraining
    first = {}
    if stage:
        texts, text_size = stage.steps * stage.batch_size, text_batch(config, processes)
        kept, text_flops, text_s = _try(student, lambda: ClipLoss()(student.pair_texts(batch.tokens), None).loss.backward(), place)
        first["text_pretraining"] = {
            "texts": texts,
            "steps": stage.steps,
            "activations_bytes": round(kept / _PROBE * text_size),
            "flops": text_flops / _PROBE * texts,
            "hours_here": texts * text_s / _PROBE / 3600,
        }
    return {
        "model": {"name": config.model, "image_parameters": image, "text_parameters": text, "trained_parameters": trained},
        "data": data | {"epochs": epochs},
        **first,
        "schedule": {
            "steps": config.steps,
            "samples": samples,
            "samples_per_step": per_step,
            "warmup_steps": config.schedule.warmup_steps,
            "decay": config.schedule.decay,
            "lr": config.optimizer.lr,
            "min_lr": config.schedule.min_lr,
        },
        "memory": {
            "weights_bytes": weights,
            "gradients_and_optimizer_bytes": 12 * trained,
            "average_bytes": weights if config.ema is not None else 0,
            "activations_bytes": round(activations / _PROBE * size),
            "logits_bytes": 4 * matrices * size * config.accumulation * config.batch_size,
            "micro_batch": size,
        },
        "cost": {
            "flops_per_sample": flops_per_sample,
            "flops": flops_per_sample * samples,
            "samples_per_s_here": _PROBE / seconds,
            "hours_here": samples * seconds / _PROBE / 3600,
            "device": str(place),
        },
    }


def _batch(config: TrainConfig, student: Student) -> Batch:
    """`_PROBE` made-up samples."""
    spec = student.clip.spec
    side, two = spec.preprocess.resolution, config.data.captions == "both"
    tokens = torch.full((_PROBE, spec.text.context), student.clip.text.end_token, dtype=torch.int32)
    rows = torch.ones(_PROBE, sum(t.width for t in config.loss.teachers)) if config.loss.distillation else None
    return Batch(torch.zeros(_PROBE, 3, side, side, dtype=torch.uint8), tokens, tokens if two else None, rows, rows, rows)


def _try(student: Student, compute: Callable[[], object], device: torch.device) -> tuple[int, int, float]:
    """Bytes kept for the backward pass, floating point operations and seconds of a step, after one to warm up."""

    def step() -> None:
        compute()
        student.zero_grad()

    kept = _Kept(student)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_flops})
    with counter, torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda t: t):
        step()
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return kept.bytes, counter.get_total_flops(), time.perf_counter() - began


def _backward_flops(
    grad_out: Sequence[int], image: Sequence[int], weight: Sequence[int], _bias: object, _stride: object, _padding: object,
    _dilation: object, transposed: bool, _output_padding: object, _groups: int, wanted: Sequence[bool], **_: object,
) -> int:  # fmt: skip
    """As many operations for each wanted gradient as forward; torch's own count takes grouped convolutions for dense ones."""
    return sum(wanted[:2]) * conv_flop_count(list(image), list(weight), list(grad_out), transposed=transposed)


class _Kept:
    """Counts memory that the backward pass keeps, each piece once, without the weights."""

    def __init__(self, module: nn.Module) -> None:
        self._seen = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def _data(config: TrainConfig) -> dict[str, Any]:
    """How much there is, as far as it lies on this machine; of many shards the first are counted."""
    notes = [f"evaluations: {e.data} is not there" for e in config.evaluations if is_local(e.data) and not Path(e.data).exists()]
    if not notes:
        evaluator(config)
    found: tuple[Shard, ...] = ()
    try:
        found = shards(config)
    except InputError as e:
        notes.append(str(e))
    if found and config.text_pretraining:
        read_vocabulary(config)
    local = [s for s in found if all(is_local(p) for p in s.places)]
    counts: list[tuple[int, int]] = []
    if len(local) < len(found):
        notes.append("remote shards: not counted")
    else:
        counts = [_count(shard) for shard in local[:_COUNTED_SHARDS]]
    if len(counts) < len(local) == len(found):
        notes.append(f"estimated from the first {len(counts)} shards")
    samples = round(len(found) / len(counts) * sum(c[0] for c in counts)) if counts else None
    return {"shards": len(found), "samples": samples, "bad": sum(c[1] for c in counts) if counts else None, "note": "; ".join(notes)}


def _count(shard: Shard) -> tuple[int, int]:
    try:
        with opened(shard) as entries:
            return len(entries), sum(bool(e.bad) for e in entries)
    except DamagedShard:
        return 1, 1
