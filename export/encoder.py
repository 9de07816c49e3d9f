"""Pictures and captions to embeddings: one interface, whether a model runs in torch or a bundle runs in any of its runtimes."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobileclip.errors import InputError, MissingToolError, MobileClipError
from mobileclip.export import runtimes
from mobileclip.export.bundle import TARGETS, Bundle, Target, Tower
from mobileclip.export.runtimes import Array, Session
from mobileclip.files import did_you_mean, staged_file
from mobileclip.preprocess import open_image, preprocess, resize_crop
from mobileclip.sources import Model, load_model
from mobileclip.specs import DEFAULT_MODEL, PreprocessSpec
from mobileclip.tokenizer import Tokenizer
from mobileclip.zeroshot import UNTRAINED_NOTE, Embeddings, normalized

FORMATS = (".npy", ".npz", ".safetensors", ".jsonl")
_AT_ONCE = 32
_Item = TypeVar("_Item")


class _Towers(Protocol):
    """What runs the towers: `at_once` inputs are its preferred number for one call."""

    at_once: int

    @property
    def engine(self) -> str: ...

    def tokenizer(self) -> Tokenizer: ...

    def run(self, tower: Tower, inputs: Array) -> npt.NDArray[np.float32]: ...


class _TorchTowers:
    def __init__(self, model: Model) -> None:
        self._model, self.at_once = model, _AT_ONCE

    @property
    def engine(self) -> str:
        import torch

        return f"torch {torch.__version__}"

    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    def run(self, tower: Tower, inputs: Array) -> npt.NDArray[np.float32]:
        import torch

        net = self._model.image if tower == "image" else self._model.text
        with torch.inference_mode():
            return np.asarray(net(torch.from_numpy(inputs)).numpy(), np.float32)


class _BundleTowers:
    """Towers are loaded when they are first needed: a bundle of image towers alone embeds pictures."""

    def __init__(self, bundle: Bundle, target: Target, threads: int) -> None:
        self._bundle, self._target, self._threads = bundle, target, threads
        self._sessions: dict[Tower, Session] = {}
        self._tokenizer: Tokenizer | None = None
        self._batch = bundle.manifest.options.batch
        self.at_once = self._batch * -(-_AT_ONCE // self._batch)

    @property
    def engine(self) -> str:
        return next((session.engine for session in self._sessions.values()), self._target)

    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = self._bundle.tokenizer()
        return self._tokenizer

    def run(self, tower: Tower, inputs: Array) -> npt.NDArray[np.float32]:
        if tower not in self._sessions:
            self._sessions[tower] = runtimes.load(self._bundle, self._target, tower, self._threads)
        return runtimes.embed(self._sessions[tower], inputs, self._batch)


@dataclass(frozen=True)
class Encoder:
    """A model that is ready to embed; made by `open_encoder`, `from_model` or `from_bundle`.

    Attributes:
        name: Variant, or `open_clip:NAME`.
        embedding_space: Id; embeddings of encoders with the same one may be compared, whatever runs them.
        embed_dim: Length of an embedding.
        logit_scale: Factor of cosines before a softmax.
        trained: False when the embeddings mean nothing.
        preprocess: From a picture to the image tower's input.
        baked: The image tower takes uint8 pixels and does the rest itself.
    """

    name: str
    embedding_space: str
    embed_dim: int
    logit_scale: float
    trained: bool
    preprocess: PreprocessSpec
    baked: bool
    towers: _Towers

    @property
    def engine(self) -> str:
        """What runs the towers, with version; for a bundle only the target until the first tower is loaded."""
        return self.towers.engine

    @property
    def title(self) -> str:
        """What tables say of the model: its name, what runs it, and that the numbers mean nothing where it is untrained."""
        return f"{self.name} on {self.engine}" + ("" if self.trained else f"; {UNTRAINED_NOTE}")

    def about(self) -> dict[str, object]:
        """What JSON outputs say of the model."""
        return {"model": self.name, "engine": self.engine, "trained": self.trained, "embedding_space": self.embedding_space}

    def encode_images(self, images: Iterable[Image.Image]) -> Embeddings:
        """Embed pictures of any sizes and modes.

        Returns:
            (N, embed_dim) float32, normalised.

        Raises:
            InputError: The bundle has no image tower for its runtime, or the embeddings are not finite.
        """
        prepared = (self._prepare(image) for image in images)
        parts = [self._embed("image", np.stack(part)) for part in _parts(prepared, self.towers.at_once)]
        return np.concatenate([np.empty((0, self.embed_dim), np.float32), *parts])

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed captions.

        Returns:
            (N, embed_dim) float32, normalised.

        Raises:
            InputError: The bundle has no text tower for its runtime, or the embeddings are not finite.
        """
        parts = [self._embed("text", self.towers.tokenizer()(part)) for part in _parts(texts, self.towers.at_once)]
        return np.concatenate([np.empty((0, self.embed_dim), np.float32), *parts])

    def encode_files(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Embeddings | MobileClipError]]:
        """Embed picture files, in their order and in bounded memory: each path with its embedding (embed_dim,), or why it has none."""
        for part in _parts(paths, self.towers.at_once):
            prepared = [self._prepare_file(path) for path in part]
            good = [x for x in prepared if not isinstance(x, MobileClipError)]
            rows = iter(self._embed("image", np.stack(good)) if good else ())
            for path, x in zip(part, prepared, strict=True):
                yield path, x if isinstance(x, MobileClipError) else next(rows)

    def _prepare(self, image: Image.Image) -> Array:
        return resize_crop(image, self.preprocess) if self.baked else preprocess(image, self.preprocess)

    def _prepare_file(self, path: Path) -> Array | MobileClipError:
        try:
            return self._prepare(open_image(path))
        except MobileClipError as e:
            return e

    def _embed(self, tower: Tower, inputs: Array) -> Embeddings:
        outputs = self.towers.run(tower, inputs)
        if not np.isfinite(outputs).all():
            raise InputError(
                f"{self.name}: the {tower} tower gives numbers that are not finite ({self.engine}); use another model or export"
            )
        return normalized(outputs)


