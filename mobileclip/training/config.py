"""What a training run is: one YAML file, checked field by field."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from mobileclip.configs import Strict, misfit, read_config, share
from mobileclip.errors import InputError
from mobileclip.specs import get_spec

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1e30)]
"""Of learning; float32 holds little more."""
MAX_BATCH_SIZE = 2**20
"""Logits of a larger one alone would fill terabytes."""
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(share)]
"""`0.01` or `1%`."""


class AugmentationConfig(Strict):
    """What is drawn for data without stored augmentations; the defaults are the weak ones of plain CLIP."""

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rand_augment: bool = False

    @field_validator("scale", "ratio")
    @classmethod
    def _in_range(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        share = info.field_name == "scale"
        if not 0 < value[0] <= value[1] <= (1 if share else math.inf):
            raise ValueError(f"write the lower and the upper end, both above 0{' and at most 1' if share else ''}, not {list(value)}")
        return value


class DataConfig(Strict):
    """Where the samples come from, and what is taken of each."""

    shards: tuple[str, ...] = Field(min_length=1)
    """Folders, patterns, URLs, commands (`pipe:`) or tables, see `mobileclip.data.source.find_shards`."""
    join: tuple[tuple[str, ...], ...] = ()
    """Further lists of shards, joined one to one to `shards` by the samples' keys."""
    augmentation: Literal["stored"] | AugmentationConfig = AugmentationConfig()
    """`stored`: replay one of a reinforced sample's, and take the teachers' embeddings of that view."""
    captions: Literal["real", "synthetic", "both", "random"] = "real"
    mix: Share = 0.5
    """Probability of a synthetic caption, for `random`."""
    synthetic_keys: str = "^syn_text.*$"
    in_turn: bool = False
    """Take stored views and captions by the epoch's number, not at random."""
    min_side: Positive = 1
    """Skip smaller pictures, pixels."""
    window: Positive = 16
    """Shards that are shuffled together."""
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    max_bad: Share = 0.01
    """Stop where a larger share of the samples is bad."""

    @field_validator("synthetic_keys")
    @classmethod
    def _expression(cls, text: str) -> str:
        try:
            re.compile(text)
        except re.error as e:
            raise ValueError(f"is no regular expression: {e}") from None
        return text


class TeacherConfig(Strict):
    """One member of the ensemble whose embeddings the data holds."""

    name: str
    width: Positive
    scale: Annotated[float, Field(gt=0)] = 100.0
    """1 / temperature."""
    bias: float = 0.0
    weight: Annotated[float, Field(ge=0)] = 1.0
    """In the mean of the members; 0 leaves it out."""


class LossConfig(Strict):
    """See `mobileclip.training.losses`."""

    kind: Literal["clip", "siglip"] = "clip"
    distillation: Share = 0.0
    """Lambda of the paper: 0 plain, 1 the teachers alone."""
    teachers: tuple[TeacherConfig, ...] = ()
    """In the order of the stored rows."""

    @model_validator(mode="after")
    def _some_weight(self) -> LossConfig:
        if self.teachers and not any(t.weight for t in self.teachers):
            raise misfit("teachers", "all have the weight 0; give one a positive one, or leave them out")
        return self


class OptimizerConfig(Strict):
    """AdamW."""

    lr: Rate = 1e-3
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate for each level below a tower's top."""
    max_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the norm of all gradients together."""


class ScheduleConfig(Strict):
    """How long, and the course of the learning rate."""

    samples: Positive
    """Seen in all, over all processes."""
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    decay: Literal["cosine", "linear", "none"] = "cosine"
    decay_steps: Positive | None = None
    """Steps at the end in which the rate falls; default: all after the warm-up."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0


