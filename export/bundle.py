"""The bundle: a folder with artifacts, tokenizer, reference outputs and `manifest.json`. The one contract between all languages.

Schema: `conformance/manifest.schema.json`, generated from the models below.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mobileclip.errors import BundleError, InputError
from mobileclip.files import canonical_json, reading, sha256_file, write_bytes
from mobileclip.specs import PreprocessSpec

if TYPE_CHECKING:
    from mobileclip.tokenizer import Tokenizer

SCHEMA_VERSION: Literal[1] = 1
MAX_MANIFEST_BYTES, MAX_RESOLUTION = 16 << 20, 1024
MANIFEST, TOKENIZER, REFERENCE, GOLDEN = "manifest.json", "tokenizer.json", "reference.safetensors", "golden.safetensors"

Target = Literal["onnx", "coreml", "executorch"]
Tower = Literal["image", "text"]
Precision = Literal["fp32", "fp16"]
Backend = Literal["cpu", "coreml", "xnnpack"]
TARGETS: tuple[Target, ...] = ("onnx", "coreml", "executorch")
TOWERS: tuple[Tower, ...] = ("image", "text")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, json_schema_serialization_defaults_required=True)


def _inside_the_bundle(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ":" in path or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} leaves the bundle")
    return path


class FileEntry(_Strict):
    """One file of the bundle; `path` is relative to the folder, with forward slashes."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: Sha256

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        return _inside_the_bundle(path)


class TensorInfo(_Strict):
    """Name, element type and shape of an artifact's input or output."""

    name: str
    dtype: Literal["float32", "int32", "uint8"]
    shape: tuple[int, ...]


class ModelInfo(_Strict):
    """Where the numbers come from."""

    name: str
    form: str
    source: str
    """Name of the checkpoint file, or how the weights were made."""
    weights_sha256: Sha256
    """Over names, shapes and float32 values of the checkpoint's tensors."""
    trained: bool
    """False: weights of the deterministic recipe; predictions mean nothing."""
    branches_folded: int
    logit_scale: float
    """exp(logit_scale) of the checkpoint: multiply cosines by it before the softmax."""


class PreprocessInfo(_Strict):
    """From picture to input: resize and crop, scale to [0, 1], minus `mean`, over `std`; RGB, channels first."""

    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"]
    resize: Literal["shortest", "squash"]
    baked: bool
    """True: the graph takes uint8 RGB of `resolution`, channels last, and does everything after the crop itself."""

    @property
    def spec(self) -> PreprocessSpec:
        """The preprocessing as the image functions take it."""
        return PreprocessSpec(**self.model_dump(exclude={"baked"}))


class TokenizerInfo(_Strict):
    """The tokenizer file and the sizes of its output."""

    file: FileEntry
    context_length: int


class Options(_Strict):
    """What was asked of the export."""

    targets: tuple[Target, ...] = TARGETS
    towers: tuple[Tower, ...] = TOWERS
    precision: Precision = "fp32"
    batch: int = Field(default=1, ge=1)
    normalize: bool = True
    """L2 normalisation inside the graph."""
    bake_preprocessing: bool = False
    executorch_backend: Literal["xnnpack", "coreml"] = "xnnpack"


class ArtifactInfo(_Strict):
    """One tower for one target. `files` lists every file of it; a CoreML package is a folder at `path`."""

    target: Target
    tower: Tower
    backend: Backend
    path: str
    files: tuple[FileEntry, ...]
    input: TensorInfo
    output: TensorInfo
    fp32_operators: tuple[str, ...]
    """Layers kept in fp32 in an fp16 artifact, by module name."""
    not_delegated: dict[str, int]
    """ExecuTorch: operators outside the delegate, with their number."""
    unhashed: str = ""
    """What the format itself randomises, if anything."""

    @model_validator(mode="after")
    def _hashed(self) -> Self:
        _inside_the_bundle(self.path)
        if not self.files or not all(f.path == self.path or f.path.startswith(f"{self.path}/") for f in self.files):
            raise ValueError(f"{self.path!r} is not what its files are")
        return self

    @property
    def size_bytes(self) -> int:
        """Sum over the files."""
        return sum(f.size_bytes for f in self.files)


class ParityInfo(_Strict):
    """Result of the verification of one artifact (see `mobileclip.export.verify.gate`)."""

    target: Target
    tower: Tower
    engine: str
    """What ran the artifact, with version."""
    inputs: int
    cosine_min: float
    cosine_mean: float
    max_abs: float
    """Largest absolute difference on normalised embeddings."""
    top1_agreement: float
    recall10_overlap: float
    worst_inputs: tuple[str, ...]
    passed: bool


