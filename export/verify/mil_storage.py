"""The stored form of a CoreML package: manifest, specification, and weight file. Nothing in it is trusted, nothing is run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import mmap
import struct
import sys
import types
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mobileclip.errors import BundleError, StorageError
from mobileclip.files import require

if TYPE_CHECKING:
    import torch

MAX_MANIFEST_BYTES = 1 << 20
MAX_SPEC_BYTES = 1 << 30
MODEL_ROOT = "@model_path/"

# MIL.proto DataType -> name of the type, which numpy and torch share (but for "string").
DTYPES = {
    1: "bool", 2: "string", 10: "float16", 11: "float32", 12: "float64", 21: "int8", 22: "int16", 23: "int32",
    24: "int64", 31: "uint8", 32: "uint16", 33: "uint32",
}  # fmt: skip
# The weight file numbers its types differently. Types of less than a byte are for quantized models.
BLOB_DTYPES = {
    1: "float16", 2: "float32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 14: "int32", 15: "uint32",
}  # fmt: skip
# The field of a `TensorValue` that holds each type; any type may also be stored as bytes.
_FIELDS = {
    "bool": "bools", "string": "strings", "float32": "floats", "float64": "doubles", "int64": "longInts",
    "int32": "ints", "int16": "ints", "uint16": "ints", "uint32": "ints",
}  # fmt: skip

_HEADER = struct.Struct("<II56x")  # number of blobs, version
_BLOB = struct.Struct("<IIQQ40x")  # sentinel, type, size in bytes, offset of the data from the start of the file
_SENTINEL = 0xDEADBEEF
_BLOB_VERSION = 2
_PRIVATE_PROTO = "_mobileclip_coreml_proto"


def model_proto() -> Any:
    """The module with CoreML's `Model` message, without the 20 seconds that importing all of coremltools takes.

    The generated modules import only each other, so they load under a package name of our own whose search path is their folder.

    Raises:
        MissingToolError: coremltools is not installed.
    """
    if "coremltools" in sys.modules:
        return importlib.import_module("coremltools.proto.Model_pb2")
    require("coremltools", "coreml", "reading a CoreML package")
    if _PRIVATE_PROTO not in sys.modules:
        spec = importlib.util.find_spec("coremltools")
        package = types.ModuleType(_PRIVATE_PROTO)
        package.__path__ = [str(Path(p) / "proto") for p in (spec and spec.submodule_search_locations) or ()]
        sys.modules[_PRIVATE_PROTO] = package
    return importlib.import_module(f"{_PRIVATE_PROTO}.Model_pb2")


def damaged(package: Path, what: str) -> BundleError:
    """The error for a package that is not as it was written."""
    return BundleError(f"{package}: {what}; export the model again")


def read_model(package: Path) -> tuple[Any, Path]:
    """Parse the specification that the package's manifest points at.

    Returns:
        The `Model` message and the folder that its weight files are relative to.

    Raises:
        BundleError: The package, its manifest or its specification is missing, damaged, too large, or leaves the package.
    """
    from google.protobuf.message import DecodeError

    if not package.is_dir():
        raise BundleError(f"{package}: not a CoreML package; give the .mlpackage folder")
    path = _root_model(package)
    model = model_proto().Model()
    try:
        model.ParseFromString(_read(package, path, MAX_SPEC_BYTES))
    except DecodeError:
        raise damaged(package, f"{path.name} is truncated or not a CoreML model") from None
    return model, path.parent


def _root_model(package: Path) -> Path:
    def wrong(what: str) -> NoReturn:
        raise damaged(package, f"Manifest.json {what}")

    data = _read(package, inside(package, package, "Manifest.json"), MAX_MANIFEST_BYTES)
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        wrong("is truncated or not JSON")
    entries = manifest.get("itemInfoEntries") if isinstance(manifest, dict) else None
    root = manifest.get("rootModelIdentifier") if isinstance(manifest, dict) else None
    if not isinstance(entries, dict) or not isinstance(root, str) or not isinstance(entries.get(root), dict):
        wrong("names no root model")
    relative = entries[root].get("path")
    if not isinstance(relative, str):
        wrong("has no path for the root model")
    return inside(package, package, f"Data/{relative}")


def inside(package: Path, folder: Path, relative: str) -> Path:
    """The path of `relative` below `folder`, refused if it leaves the package by `..`, by being absolute, or through a link."""
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts or "\\" in relative or "\0" in relative:
        raise BundleError(f"{package}: path {relative!r} leaves the package; do not use this package")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise BundleError(f"{package}: {path.relative_to(package)} is a link; a package must hold its own files")
    return path


def _read(package: Path, path: Path, limit_bytes: int) -> bytes:
    name = path.relative_to(package)
    try:
        if not path.is_file():
            raise damaged(package, f"{name} is missing")
        if path.stat().st_size > limit_bytes:
            raise BundleError(f"{package}: {name} is larger than {limit_bytes} bytes; this is no CoreML model of ours")
        return path.read_bytes()
    except OSError as e:
        raise StorageError(f"{path}: cannot be read ({e.strerror})") from e


class WeightFile:
    """A weight file, mapped into memory: blobs are read in place, pages are loaded when they are first used."""

    def __init__(self, package: Path, path: Path) -> None:
        """Map `path` and check its header.

        Raises:
            BundleError: The file is missing, too short, or of another version.
        """
        self.package, self.name = package, path.relative_to(package)
        try:
            if not path.is_file():
                raise damaged(package, f"{self.name} is missing")
            self.size_bytes = path.stat().st_size
            if self.size_bytes < _HEADER.size:
                raise damaged(package, f"{self.name} is truncated to {self.size_bytes} bytes")
            with path.open("rb") as f:
                # A private writable map: torch wants a writable buffer, and no write can ever reach the file.
                self._map = mmap.mmap(f.fileno(), self.size_bytes, access=mmap.ACCESS_COPY)
        except OSError as e:
            raise StorageError(f"{path}: cannot be read ({e.strerror})") from e
        _, version = _HEADER.unpack_from(self._map)
        if version != _BLOB_VERSION:
            raise damaged(package, f"{self.name} has storage version {version}, not {_BLOB_VERSION}")

    def tensor(self, offset: int, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The blob whose description starts at `offset`, as a tensor on the mapped memory.

        Raises:
            BundleError: The offset or the data lie outside the file, or type or size are not as the program says.
        """
        import torch

        place = f"{self.name}: blob at offset {offset}"
        if offset < _HEADER.size or offset % 64 or offset + _BLOB.size > self.size_bytes:
            raise damaged(self.package, f"{place} is outside the file ({self.size_bytes} bytes)")
        sentinel, code, size_bytes, start = _BLOB.unpack_from(self._map, offset)
        if sentinel != _SENTINEL:
            raise damaged(self.package, f"{place} has no blob description")
        if BLOB_DTYPES.get(code) != dtype:
            raise damaged(self.package, f"{place} holds {BLOB_DTYPES.get(code, f'type {code}')}, not {dtype}")
        count = math.prod(shape)
        if size_bytes != count * np.dtype(dtype).itemsize:
            raise damaged(self.package, f"{place} holds {size_bytes} bytes, not {dtype}{list(shape)}")
        if start % 64 or start < offset + _BLOB.size or start + size_bytes > self.size_bytes:
            raise damaged(self.package, f"{place}: data at {start}, {size_bytes} bytes, is outside the file")
        if not count:
            return torch.empty(shape, dtype=getattr(torch, dtype))
        flat: torch.Tensor = torch.frombuffer(self._map, dtype=getattr(torch, dtype), count=count, offset=start)
        return flat.reshape(shape)


