"""The parts of a run, made from its config."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from mobileclip import checkpoints
from mobileclip.data.augment import Policy
from mobileclip.data.embeddings import ABOUT
from mobileclip.data.loader import Recipe
from mobileclip.data.source import Shard, find_shards
from mobileclip.errors import CheckpointError, InputError
from mobileclip.models.clip import CLIP
from mobileclip.sources import weights_file
from mobileclip.specs import get_spec
from mobileclip.tokenizer import Tokenizer
from mobileclip.training import distributed, state
from mobileclip.training.config import AugmentationConfig, TrainConfig
from mobileclip.training.losses import ClipLoss, Loss, SigLipLoss, Teachers
from mobileclip.training.optim import adamw
from mobileclip.training.student import Student

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def deciding(config: TrainConfig) -> dict[str, Any]:
    """All that decides the weights of a run: a state belongs to it alone."""
    return config.deciding() | {"processes": distributed.world_size()}


def start_model(config: TrainConfig) -> CLIP:
    """The model that a run starts from, in train form.

    Raises:
        InputError: No such file, or weights that were not pulled yet.
        CheckpointError: Fused weights, or of another variant.
    """
    spec = get_spec(config.model)
    if config.init is None:
        torch.manual_seed(config.seed)
        return CLIP(spec)
    path = Path(config.init)
    if not path.is_file():
        if len(path.parts) > 1 or path.suffix:
            raise config.wrong("init", f"{path}: no such file; give a checkpoint file or the name of a variant")
        try:
            path = weights_file(get_spec(config.init))
        except InputError as e:
            raise config.wrong("init", str(e)) from None
    if state.is_name(path):
        weights = {n.removeprefix("clip."): t for n, t in state.load(path)["student"].items() if n.startswith("clip.")}
        fits = checkpoints.fitting({n: tuple(t.shape) for n, t in weights.items()}, spec)
        if not fits:
            raise CheckpointError(f"{path}: is the state of a run with another model than {spec.name}")
        clip = CLIP(spec, fits[0][1])
        clip.load_state_dict(weights)
        return clip
    checkpoint = checkpoints.load(path, spec)
    if checkpoint.fused:
        raise CheckpointError(f"{path}: is fused for inference, its training branches are gone; start from the unfused checkpoint")
    return checkpoint.model()


def micro_batch(config: TrainConfig, processes: int | None = None) -> int:
    """Samples that a process computes at a time; with as many processes as there are now, or will be.

    Raises:
        InputError: The batch does not divide by processes and micro-batches.
    """
    world = processes or distributed.world_size()
    if config.batch_size % (world * config.accumulation):
        raise config.wrong("batch_size", f"{config.batch_size} does not divide by {world} processes x {config.accumulation} micro-batches")
    return config.batch_size // world // config.accumulation


def make_teachers(config: TrainConfig) -> Teachers | None:
    """The ensemble that the config describes, if any."""
    members = config.loss.teachers
    return Teachers(*(tuple(getattr(t, n) for t in members) for n in ("width", "scale", "bias", "weight"))) if members else None


def make_loss(config: TrainConfig) -> Loss:
    """The loss that the config describes."""
    kind = ClipLoss if config.loss.kind == "clip" else SigLipLoss
    return kind(config.loss.distillation, make_teachers(config))


def make_optimizer(student: Student, config: TrainConfig, lr: float) -> torch.optim.AdamW:
    """The optimizer that the config describes, with this learning rate."""
    o = config.optimizer
    return adamw(student, lr, weight_decay=o.weight_decay, betas=o.betas, eps=o.eps, layer_decay=o.layer_decay)


def make_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler | None:
    """What scales the loss, for float16 alone."""
    return torch.amp.GradScaler(device.type) if config.precision == "fp16" else None


def shards(config: TrainConfig) -> tuple[Shard, ...]:
    """Where the samples are.

    Raises:
        InputError: There are none, or what is joined does not fit.
    """
    try:
        return find_shards(config.data.shards, *config.data.join)
    except InputError as e:
        field = "data.shards"
        with contextlib.suppress(InputError):
            find_shards(config.data.shards)
            field = "data.join"
        raise config.wrong(field, str(e)) from None


def make_recipe(config: TrainConfig) -> Recipe:
    """How samples become examples."""
    data, spec = config.data, get_spec(config.model)
    augmentation = data.augmentation
    policy = None
    if isinstance(augmentation, AugmentationConfig):
        policy = Policy(spec.preprocess.resolution, augmentation.scale, augmentation.ratio, rand_augment=augmentation.rand_augment)
    width = sum(t.width for t in config.loss.teachers) if config.taught else None
    return Recipe(
        spec.preprocess, Tokenizer.clip(spec.text.context), policy, data.captions, data.mix, data.synthetic_keys, data.in_turn,
        data.min_side, width,
    )  # fmt: skip


def text_batch(config: TrainConfig, processes: int | None = None) -> int:
    """Texts of `text_pretraining` that a process computes at a time.

    Raises:
        InputError: The batch does not divide into pairs for all processes.
    """
    stage, world = config.text_pretraining, processes or distributed.world_size()
    size = stage.batch_size if stage else 0
    if size % (2 * world):
        raise config.wrong("text_pretraining.batch_size", f"{size} does not divide by 2 x {world} processes")
    return size // world


def stored_teachers(folder: Path) -> list[dict[str, Any]] | None:
    """What `mobileclip reinforce` has noted about the teachers of the shards in a folder; None where it has not."""
    try:
        found = json.loads((folder / ABOUT).read_bytes())["teachers"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(t, dict) for t in found) else None


def check_teachers(config: TrainConfig) -> None:
    """Compare the config's teachers with those that `mobileclip reinforce` has noted beside the shards, where it has.

    Raises:
        InputError: Other teachers, or in another order.
    """
    names = [t.name for t in config.loss.teachers]
    places = (*config.data.shards, *(place for joined in config.data.join for place in joined))
    for place in places if config.taught else ():
        stored = stored_teachers(Path(place))
        if stored is not None and (there := [str(t.get("name")) for t in stored]) != names:
            told = f"{', '.join(names)}, but {place} has rows of {', '.join(there)}; name them in that order"
            raise config.wrong("loss.teachers", told)
