"""Optimizer, learning rates, clipping and the moving average of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mobileclip.errors import InputError
from mobileclip.models.clip import CLIP
from mobileclip.specs import MCiTower
from mobileclip.training.student import Student

MAX_LOG_SCALE = math.log(100)

# --- parameter groups ------------------------------------------------------------------------------------------------------------


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: not to vectors and scalars, norms, biases and the scale. The rule and the names are open_clip's."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def levels_below_top(clip: CLIP) -> dict[str, int]:
    """How many levels each parameter lies below the top of its tower, for layer-wise decay of the learning rate.

    From the top: what follows the last block (norm, final convolution, projection) is 0, the last block or stage 1, and so on down to
    the stem or the embeddings (tokens, patches, positions, class token). A level is a stage in MCi towers, with its downsampling, and a
    block in transformers. The scale of the logits is at 0.
    """
    tower = clip.spec.image(clip.form)
    image = ("stages.", len(tower.dims)) if isinstance(tower, MCiTower) else ("blocks.", tower.layers)
    depths = {"visual.trunk.": image, "text.": ("transformer.resblocks.", clip.spec.text.layers)}
    top = ("final_conv.", "head.", "norm.", "ln_final.", "text_projection")
    levels = {}
    for name, _ in clip.named_parameters():
        levels[name] = 0
        for prefix, (blocks, depth) in depths.items():
            inside = name.removeprefix(prefix)
            if inside == name or inside.startswith(top):
                continue
            levels[name] = depth - int(inside.removeprefix(blocks).split(".")[0]) if inside.startswith(blocks) else depth + 1
    return levels


def parameter_groups(student: Student, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups for an optimizer, of all parameters that are not frozen.

    Args:
        student: The model.
        weight_decay: Where `decays` says so, else 0.
        layer_decay: The learning rate of a parameter is multiplied by this for each of its `levels_below_top`; 1 for none.

    Returns:
        One group for each pair of decay and level, with the keys params, weight_decay and lr_scale.

    Raises:
        InputError: Nothing is left to train, or a factor out of range.
    """
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer decay {layer_decay}; choose more than 0, at most 1 (none)")
    levels = levels_below_top(student.clip)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if decays(name, parameter) else 0.0
            scale = layer_decay ** levels.get(name.removeprefix("clip."), 0)
            group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale})
            group["params"].append(parameter)
    if not groups:
        raise InputError("all parameters are frozen; leave one tower to train")
    return list(groups.values())


def adamw(
    student: Student,
    lr: float,
    *,
    weight_decay: float = 0.2,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with MobileCLIP's settings. Its published runs of models named ViT had an eps of 1e-6, all others 1e-8."""
    optimizer = torch.optim.AdamW(parameter_groups(student, weight_decay, layer_decay), lr, betas, eps)
    set_learning_rate(optimizer, lr)
    return optimizer


# --- the step --------------------------------------------------------------------------------------------------------------------


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the top; each group gets its share."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def apply_gradients(
    student: Student, optimizer: torch.optim.Optimizer, *, max_norm: float = math.inf, scaler: torch.amp.GradScaler | None = None
) -> Tensor:
    """Clip, step, keep the scale of the logits in 1 to 100, and clear the gradients.

    Args:
        student: The model.
        optimizer: Its optimizer.
        max_norm: Limit of the L2 norm of all gradients together.
        scaler: The one that scaled the loss, for float16; it leaves out a step whose gradients overflowed.

    Returns:
        (), the norm before clipping. Where it is not finite and there is no scaler, the weights are no longer finite either.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(student.parameters(), max_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    with torch.no_grad():
        student.clip.logit_scale.clamp_(0, MAX_LOG_SCALE)
    optimizer.zero_grad()
    return norm


@dataclass(frozen=True)
class Schedule:
    """Factor of the learning rate for each step, counted from 0: a linear warm-up, 1, then a decay to `minimum`.

    "cosine" with the default `decay_steps` is cosine annealing (arXiv 1608.03983), "linear" with some is constant with cooldown, "none" is
    constant. MobileCLIP-B (LT) is "cosine" over the second half.

    Attributes:
        steps: In all. Later steps have the last factor.
        warmup: Steps of warm-up; step i of them has the factor (i + 1) / warmup.
        decay: Shape of the decay.
        decay_steps: Steps at the end in which it falls; None: all after the warm-up.
        minimum: Factor that the decay goes to, reached behind the last step.

    Raises:
        InputError: The parts do not fit in `steps`, or a minimum outside 0 to 1.
    """

    steps: int
    warmup: int = 0
    decay: Literal["cosine", "linear", "none"] = "cosine"
    decay_steps: int | None = None
    minimum: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0 or (self.decay_steps or 0) < 0 or self.warmup + (self.decay_steps or 0) > self.steps:
            raise InputError(
                f"{self.warmup} steps of warm-up and {self.decay_steps or 0} of decay do not fit in {self.steps}; shorten them"
            )
        if not 0 <= self.minimum <= 1:
            raise InputError(f"minimum {self.minimum} of the learning rate's factor; choose 0 to 1")

    def __call__(self, step: int) -> float:
        """Factor of step `step`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        length = self.steps - self.warmup if self.decay_steps is None else self.decay_steps
        gone = min(step, self.steps) - (self.steps - length)
        if self.decay == "none" or gone <= 0:
            return 1.0
        left = 1 - gone / length if self.decay == "linear" else (1 + math.cos(math.pi * gone / length)) / 2
        return self.minimum + (1 - self.minimum) * left


# --- moving average --------------------------------------------------------------------------------------------------------------


def moving_average(clip: CLIP, decay: float = 0.9995) -> AveragedModel:
    """An exponential moving average of weights and BatchNorm statistics; evaluate its `.module`, call `.update_parameters(clip)` each step.

    The first update copies; update n after it keeps min(decay, (1 + n) / (10 + n)) of the average, so that a short run does not
    remember its random start. Its state dict resumes exactly.

    Raises:
        InputError: A decay outside 0 to 1.
    """
    if not 0 <= decay < 1:
        raise InputError(f"decay {decay} of the moving average; choose 0 to less than 1")

    @torch.no_grad()
    def update(average: Any, current: Any, updates: Tensor | int) -> None:
        keep = min(decay, (1 + int(updates)) / (10 + int(updates)))
        for mean, value in zip(average, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)  # BatchNorm's counter

    model = AveragedModel(clip, multi_avg_fn=update, use_buffers=True)
    return model.requires_grad_(False).eval()
