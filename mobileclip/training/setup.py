"""The parts of a run, made from its config."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mobileclip import checkpoints
from mobileclip.data.augment import Policy
from mobileclip.data.embeddings import ABOUT
from mobileclip.data.loader import Recipe
from mobileclip.errors import CheckpointError, InputError
from mobileclip.models.clip import CLIP
from mobileclip.sources import weights_file
from mobileclip.specs import get_spec
from mobileclip.tokenizer import Tokenizer
from mobileclip.training import distributed, state
from mobileclip.training.config import AugmentationConfig, TrainConfig
from mobileclip.training.losses import ClipLoss, Loss, SigLipLoss, Teachers

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def start_model(config: TrainConfig) -> CLIP:
    """The model that a run starts from, in train form.

    Raises:
        CheckpointError: Fused weights, or of another variant.
    """
    spec = get_spec(config.model)
    if config.init is None:
        torch.manual_seed(config.seed)
        return CLIP(spec)
    path = Path(config.init) if Path(config.init).is_file() else weights_file(get_spec(config.init))
    if state.is_name(path):
        clip = CLIP(spec)
        weights = {n.removeprefix("clip."): t for n, t in state.load(path)["student"].items() if n.startswith("clip.")}
        try:
            clip.load_state_dict(weights)
        except RuntimeError:
            raise CheckpointError(f"{path}: is the state of a run with another model than {spec.name}") from None
        return clip
    checkpoint = checkpoints.load(path, spec)
    if checkpoint.fused:
        raise CheckpointError(f"{path}: is fused for inference, its training branches are gone; start from the unfused checkpoint")
    return checkpoint.model()


def micro_batch(config: TrainConfig) -> int:
    """Samples that a process computes at a time.

    Raises:
        InputError: The batch does not divide by processes and micro-batches.
    """
    world = distributed.world_size()
    if config.batch_size % (world * config.accumulation):
        raise InputError(f"batch_size {config.batch_size} does not divide by {world} processes x {config.accumulation} micro-batches")
    return config.batch_size // world // config.accumulation


def make_loss(config: TrainConfig) -> Loss:
    """The loss that the config describes."""
    members = config.loss.teachers
    teachers = Teachers(*(tuple(getattr(t, n) for t in members) for n in ("width", "scale", "bias", "weight"))) if members else None
    kind = ClipLoss if config.loss.kind == "clip" else SigLipLoss
    return kind(config.loss.distillation, teachers)


def make_recipe(config: TrainConfig) -> Recipe:
    """How samples become examples."""
    data, spec = config.data, get_spec(config.model)
    augmentation = data.augmentation
    policy = None
    if isinstance(augmentation, AugmentationConfig):
        policy = Policy(spec.preprocess.resolution, augmentation.scale, augmentation.ratio, rand_augment=augmentation.rand_augment)
    width = sum(t.width for t in config.loss.teachers) if config.loss.distillation else None
    return Recipe(
        spec.preprocess, Tokenizer.clip(spec.text.context), policy, data.captions, data.mix, data.synthetic_keys, data.in_turn,
        data.min_side, width,
    )  # fmt: skip


def check_teachers(config: TrainConfig) -> None:
    """Compare the config's teachers with those that `mobileclip reinforce` has noted beside the shards, where it has.

    Raises:
        InputError: Other teachers, or in another order.
    """
    names = [t.name for t in config.loss.teachers]
    for place in (*config.data.shards, *(p for places in config.data.join for p in places)):
        about = Path(place) / ABOUT
        if not (config.loss.distillation and about.is_file()):
            continue
        try:
            stored = [str(t["name"]) for t in json.loads(about.read_bytes())["teachers"]]
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            continue
        if stored != names:
            raise InputError(f"loss.teachers: {', '.join(names)}, but {place} has rows of {', '.join(stored)}; name them in that order")
