"""Captioners: synthetic captions for a picture, from its label and tags or from its pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from mobileclip.data.samples import Sample
from mobileclip.errors import InputError
from mobileclip.files import did_you_mean, require
from mobileclip.reinforce.config import CaptionerConfig, CocaConfig, TemplatesConfig

_TRIES = 8
_MOST_TAGS = 4
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


def load_captioner(config: CaptionerConfig) -> Captioner:
    """Make a captioner ready.

    Raises:
        InputError: An unknown model.
        MissingToolError: A package is not installed.
    """
    return CocaCaptioner(config) if isinstance(config, CocaConfig) else TemplateCaptioner(config)


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
            for _ in range(_TRIES):
                caption = self._draw(rng, label, tags)
                if caption not in found:
                    break
            found.append(caption)
        return found

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
    tags = [t for t in tags if isinstance(t, str) and t.strip()] if isinstance(tags, list) else []
    return label if isinstance(label, str) and label.strip() else subject.real[0], tags


class CocaCaptioner:
    """Captions by nucleus sampling, cut at the first full stop, as for DataCompDR (MobileCLIP, arXiv 2311.17049, section 4.1)."""

    def __init__(self, config: CocaConfig) -> None:
        require("open_clip", "open-clip", "the captioner CoCa")
        import open_clip
        import torch

        from mobileclip.sources import weights_sha256

        if not config.model.startswith("local-dir:") and config.model not in open_clip.list_models():
            raise did_you_mean("open_clip model", config.model, [m for m in open_clip.list_models() if m.startswith("coca")])
        torch.manual_seed(0)
        try:
            model, _, self._transform = open_clip.create_model_and_transforms(
                config.model, pretrained=config.pretrained, load_weights=config.pretrained is not None
            )
        except (RuntimeError, OSError, ImportError, ValueError) as e:
            raise InputError(f"captioner: open_clip cannot load {config.model}: {str(e).splitlines()[0][:300]}") from None
        if not hasattr(model, "generate"):
            raise InputError(f"captioner: {config.model} writes no captions; choose a model whose name begins with coca")
        self.identity = weights_sha256(model.state_dict())
        self._config, self._device = config, "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().requires_grad_(False).to(self._device)

    def caption(self, subjects: Sequence[Subject], count: int) -> list[list[str]]:
        """See `Captioner`. A batch draws from the seed of its first picture, so the batches must be cut in the same places."""
        import torch

        found: list[list[str]] = []
        for start in range(0, len(subjects), self._config.batch):
            part = subjects[start : start + self._config.batch]
            seeds = np.random.SeedSequence(part[0].seed).generate_state(count)
            pixels = torch.stack([self._transform(s.image) for s in part]).to(self._device)
            rounds = [self._generate(pixels, int(seed)) for seed in seeds]
            found += [list(captions) for captions in zip(*rounds, strict=True)]
        return found

    def _generate(self, pixels: object, seed: int) -> list[str]:
        import open_clip
        import torch

        torch.manual_seed(seed)
        with torch.inference_mode():
            tokens = self._model.generate(
                pixels, generation_type="top_p", top_p=self._config.top_p, seq_len=self._config.tokens, fixed_output_length=True
            )
        return [cut(open_clip.decode(row)) for row in tokens.cpu()]


def cut(text: str) -> str:
    """What stands between the start and end marks, up to the first full stop."""
    return text.split("<start_of_text>")[-1].split("<end_of_text>")[0].split(".")[0].strip()