class TextPretrainingConfig(Strict):
    """Before the run proper, the text tower learns how the teachers relate the texts, see `mobileclip.training.texts`."""

    texts: Positive
    """Seen in all, over all processes."""
    batch_size: Annotated[int, Field(ge=4, le=MAX_BATCH_SIZE)] = 512
    """Texts, of all processes together."""
    lr: Rate = 3e-3
    """After a warm-up of a tenth of the steps; falls to 0 by a cosine."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return -(-self.texts // self.batch_size)


class EvaluationConfig(Strict):
    """A task that is scored during the run; the fields are the options of `mobileclip eval`."""

    name: str
    data: str
    task: Literal["classification", "retrieval"] | None = None
    label_field: str | None = None
    labels_file: Path | None = None
    text_field: str | None = None
    templates: str | None = None
    where: tuple[str, ...] = ()


class TrainConfig(Strict):
    """A training run."""

    schema_version: Literal[1]
    model: str
    init: str | None = None
    """A variant or a checkpoint in train form to start from; default: random weights."""
    text_pretraining: TextPretrainingConfig | None = None
    freeze: tuple[Literal["image", "text"], ...] = ()
    data: DataConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig
    batch_size: Annotated[int, Field(ge=2, le=MAX_BATCH_SIZE)]
    """Of all processes together."""
    accumulation: Positive = 1
    """Micro-batches a step."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Of torch on the CPU; fix it where runs must be equal to the bit."""
    log_every: Positive = 20
    save_every: Positive = 1000
    """Steps between checkpoints."""
    keep: Positive = 2
    """Checkpoints that stay."""
    evaluate_every: Positive | None = None
    """Steps; default: at the end alone."""
    evaluations: tuple[EvaluationConfig, ...] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return -(-self.schedule.samples // self.batch_size)

    @property
    def taught(self) -> bool:
        """Whether the teachers' embeddings are needed."""
        return bool(self.loss.distillation or self.text_pretraining)

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the weights: all but the rhythm of logs, checkpoints and evaluations, the workers and `max_bad`."""
        free = {"log_every", "save_every", "keep", "evaluate_every", "evaluations"}
        value = self.model_dump(mode="json", exclude=free)
        del value["data"]["workers"], value["data"]["max_bad"]
        return value

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            get_spec(name)
        except InputError as e:
            raise ValueError(str(e)) from None
        return name

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        needing = "loss.distillation" if self.loss.distillation else "text_pretraining"
        if self.taught and self.data.augmentation != "stored":
            raise misfit("data.augmentation", f"{needing} needs `stored` here, as teachers' embeddings belong to the stored views")
        if self.taught and not self.loss.teachers:
            raise misfit("loss.teachers", f"{needing} needs them, with names, widths and scales in the order of the stored rows")
        if self.text_pretraining and "text" in self.freeze:
            raise misfit("freeze", "keeps the text tower as it is, and text_pretraining teaches it; leave one out")
        if self.schedule.warmup_steps + (self.schedule.decay_steps or 0) > self.steps:
            field = "schedule.warmup_steps" if self.schedule.warmup_steps > self.steps else "schedule.decay_steps"
            raise misfit(field, f"warm-up and decay are longer than the {self.steps:,} steps of the run; shorten them")
        if self.schedule.min_lr > self.optimizer.lr:
            raise misfit("schedule.min_lr", f"{self.schedule.min_lr:g} is above optimizer.lr, {self.optimizer.lr:g}")
        if self.compile and self.gradient_checkpointing:
            raise misfit("compile", "does not go together with gradient_checkpointing; torch.compile decides itself what it keeps")
        if len({e.name for e in self.evaluations}) < len(self.evaluations):
            raise misfit("evaluations", "two have one name; their scores would be taken for each other")
        if len(set(self.freeze)) == 2:
            raise misfit("freeze", "with both towers frozen there is nothing to train; leave one out")
        return self


def load_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Read a run's YAML file; `changes` as for `mobileclip.configs.read_config`.

    Raises:
        InputError: Names the line and the field of the first things that are wrong.
    """
    return read_config(path, TrainConfig, changes)