def _parts(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


def from_model(model: Model) -> Encoder:
    """A loaded model, run by torch."""
    return Encoder(
        name=model.name,
        embedding_space=model.embedding_space,
        embed_dim=model.embed_dim,
        logit_scale=model.logit_scale,
        trained=model.trained,
        preprocess=model.preprocess,
        baked=False,
        towers=_TorchTowers(model),
    )


def from_bundle(bundle: Bundle, target: Target | None = None) -> Encoder:
    """An opened bundle, run by the runtime of `target`; default: the first one in the bundle that can run here.

    Raises:
        InputError: The bundle has no such target.
        MissingToolError: Nothing in the bundle can run here.
    """
    manifest = bundle.manifest
    if target is not None and target not in bundle.targets:
        raise InputError(f"{bundle.path}: holds nothing for {target}; it holds: {', '.join(bundle.targets)}")
    return Encoder(
        name=manifest.model.name,
        embedding_space=manifest.embedding_space,
        embed_dim=manifest.embed_dim,
        logit_scale=manifest.model.logit_scale,
        trained=manifest.model.trained,
        preprocess=manifest.preprocess.spec,
        baked=manifest.preprocess.baked,
        towers=_BundleTowers(bundle, target or _first_runnable(bundle), os.cpu_count() or 1),
    )


def open_encoder(source: str = DEFAULT_MODEL, runtime: str | None = None) -> Encoder:
    """Open whatever a user names.

    Args:
        source: A bundle's folder, or anything that `mobileclip.sources.load_model` takes.
        runtime: For a bundle: onnx, executorch or coreml; default: see `from_bundle`.

    Raises:
        InputError: An unknown name or runtime, a runtime for something that is no bundle, or weights that were not pulled yet.
        MissingToolError: The runtime is not installed.
    """
    target = next((t for t in TARGETS if t == runtime), None)
    if runtime is not None and target is None:
        raise did_you_mean("runtime", runtime, TARGETS)
    if Path(source).is_dir():
        return from_bundle(Bundle.open(Path(source)), target)
    if target is not None:
        raise InputError(f"{source}: a runtime needs a bundle; make one with: mobileclip export {source} --target {target}")
    return from_model(load_model(source))


def _first_runnable(bundle: Bundle) -> Target:
    """The first target that is installed; CoreML's interpreter, which is slow, only when there is nothing else."""
    interpreted = {a.target for a in bundle.manifest.artifacts if a.backend == "coreml" and sys.platform != "darwin"}
    for target in sorted(bundle.targets, key=lambda t: t in interpreted):
        if importlib.util.find_spec(runtimes.PACKAGES[target]) is not None:
            return target
    first = bundle.targets[0]
    raise MissingToolError(f"{bundle.path}: nothing in it can run here; install a runtime with: pip install 'mobileclip-toolkit[{first}]'")


def check_format(path: Path) -> None:
    """Refuse a file that `save_embeddings` cannot write.

    Raises:
        InputError: Names the known endings.
    """
    if path.suffix not in FORMATS:
        raise did_you_mean("file ending", path.suffix or path.name, FORMATS)


def save_embeddings(path: Path, encoder: Encoder, names: Sequence[str], embeddings: Embeddings) -> None:
    """Write embeddings with their names, atomically. The format goes by the file's ending.

    - `.npy`: the rows alone, (N, embed_dim) float32.
    - `.npz`: arrays `embeddings`, `names` and `embedding_space`.
    - `.safetensors`: tensor `embeddings`; metadata `names` (a JSON list), `embedding_space` and `model`.
    - `.jsonl`: one object a line: `name`, `embedding`.

    Raises:
        InputError: Another ending.
        StorageError: The file cannot be written; an older one is then as it was.
    """
    check_format(path)
    with staged_file(path) as tmp:
        if path.suffix in (".npy", ".npz"):
            data = io.BytesIO()  # numpy's own writing loses the reason when the disk is full
            if path.suffix == ".npy":
                np.save(data, embeddings)
            else:
                np.savez(data, embeddings=embeddings, names=np.array(names, np.str_), embedding_space=np.array(encoder.embedding_space))
            tmp.write_bytes(data.getbuffer())
        elif path.suffix == ".safetensors":
            from safetensors.numpy import save

            about = {"names": json.dumps(list(names)), "embedding_space": encoder.embedding_space, "model": encoder.name}
            tmp.write_bytes(save({"embeddings": np.ascontiguousarray(embeddings)}, about))
        else:
            with tmp.open("w", encoding="utf-8") as f:
                for name, row in zip(names, embeddings, strict=True):
                    f.write(json.dumps({"name": name, "embedding": row.tolist()}, ensure_ascii=False) + "\n")


def printable(text: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become `U+FFFD`."""
    return os.fsencode(text).decode("utf-8", "replace")


def embed(
    encoder: Encoder, images: Sequence[Path], texts: Sequence[str], progress: Callable[[str], None]
) -> tuple[list[str], Embeddings, list[tuple[str, MobileClipError]]]:
    """Embed picture files, then captions.

    Returns:
        Names (paths and captions), embeddings (N, embed_dim), and the pictures that cannot be read with their errors.
    """
    names: list[str] = []
    rows: list[Embeddings] = []
    failed: list[tuple[str, MobileClipError]] = []
    for i, (path, row) in enumerate(encoder.encode_files(images)):
        if i % 32 == 0:
            progress(f"embedding pictures: {i:,} of {len(images):,}")
        name = printable(str(path))
        if isinstance(row, MobileClipError):
            failed.append((name, row))
        else:
            names.append(name)
            rows.append(row[None])
    captions = [printable(text) for text in texts]
    return [*names, *captions], np.concatenate([*rows, encoder.encode_texts(captions)]), failed


def embed_query(encoder: Encoder, text: str | None, image: Path | None) -> Embeddings:
    """The embedding (embed_dim,) of what a user looks for.

    Raises:
        InputError: Not exactly one of the two, an empty text, or no picture.
    """
    if (image is None) == (text is None or not text.strip()):
        raise InputError("say what to look for: either a text or --image FILE")
    row = encoder.encode_images([open_image(image)]) if image is not None else encoder.encode_texts([printable(text or "")])
    return row.reshape(-1)
