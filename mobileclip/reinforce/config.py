"""What a data set is reinforced with: teachers, augmentations and captions; one YAML file, checked field by field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mobileclip.configs import Strict, misfit, read_config
from mobileclip.data.augment import Policy
from mobileclip.reinforce.backbones import ImageName, TextName
from mobileclip.training import config

Side = Annotated[int, Field(ge=16, le=1024)]
Scale = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class OpenClipConfig(Strict):
    """Any model that open_clip builds."""

    kind: Literal["open_clip"]
    name: Name
    model: str
    """As open_clip names it, or `local-dir:FOLDER` for a folder with its config and weights."""
    pretrained: str | None = None
    """Tag or file; without one the weights are random, or those in the folder."""
    scale: Scale | None = None
    """1 / temperature of the distillation; default: the model's own."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Pictures or captions at a time."""


class CheckpointConfig(Strict):
    """A model of this toolkit: variant, checkpoint file, `untrained:VARIANT`, or the folder of an exported bundle."""

    kind: Literal["checkpoint"]
    name: Name
    source: str
    scale: Scale | None = None


class BackboneConfig(Strict):
    """What teachers on frozen networks from packages have in common."""

    kind: Literal["lit", "conse"]
    name: Name
    image: ImageName
    side: Side = 128
    text: TextName
    heads: Path | None = None
    """safetensors file that `mobileclip.reinforce.fit` has written; default: fitted on the shards that are reinforced."""
    scale: Scale | None = None


class LitConfig(BackboneConfig):
    """Frozen image network and sentence encoder with two linear heads (locked-image tuning, Zhai et al. 2022, arXiv 2111.07991)."""

    kind: Literal["lit"]


class ConseConfig(BackboneConfig):
    """Convex combination of the embeddings of an ImageNet classifier's ten likeliest classes (Norouzi et al. 2014, arXiv 1312.5650)."""

    kind: Literal["conse"]


TeacherConfig = Annotated[OpenClipConfig | CheckpointConfig | LitConfig | ConseConfig, Field(discriminator="kind")]


class TemplatesConfig(Strict):
    """Captions from the label and the tags in a sample's `json`; without a label, from its first caption."""

    kind: Literal["templates"] = "templates"
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "{}", "a {}", "an emoji of {}", "an icon of {}", "a drawing of {}", "clipart of {}", "a picture of the {}",
    )  # fmt: skip


class CocaConfig(Strict):
    """A captioning model of open_clip (Yu et al. 2022, arXiv 2205.01917)."""

    kind: Literal["coca"]
    model: str = "coca_ViT-L-14"
    pretrained: str | None = "mscoco_finetuned_laion2b_s13b_b90k"
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    tokens: Annotated[int, Field(ge=4, le=76)] = 30
    """Longest caption."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32


CaptionerConfig = Annotated[TemplatesConfig | CocaConfig, Field(discriminator="kind")]


class AugmentationConfig(config.AugmentationConfig):
    """See `mobileclip.data.augment.Policy`."""

    resolution: Side = 224
    """Translations are stored in pixels of it and replayed unchanged: choose the student's resolution, or 224 as in Apple's sets."""
    scale: tuple[float, float] = (0.08, 1.0)
    rand_augment: bool = True

    def policy(self) -> Policy:
        """What to draw from."""
        return Policy(self.resolution, self.scale, self.ratio, rand_augment=self.rand_augment)


class WordsConfig(Strict):
    """Further captions of one word each, see `mobileclip.reinforce.words`."""

    count: Annotated[int, Field(ge=1, le=100)] = 8
    """For each picture."""
    vocabulary: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = ()
    """What they are taken from; default: the whole words of CLIP's vocabulary but for offensive ones."""


class EnsembleConfig(Strict):
    """The file behind `--teachers`."""

    schema_version: Literal[1]
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    """Their embeddings are stored one behind the other in this order."""
    augmentation: AugmentationConfig = AugmentationConfig()
    captioner: CaptionerConfig = TemplatesConfig()
    words: WordsConfig | None = None

    @model_validator(mode="after")
    def _distinct(self) -> EnsembleConfig:
        names = [t.name for t in self.teachers]
        if len(set(names)) < len(names):
            raise misfit("teachers", "two have the same name")
        return self


def load_ensemble(path: Path, changes: Sequence[str] = ()) -> EnsembleConfig:
    """Read the file behind `--teachers`; paths in it are relative to the working folder, `changes` are as for `read_config`.

    Raises:
        InputError: Names the line and the field of what is wrong.
    """
    return read_config(path, EnsembleConfig, changes)