class Manifest(_Strict):
    """`manifest.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    toolkit_version: str
    model: ModelInfo
    embedding_space: Sha256
    """Equal for artifacts whose embeddings may be compared: same weights, preprocessing and tokenizer."""
    embed_dim: int
    options: Options
    preprocess: PreprocessInfo
    tokenizer: TokenizerInfo
    artifacts: tuple[ArtifactInfo, ...]
    dataset_sha256: Sha256
    """The verification set."""
    reference: FileEntry
    """The model's own embeddings of the verification set: `image` and `text`, float32, normalised."""
    golden: FileEntry
    """A few inputs with the model's outputs, for checks on a phone."""
    parity: tuple[ParityInfo, ...]
    tools: dict[str, str]
    """Versions of the packages that wrote the artifacts."""
    manifest_sha256: str = ""
    """Over this document's canonical JSON without this field."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        batch, side = self.options.batch, self.preprocess.resolution
        if not 1 <= side <= MAX_RESOLUTION:
            raise ValueError(f"a resolution of {side} is not possible; 1 to {MAX_RESOLUTION} is")
        pixels = ("uint8", (batch, side, side, 3)) if self.preprocess.baked else ("float32", (batch, 3, side, side))
        inputs = {"image": ("image", *pixels), "text": ("tokens", "int32", (batch, self.tokenizer.context_length))}
        for a in self.artifacts:
            for got, wanted in ((a.input, inputs[a.tower]), (a.output, ("embedding", "float32", (batch, self.embed_dim)))):
                if (got.name, got.dtype, got.shape) != wanted or min(got.shape) < 1:
                    raise ValueError(f"{a.path!r} has {got}; {wanted} is needed")
        return self

    def digest(self) -> str:
        """The value that `manifest_sha256` must have."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json", exclude={"manifest_sha256"}))).hexdigest()

    def sealed(self) -> Manifest:
        """A copy with `manifest_sha256` set."""
        return self.model_copy(update={"manifest_sha256": self.digest()})

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the bundle but the manifest."""
        return (self.tokenizer.file, self.reference, self.golden, *(f for a in self.artifacts for f in a.files))


class Bundle:
    """An opened bundle; the manifest and the hash of every file were checked."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open and check a bundle.

        Raises:
            BundleError: Not a bundle, an unknown schema, edited by hand, or a file is missing, changed or out of place.
        """
        manifest = read_manifest(path)
        root = Path(os.path.realpath(path))
        for entry in manifest.files:
            file = path / entry.path
            if not Path(os.path.realpath(file)).is_relative_to(root):
                raise BundleError(f"{path}: {entry.path} is a link out of the bundle; export again")
            if not file.is_file():
                raise BundleError(f"{path}: {entry.path} is missing; export again")
            if file.stat().st_size != entry.size_bytes or sha256_file(file) != entry.sha256:
                raise BundleError(f"{path}: {entry.path} was changed after the export (sha256 differs); export again")
        return cls(path, manifest)

    def artifact(self, target: Target, tower: Tower) -> ArtifactInfo:
        """The artifact of a target and tower.

        Raises:
            InputError: The bundle has none.
        """
        for a in self.manifest.artifacts:
            if (a.target, a.tower) == (target, tower):
                return a
        have = ", ".join(f"{a.target} {a.tower}" for a in self.manifest.artifacts)
        raise InputError(f"{self.path}: has no {target} {tower} tower; it holds: {have}")

    @property
    def targets(self) -> tuple[Target, ...]:
        """Targets in the bundle, in the manifest's order."""
        return tuple(dict.fromkeys(a.target for a in self.manifest.artifacts))

    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        from mobileclip.tokenizer import Tokenizer

        return Tokenizer.load(self.path / self.manifest.tokenizer.file.path)

    def reference(self, tower: Tower) -> npt.NDArray[np.float32]:
        """The model's own normalised embeddings of the verification set, (inputs, embed_dim).

        Raises:
            BundleError: The file is damaged.
        """
        return self._reference(tower, (self.manifest.embed_dim,))

    def reference_norms(self, tower: Tower) -> npt.NDArray[np.float32]:
        """The lengths of those embeddings before normalisation, (inputs).

        Raises:
            BundleError: The file is damaged.
        """
        return self._reference(f"{tower}.norm", ())

    def _reference(self, name: str, row: tuple[int, ...]) -> npt.NDArray[np.float32]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = self.path / self.manifest.reference.path
        try:
            value = load_file(file)[name]
        except (SafetensorError, KeyError):
            raise BundleError(f"{file}: holds no reference embeddings ({name}); export again") from None
        if value.dtype != np.float32 or value.shape[1:] != row or not value.size or not np.isfinite(value).all():
            raise BundleError(f"{file}: the reference embeddings ({name}) are damaged; export again")
        return value


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bundle's folder; its own hash was checked, the files were not.

    Raises:
        BundleError: There is none, it has another schema, was edited, or does not fit together.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"{path}: is not a bundle (no {MANIFEST}); make one with: mobileclip export -o {path}")
    with reading(file):
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{file}: is larger than {MAX_MANIFEST_BYTES} bytes; export again")
        data = file.read_bytes()
    try:
        value = json.loads(data, object_pairs_hook=_unique)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        seal = value.pop("manifest_sha256", None)
        digest = hashlib.sha256(canonical_json(value)).hexdigest()
    except (ValueError, RecursionError):
        raise BundleError(f"{file}: is not valid JSON; export again") from None
    if value.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(f"{file}: schema version {value.get('schema_version')!r} is unknown; this toolkit reads {SCHEMA_VERSION}")
    if seal != digest:
        raise BundleError(f"{file}: was edited after the export (its own sha256 differs); export again instead of editing it")
    try:
        return Manifest.model_validate_json(canonical_json({**value, "manifest_sha256": seal}), strict=True)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{file}: field {where!r}: {first['msg']}; export again") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys, readers in other languages may take the other one."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def default_name(model: str, precision: Precision) -> str:
    """What the folder of a bundle is called unless the user says otherwise."""
    return f"{model.replace(':', '_').replace('/', '_')}-{precision}"


def file_entry(root: Path, path: Path) -> FileEntry:
    """The entry of a file below `root`."""
    return FileEntry(path=path.relative_to(root).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_file(path))


def file_entries(root: Path, path: Path) -> tuple[FileEntry, ...]:
    """The entries of a file or of every file of a folder, sorted by path."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return tuple(file_entry(root, p) for p in files)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Seal and write `manifest.json`."""
    text = json.dumps(manifest.sealed().model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(folder / MANIFEST, text.encode() + b"\n")