def tensor_type(value_type: Any) -> tuple[str, tuple[int, ...]]:
    """Type name and shape of a MIL `ValueType`.

    Raises:
        ValueError: It is not a tensor, of a type we do not know, or has a flexible shape.
    """
    kind = value_type.WhichOneof("type")
    if kind != "tensorType":
        raise ValueError(f"a value of kind {kind} is not supported")
    tensor = value_type.tensorType
    if tensor.dataType not in DTYPES:
        raise ValueError(f"data type {tensor.dataType} is not supported")
    if any(d.WhichOneof("dimension") != "constant" for d in tensor.dimensions):
        raise ValueError("flexible shapes are not supported; export with fixed shapes")
    return DTYPES[tensor.dataType], tuple(d.constant.size for d in tensor.dimensions)


def immediate(value: Any) -> torch.Tensor | str:
    """A constant that is written inside the program.

    Raises:
        ValueError: The number of elements is not that of the shape, or the kind is not supported.
    """
    import torch

    dtype, shape = tensor_type(value.type)
    if value.immediateValue.WhichOneof("value") != "tensor":
        raise ValueError("a constant that is not a tensor is not supported")
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    items: Any = getattr(tensor, field).values if field else ()
    if field not in (None, "bytes", _FIELDS.get(dtype)):
        raise ValueError(f"a constant of type {dtype} is stored as {field}")
    if dtype == "string":
        if field != "strings" or len(items) != 1:
            raise ValueError("a constant that is a list of texts is not supported")
        return str(items[0])
    if field == "bytes":
        if len(items) % np.dtype(dtype).itemsize:
            raise ValueError(f"a constant of {len(items)} bytes is not whole {dtype} elements")
        array = np.frombuffer(items, np.dtype(dtype).newbyteorder("<")).astype(dtype)
    else:
        try:
            array = np.array(items, dtype)
        except OverflowError:
            raise ValueError(f"a constant does not fit its type {dtype}") from None
    if array.size != math.prod(shape):
        raise ValueError(f"a constant has {array.size} elements, {dtype}{list(shape)} needs {math.prod(shape)}")
    return torch.from_numpy(array.reshape(shape))


def enum_name(enum: Any, number: int) -> str:
    """The name of a protobuf enum's value; the number itself for one that this version does not know."""
    return next((str(name) for name, n in enum.items() if n == number), str(number))
