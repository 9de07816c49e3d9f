"""Captioners: synthetic captions for a picture, from its label and tags or from its pixels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileclip.data.samples import Sample
from mobileclip.errors import InputError
from mobileclip.reinforce.clips import open_clip_model
from mobileclip.reinforce.config import CaptionerConfig, CocaConfig, TemplatesConfig

if TYPE_CHECKING:
    from torch import Tensor

_TRIES = 8
_MOST_TAGS = 4
_START, _END = 49406, 49407
_SHORTEST = 5
"""Tokens of a caption before it may end."""
_FEW_TAGS = 2
"""Tags alone say enough from this many on."""


@dataclass(frozen=True)
class Subject:
    """What a captioner is told of a sample.

    Attributes:
        sample: As it is stored.
        image: Decoded.
        real: Its own captions, at least one.
        seed: For all that is drawn.
    """

    sample: Sample
    image: Image.Image
    real: Sequence[str]
    seed: Sequence[int]


class Captioner(Protocol):
    """Gives synthetic captions."""

    @property
    def identity(self) -> str:
        """What stands for its weights; empty without any."""
        ...

    def caption(self, subjects: Sequence[Subject], count: int) -> list[list[str]]:
        """`count` captions for each subject, the same for the same subject whatever stands beside it."""
        ...


def load_captioner(config: CaptionerConfig, device: str = "cpu") -> Captioner:
    """Make a captioner ready.

    Raises:
        InputError: An unknown model.
        MissingToolError: A package is not installed.
    """
    return CocaCaptioner(config, device) if isinstance(config, CocaConfig) else TemplateCaptioner(config)


class TemplateCaptioner:
    """A template with the label; the label with one to four tags; tags alone: distinct ones as far as there are so many."""

    identity = ""

    def __init__(self, config: TemplatesConfig) -> None:
        for template in config.templates:
            if template.count("{}") != 1:
                raise InputError(f"captioner: the template {template!r} needs one {{}} for the label")
        self._templates = config.templates

    def caption(self, subjects: Sequence[Subject], count: int) -> list[list[str]]:
        """See `Captioner`."""
        return [self._captions(s, count) for s in subjects]

    def _captions(self, subject: Subject, count: int) -> list[str]:
        label, tags = _about(subject)
        rng = np.random.default_rng(subject.seed)
        found: list[str] = []
        for _ in range(count):
            drawn = (self._draw(rng, label, tags) for _ in range(_TRIES))
            found.append(next((c for c in itertools.chain(drawn, self._all(label, tags)) if c not in found), found[-1] if found else label))
        return found

    def _all(self, label: str, tags: list[str]) -> Iterator[str]:
        """For pictures with few tags, where drawing seldom gives something new."""
        yield from (template.replace("{}", label) for template in self._templates)
        yield from (f"{label}, {tag}" for tag in tags)

    def _draw(self, rng: np.random.Generator, label: str, tags: list[str]) -> str:
        kind = rng.integers(5)  # two of five a template, two the label with tags, one tags alone
        if kind < 2 or not tags:
            return self._templates[rng.integers(len(self._templates))].replace("{}", label)
        some = [tags[i] for i in rng.permutation(len(tags))[: rng.integers(1, _MOST_TAGS + 1)]]
        return ", ".join(some if kind == 4 and len(some) >= _FEW_TAGS else [label, *some])


def _about(subject: Subject) -> tuple[str, list[str]]:
    """Label and tags from the sample's `json`."""
    try:
        about = json.loads(subject.sample.members.get("json", b"{}"))
    except (ValueError, RecursionError):
        about = {}
    about = about if isinstance(about, dict) else {}
    label, tags = about.get("label"), about.get("tags")
    tags = [t for t in tags if _is_text(t)] if isinstance(tags, list) else []
    return label if _is_text(label) else next(c for c in subject.real if c.strip()), tags


def _is_text(value: object) -> TypeGuard[str]:
    """Not empty, and without halves of surrogate pairs, which JSON can hold."""
    return isinstance(value, str) and bool(value.strip()) and value.encode(errors="replace").decode() == value


class CocaCaptioner:
    """Captions by nucleus sampling, cut at the first full stop, as for DataCompDR (MobileCLIP, arXiv 2311.17049, section 4.1)."""

    def __init__(self, config: CocaConfig, device: str = "cpu") -> None:
        model = open_clip_model("captioner", config.model, config.pretrained)
        from open_clip.transform import PreprocessCfg, image_transform_v2

        from mobileclip.sources import weights_sha256

        if not hasattr(model, "generate"):
            raise InputError(f"captioner: {config.model} writes no captions; choose a model whose name begins with coca")
        self._transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        self.identity = weights_sha256(model.state_dict())
        self._config, self._device = config, device
        self._model = model.to(device)

    def caption(self, subjects: Sequence[Subject], count: int) -> list[list[str]]:
        """See `Captioner`."""
        import torch

        found: list[list[str]] = []
        for start in range(0, len(subjects), self._config.batch):
            part = list(subjects[start : start + self._config.batch])
            part += part[-1:] * (self._config.batch - len(part))
            pixels = torch.stack([self._transform(s.image) for s in part]).to(self._device)
            with torch.inference_mode():
                latent, tokens = self._model._encode_image(pixels)
                rounds = []
                for number in range(count):  # how much is drawn depends on the longest caption: each begins anew
                    rngs = [np.random.default_rng([*s.seed, 1, number]) for s in part]
                    rounds.append(self._sample(pixels, latent, tokens, rngs))
            found += [list(captions) for captions in zip(*rounds, strict=True)]
        return found[: len(subjects)]

    def _sample(self, pixels: Tensor, latent: Tensor, visual: Tensor, rngs: Sequence[np.random.Generator]) -> list[str]:
        """One caption for each picture. open_clip's own `generate` needs parts that transformers 5 no longer has."""
        import open_clip
        import torch

        text = torch.full((len(rngs), 1), _START, device=pixels.device)
        while text.shape[1] < self._config.tokens:
            outputs = self._model(pixels, text, image_latent=latent, image_embs=visual, output_labels=False)
            logits = outputs["logits"][:, -1].double()
            if text.shape[1] < _SHORTEST:
                logits[:, _END] = -torch.inf
            drawn = nucleus(logits.softmax(1).cpu().numpy(), self._config.top_p, [rng.random() for rng in rngs])
            ended = (text == _END).any(1)
            text = torch.cat([text, torch.from_numpy(drawn).to(text).masked_fill(ended, _END)[:, None]], 1)
            if (text[:, -1] == _END).all():
                break
        return [cut(open_clip.decode(row)) for row in text.cpu()]


def nucleus(probabilities: NDArray[np.float64], top_p: float, uniform: Sequence[float]) -> NDArray[np.int64]:
    """Draw from the likeliest values that together have `top_p` (Holtzman et al. 2020, arXiv 1904.09751).

    Args:
        probabilities: (B, values).
        top_p: 0 to 1.
        uniform: B numbers drawn from [0, 1).

    Returns:
        (B,) the values.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    total = np.cumsum(np.take_along_axis(probabilities, order, 1), axis=1)
    kept = np.argmax(total >= min(top_p, 1 - 1e-9), axis=1)  # the last that is kept
    chosen = [np.searchsorted(row, u * row[k], side="right") for row, u, k in zip(total, uniform, kept, strict=True)]
    return order[np.arange(len(order)), chosen]


def cut(text: str) -> str:
    """What stands between the start and end marks, up to the first full stop."""
    return text.split("<start_of_text>")[-1].split("<end_of_text>")[0].split(".")[0].strip()
