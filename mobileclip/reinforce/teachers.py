"""Teachers: what embeds the augmented pictures and the captions of a reinforced data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileclip.errors import InputError
from mobileclip.files import reading, require, sha256_file
from mobileclip.reinforce.backbones import FEATURES, SENTENCE, WEIGHTS, Floats, filled, image_backbone, text_backbone, unit
from mobileclip.reinforce.clips import open_clip_model
from mobileclip.reinforce.config import BackboneConfig, CheckpointConfig, LitConfig, OpenClipConfig, TeacherConfig
from mobileclip.specs import PreprocessSpec

if TYPE_CHECKING:
    from mobileclip.export.encoder import Encoder

Views = Sequence[NDArray[np.uint8]]
"""Augmented pictures (side, side, 3) of one teacher's size."""
HEAD_WIDTH = 256
TOP_CLASSES = 10
_BATCH = 32


@dataclass(frozen=True)
class Device:
    """Where models of open_clip run, and whether they compute in bfloat16 there. Both decide the numbers."""

    name: Literal["cpu", "cuda"] = "cpu"
    half: bool = False


CPU = Device()


class Teacher(Protocol):
    """Everything that a teacher has of its own.

    Attributes:
        name: In the config.
        width: Of its embeddings.
        side: Of the pictures that it takes, pixels.
        interpolation: With which pictures are brought to that size.
        scale: 1 / temperature with which to distil from it.
        weights: SHA-256 that stands for its weights.
    """

    name: str
    width: int
    side: int
    interpolation: Literal["bilinear", "bicubic"]
    scale: float
    weights: str

    def embed_images(self, views: Views) -> Floats:
        """(N, width) of unit length; normalising the pixels is the teacher's own matter."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """(M, width) of unit length, tokens are the teacher's own matter."""
        ...


def load_teacher(config: TeacherConfig, folder: Path, device: Device = CPU) -> Teacher:
    """Make a teacher ready.

    Args:
        config: What it is.
        folder: For files that are made once: networks in ONNX form, and heads that were fitted.
        device: For models of open_clip.

    Raises:
        InputError: An unknown model, or heads that are missing or of another shape.
        MissingToolError: A package is not installed.
    """
    if isinstance(config, OpenClipConfig):
        return OpenClipTeacher(config, device)
    if isinstance(config, CheckpointConfig):
        from mobileclip.export.encoder import open_encoder

        return EncoderTeacher(config, open_encoder(config.source))
    heads = read_heads(config, config.heads or fitted_path(config, folder))
    return LitTeacher(config, heads, folder) if isinstance(config, LitConfig) else ConseTeacher(config, heads, folder)


def fitted_path(config: BackboneConfig, folder: Path) -> Path:
    """Where heads are kept that were fitted on the data itself."""
    return folder / f"{config.name}.safetensors"


def _pixels(views: Views, spec: PreprocessSpec) -> NDArray[np.float32]:
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    return (np.stack(views).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255) - mean) / std


class OpenClipTeacher:
    """Any open_clip model. Only its encoders are called: what its `forward` returns differs by model."""

    def __init__(self, config: OpenClipConfig, device: Device = CPU) -> None:
        model = open_clip_model(f"teacher {config.name}", config.model, config.pretrained)
        import open_clip
        from open_clip.transform import PreprocessCfg

        from mobileclip.sources import weights_sha256

        self._tokenize = open_clip.get_tokenizer(config.model)
        cfg = PreprocessCfg(**model.visual.preprocess_cfg)
        self.name, self._batch = config.name, config.batch
        self.side = cfg.size[0] if isinstance(cfg.size, tuple | list) else cfg.size
        self.interpolation: Literal["bilinear", "bicubic"] = "bilinear" if cfg.interpolation == "bilinear" else "bicubic"
        self._spec = PreprocessSpec(self.side, tuple(cfg.mean), tuple(cfg.std))
        self.scale = config.scale or float(model.logit_scale.detach().exp())
        self.weights = weights_sha256(model.state_dict())
        self._device = device
        self._model = model.to(device.name)
        self.width = self.embed_texts([""]).shape[1]

    def embed_images(self, views: Views) -> Floats:
        """See `Teacher`."""
        return self._embed(views, self._model.encode_image, lambda part: _pixels(part, self._spec))

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """See `Teacher`."""
        return self._embed(texts, self._model.encode_text, lambda part: self._tokenize(part).numpy())

    def _embed(self, items: Sequence[Any], encode: Any, prepare: Any) -> Floats:
        import torch

        def run(part: list[Any]) -> list[Floats]:
            with torch.inference_mode(), torch.autocast(self._device.name, torch.bfloat16, enabled=self._device.half):
                return [encode(torch.from_numpy(prepare(part)).to(self._device.name)).float().cpu().numpy()]

        return finite(self.name, filled(items, self._batch, run)[0])


