"""Pictures and captions to embeddings: one interface, whether a checkpoint runs in torch or a bundle in any runtime."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobileclip.errors import InputError, MissingToolError, MobileClipError
from mobileclip.export import runtimes
from mobileclip.export.bundle import TARGETS, ArtifactInfo, Bundle, Target, Tower
from mobileclip.export.runtimes import Array, Session
from mobileclip.files import did_you_mean, staged_file
from mobileclip.preprocess import open_image, preprocess, resize_crop
from mobileclip.sources import Model, load_model
from mobileclip.specs import DEFAULT_MODEL, PreprocessSpec
from mobileclip.tokenizer import Tokenizer
from mobileclip.zeroshot import Embeddings, normalized

AT_ONCE = 32
FORMATS = (".npy", ".npz", ".safetensors", ".jsonl")
_PACKAGES: dict[Target, str] = {"onnx": "onnxruntime", "coreml": "coremltools", "executorch": "executorch"}


class _Towers(Protocol):
    engine: str
    at_once: int

    def run(self, tower: Tower, inputs: Array) -> npt.NDArray[np.float32]: ...


class Encoder:
    """A model that is ready to embed. A bundle's towers are loaded when they are first needed.

    Attributes:
        name: Variant, or `open_clip:NAME`.
        embedding_space: Id; embeddings of encoders with the same one may be compared.
        embed_dim: Length of an embedding.
        logit_scale: Factor of cosines before a softmax.
        trained: False when the embeddings mean nothing.
    """

    def __init__(self, source: Model | Bundle, target: Target = "onnx") -> None:
        """Wrap a loaded model, or an opened bundle and the target to run; `open_encoder` does both from a name or path."""
        self._tokenizer: Tokenizer | None = None
        self._towers: _Towers
        self.preprocess: PreprocessSpec
        if isinstance(source, Bundle):
            manifest = source.manifest
            self._towers, self._bundle = _BundleTowers(source, target), source
            self.name, self.logit_scale, self.trained = manifest.model.name, manifest.model.logit_scale, manifest.model.trained
            self.preprocess, self._baked = manifest.preprocess.spec, manifest.preprocess.baked
        else:
            self._towers, self._tokenizer = _TorchTowers(source), source.tokenizer
            self.name, self.logit_scale, self.trained = source.name, source.logit_scale, source.trained
            self.preprocess, self._baked = source.preprocess, False
        self.embedding_space, self.embed_dim = (source.manifest if isinstance(source, Bundle) else source)