class EncoderTeacher:
    """A checkpoint or bundle of this toolkit."""

    def __init__(self, config: CheckpointConfig, encoder: Encoder) -> None:
        self.name, self._encoder = config.name, encoder
        self.width, self.side = encoder.embed_dim, encoder.preprocess.resolution
        self.interpolation = encoder.preprocess.interpolation
        self.scale = config.scale or encoder.logit_scale
        self.weights = encoder.embedding_space

    def embed_images(self, views: Views) -> Floats:
        """See `Teacher`."""
        return filled(views, _BATCH, lambda part: [self._encoder.encode_images([Image.fromarray(v) for v in part])])[0]

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """See `Teacher`."""
        return filled(texts, _BATCH, lambda part: [self._encoder.encode_texts(part)])[0]


@dataclass(frozen=True)
class Heads:
    """What `fit_lit` and `fit_conse` find out, and the file that holds it."""

    tensors: dict[str, Floats]
    scale: float
    sha256: str


_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "lit": {
        "image.weight": (HEAD_WIDTH, FEATURES), "image.bias": (HEAD_WIDTH,),
        "text.weight": (HEAD_WIDTH, SENTENCE), "text.bias": (HEAD_WIDTH,), "scale": (1,),
    },
    "conse": {"image.mean": (SENTENCE,), "text.mean": (SENTENCE,), "scale": (1,)},
}  # fmt: skip


def read_heads(config: BackboneConfig, path: Path) -> Heads:
    """Read and check fitted heads.

    Raises:
        InputError: No such file, or tensors that are not those of this kind of teacher.
    """
    import safetensors
    from safetensors.numpy import load_file

    digest = sha256_file(path)
    try:
        with reading(path):
            tensors = {name: np.asarray(t, np.float32) for name, t in load_file(path).items()}
    except (safetensors.SafetensorError, ValueError) as e:
        raise InputError(f"{path}: is not a safetensors file ({str(e)[:100]}); fit the teacher again") from None
    shapes = {name: t.shape for name, t in tensors.items()}
    if shapes != _SHAPES[config.kind] or not all(np.isfinite(t).all() for t in tensors.values()):
        raise InputError(f"{path}: holds no heads of a {config.kind} teacher; fit it again")
    return Heads(tensors, config.scale or float(tensors["scale"][0]), digest)


class _OnBackbones:
    def __init__(self, config: BackboneConfig, heads: Heads, folder: Path) -> None:
        self.name, self.side, self.scale = config.name, config.side, heads.scale
        self.interpolation: Literal["bilinear", "bicubic"] = "bicubic"
        self.weights = "-".join((WEIGHTS[config.image].sha256, WEIGHTS[config.text].sha256, heads.sha256))
        self._image, self._text = image_backbone(config.image, config.side, folder), text_backbone(config.text)
        self._heads = heads.tensors


class LitTeacher(_OnBackbones):
    """See `LitConfig`."""

    width = HEAD_WIDTH

    def embed_images(self, views: Views) -> Floats:
        """See `Teacher`."""
        return self._project("image", self._image(views)[0])

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """See `Teacher`."""
        return self._project("text", self._text(texts))

    def _project(self, side: str, rows: Floats) -> Floats:
        return finite(self.name, projected(rows, self._heads[f"{side}.weight"], self._heads[f"{side}.bias"]))


class ConseTeacher(_OnBackbones):
    """See `ConseConfig`. Each side's mean is subtracted: raw sentence embeddings share most of their length."""

    width = SENTENCE

    def __init__(self, config: BackboneConfig, heads: Heads, folder: Path) -> None:
        super().__init__(config, heads, folder)
        self._classes = class_embeddings(config)

    def embed_images(self, views: Views) -> Floats:
        """See `Teacher`."""
        return finite(self.name, combined(self._image(views)[1], self._classes) - self._heads["image.mean"])

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """See `Teacher`."""
        return finite(self.name, self._text(texts) - self._heads["text.mean"])


def projected(rows: Floats, weight: Floats, bias: Floats) -> Floats:
    """A linear layer, row by row, so that a row's result does not depend on how many there are."""
    return np.stack([weight @ row for row in rows]) + bias


def class_embeddings(config: BackboneConfig) -> Floats:
    """(1000, 384), of `a photo of a <class>.` for the ImageNet classes."""
    require("open_clip", "open-clip", "the names of the ImageNet classes")
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return text_backbone(config.text)([f"a photo of a {name}." for name in IMAGENET_CLASSNAMES])


def combined(logits: Floats, classes: Floats) -> Floats:
    """Logits (N, 1000) to the mean of the likeliest classes' embeddings, weighted by their probabilities: (N, 384) of unit length."""
    top = np.argsort(-logits, axis=1, kind="stable")[:, :TOP_CLASSES]
    values = np.take_along_axis(logits, top, 1)
    weights = np.exp(values - values[:, :1])
    return unit(np.stack([w @ classes[t] for w, t in zip(weights, top, strict=True)]))


def finite(name: str, rows: NDArray[np.floating]) -> Floats:
    """Rows of unit length.

    Raises:
        InputError: The teacher gives NaN or infinity.
    """
    if not np.isfinite(rows).all():
        raise InputError(f"teacher {name}: gives numbers that are not finite; its weights are damaged")
    return unit(rows)
