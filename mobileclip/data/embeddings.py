"""Teachers' embeddings of one sample of a reinforced data set, as Apple publishes them (Vasu et al. 2024, arXiv 2311.17049).

| member | holds |
|---|---|
| `npz` | float32: `image_emb` [N, D], `text_emb` [real + M, D] |
| `pth.gz` | the same keys, gzip of what `torch.save` writes: bfloat16 tensors, or lists of their rows |
| `syn.json` | synthetic captions: `{"syn_text<tag>": [M captions]}` |
| `paug.json` | augmentations: `{"param_aug": [N of them]}`, see `mobileclip.data.augment` |

Newer sets have only the real captions' rows in `text_emb`, the others in `<key of the captions>_emb`; keys may end in a tag.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mobileclip.data.augment import Params, parse
from mobileclip.data.samples import BadSample, Sample
from mobileclip.errors import CheckpointError, InputError

ABOUT = "reinforcement.json"
"""Beside the shards of a reinforced set: how it was made, by which teachers."""
MAX_BYTES = 16 << 20
"""Of a sample's embeddings, packed or not; the largest published ones have 0.2 MB."""
_MAX_JSON_BYTES = 1 << 20
_MAX_ROWS = 1000
_MAX_MEMBERS, _MAX_DIRECTORY_BYTES = 64, 16 << 10
_LARGEST = 1e6
_NPY = re.compile(
    rb"\x93NUMPY[\x01-\x03]\x00.{2,4}?\{'descr': '(<f[248])', 'fortran_order': (True|False), 'shape': \((\d{1,8}), (\d{1,8})\), \} *\n",
    re.S,
)


@dataclass(frozen=True, eq=False)
class Reinforcement:
    """What the teachers say about one sample. Rows of one width D: the teachers' embeddings, each of length 1, one behind the other."""

    param_aug: list[Params]
    """N augmentations."""
    captions: dict[str, list[str]]
    """Key in `syn.json` to its M synthetic captions."""
    image: np.ndarray
    """(N, D) float32, of the augmented pictures."""
    real: np.ndarray
    """(number of real captions, D) float32."""
    synthetic: dict[str, np.ndarray]
    """Key to (M, D) float32, of its captions."""

    @property
    def width(self) -> int:
        """D."""
        return int(self.image.shape[1])

    def __post_init__(self) -> None:
        """Check that everything has its row, of one width and with sensible numbers.

        Raises:
            BadSample: `bad_reinforcement`.
        """
        rows = {"image": (self.image, len(self.param_aug)), "real": (self.real, len(self.real))}
        rows |= {key: (array, len(self.captions.get(key, ()))) for key, array in self.synthetic.items()}
        if self.synthetic.keys() != self.captions.keys():
            raise _bad("synthetic captions without embeddings")
        for name, (array, expected) in rows.items():
            if array.ndim != 2 or array.dtype != np.float32 or array.shape[1] != self.image.shape[-1] or not array.size:
                raise _bad(f"{name}: embeddings of shape {array.shape}, the pictures have {self.image.shape}")
            if len(array) != expected or expected > _MAX_ROWS:
                raise _bad(f"{name}: {len(array)} embeddings for {expected}")
            if not (array.min() >= -_LARGEST and array.max() <= _LARGEST):  # false for NaN too
                raise _bad(f"{name}: NaN, infinite or huge numbers")


def read(members: dict[str, bytes], captions_regex: str = r"^syn_text.*$", width: int | None = None) -> Reinforcement:
    """The embeddings of one sample.

    Args:
        members: Extension (`npz`, `pth.gz`, `syn.json`, `paug.json`, `txt`, `json`) to content. float32 is preferred to bfloat16.
        captions_regex: Which keys of `syn.json` to take (`re.match`).
        width: What the teachers' widths add up to, if that is known.

    Raises:
        BadSample: `no_reinforcement`, `bad_reinforcement`, `too_large`, `no_caption`, `not_utf8`.
    """
    if "paug.json" not in members:
        raise BadSample("no_reinforcement", "paug.json is missing")
    try:
        param_aug = parse(_json_object(members["paug.json"], "paug.json").get("param_aug"))
    except InputError as e:
        raise _bad(str(e)) from None
    synthetic = synthetic_captions(members, captions_regex)
    if "syn.json" in members and not synthetic:
        raise BadSample("no_reinforcement", f"syn.json has no key that matches {captions_regex}")
    if "npz" in members:
        arrays = _read_npz(members["npz"])
    elif "pth.gz" in members:
        arrays = _read_torch(members["pth.gz"])
    else:
        raise BadSample("no_reinforcement", "neither npz nor pth.gz")
    text = _named(arrays, "text_emb", "texts_emb")
    n_real = len(Sample("", members).captions())
    if len(text) < n_real:
        raise _bad(f"text_emb has {len(text)} rows for {n_real} real captions")
    if len(text) > n_real:
        if len(synthetic) != 1:
            raise _bad(f"text_emb has {len(text)} rows for {n_real} real captions and {len(synthetic)} keys of synthetic ones")
        rows = dict.fromkeys(synthetic, text[n_real:])
    else:
        rows = {key: _named(arrays, f"{key}_emb") for key in synthetic}
    found = Reinforcement(param_aug, synthetic, _named(arrays, "image_emb"), text[:n_real], rows)
    if width not in (None, found.width):
        raise _bad(f"rows of {found.width} values, where the teachers' widths add up to {width}")
    return found


def synthetic_captions(members: dict[str, bytes], captions_regex: str = r"^syn_text.*$") -> dict[str, list[str]]:
    """The synthetic captions under each key of `syn.json` that matches (`re.match`); none without the member.

    Raises:
        BadSample: `not_utf8`, `too_large` or `bad_reinforcement`.
    """
    stored = _json_object(members["syn.json"], "syn.json") if "syn.json" in members else {}
    return {key: _captions(value, f"syn.json: {key[:80]!r}") for key, value in stored.items() if re.match(captions_regex, key)}


def write(reinforcement: Reinforcement, dtype: Literal["bf16", "fp32"] = "bf16") -> dict[str, bytes]:
    """The members that `read` and Apple's training read; equal input gives equal bytes.

    With `syn_text` as the only captions, their rows follow the real ones' in `text_emb`, as in the published sets; otherwise each key has
    its own array.

    Args:
        reinforcement: What to store.
        dtype: `fp32` makes `npz`; `bf16` makes `pth.gz`, less than half as large, rounded to 8 bits of mantissa.

    Returns:
        Extension to content; without `syn.json` where there are no synthetic captions.
    """
    r = reinforcement
    arrays = {"image_emb": r.image, "text_emb": r.real}
    if list(r.synthetic) == ["syn_text"]:
        arrays["text_emb"] = np.concatenate([r.real, r.synthetic["syn_text"]])
    else:
        arrays |= {f"{key}_emb": array for key, array in r.synthetic.items()}
    members = {"paug.json": json.dumps({"param_aug": r.param_aug}).encode()}
    if r.captions:
        members["syn.json"] = json.dumps(r.captions).encode()
    file = io.BytesIO()
    if dtype == "fp32":
        np.savez_compressed(file, allow_pickle=False, **{name: np.ascontiguousarray(array, "<f4") for name, array in arrays.items()})
        return members | {"npz": file.getvalue()}
    import torch

    torch.save({name: torch.tensor(array).bfloat16() for name, array in arrays.items()}, file)
    return members | {"pth.gz": gzip.compress(file.getvalue(), mtime=0)}


def _bad(detail: str) -> BadSample:
    return BadSample("bad_reinforcement", detail)


def _json_object(content: bytes, name: str) -> dict[str, Any]:
    if len(content) > _MAX_JSON_BYTES:
        raise BadSample("too_large", f"{name}: {len(content):,} bytes")
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError:
        raise BadSample("not_utf8", name) from None
    except (ValueError, RecursionError):
        raise _bad(f"{name}: is not JSON") from None
    if not isinstance(value, dict):
        raise _bad(f"{name}: is not an object")
    return value


def _captions(value: object, name: str) -> list[str]:
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not 0 < len(captions) <= _MAX_ROWS or not all(isinstance(c, str) for c in captions):
        raise _bad(f"{name}: is not a list of 1 to {_MAX_ROWS} captions")
    try:
        "".join(captions).encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair
        raise BadSample("not_utf8", name) from None
    return captions


def _named(arrays: dict[str, np.ndarray], *names: str) -> np.ndarray:
    """The array with one of these names, or the only one with a tag behind it."""
    found = [key for key in names if key in arrays] or [key for key in arrays if key.startswith(names)]
    if len(found) != 1:
        raise _bad(f"{len(found) or 'no'} arrays are named {names[0]}")
    return arrays[found[0]]


def _read_npz(content: bytes) -> dict[str, np.ndarray]:
    """Name to (rows, width) float32; views of the unpacked bytes where they are float32."""
    if len(content) > MAX_BYTES:
        raise BadSample("too_large", f"npz: {len(content):,} bytes")
    end, directory_bytes = content[-22:], int.from_bytes(content[-10:-6], "little")
    # Before zipfile walks through the table of contents: it is small, at the very end, and not the 64-bit kind.
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0" or directory_bytes > _MAX_DIRECTORY_BYTES or content[-42:-38] == b"PK\6\7":
        raise _bad("npz: is truncated or damaged")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = archive.infolist()
            if sum(m.file_size for m in found) > MAX_BYTES:
                raise BadSample("too_large", "npz: unpacks to more than a sample's embeddings need")
            if len(found) > _MAX_MEMBERS or len({m.filename for m in found}) < len(found):
                raise _bad("npz: names twice, or too many")
            if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in found):  # LZMA chooses its own memory
                raise _bad("npz: is not compressed as numpy does")
            arrays = {}
            for m in found:
                with archive.open(m) as f:
                    arrays[m.filename.removesuffix(".npy")] = _read_npy(f.read(m.file_size), m.filename)
            return arrays
    except BadSample:
        raise
    except Exception as e:  # zipfile and zlib raise a dozen types on damaged data
        raise _bad(f"npz: is damaged ({type(e).__name__})") from None


def _read_npy(content: bytes, name: str) -> np.ndarray:
    header = _NPY.match(content)
    if header is None:
        raise _bad(f"npz: {name[:80]!r} is not a plain table of floats")
    dtype, transposed = np.dtype(header[1].decode()), header[2] == b"True"
    rows, width = int(header[3]), int(header[4])
    if len(content) - header.end() != rows * width * dtype.itemsize:
        raise _bad(f"npz: {name[:80]!r} is cut off")
    flat = np.frombuffer(content, dtype, offset=header.end())
    table = flat.reshape(width, rows).T if transposed else flat.reshape(rows, width)
    return table.astype(np.float32, copy=False)


def _read_torch(content: bytes) -> dict[str, np.ndarray]:
    """Name to (rows, width) float32."""
    import torch

    from mobileclip.archives import check_torch_archive

    file = io.BytesIO(_gunzip(content))
    try:
        check_torch_archive(file, "pth.gz")
        value = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError as e:
        raise _bad(str(e)) from None
    except Exception as e:  # torch.load raises whatever its parts raise
        raise _bad(f"pth.gz: is damaged ({type(e).__name__})") from None
    if not isinstance(value, dict):
        raise _bad("pth.gz: is not a dictionary of tensors")

    def floats(row: object) -> bool:
        return isinstance(row, torch.Tensor) and row.is_floating_point()

    arrays = {}
    for name, table in value.items():
        rows = table if isinstance(table, list) else [table]
        if not isinstance(name, str) or len(rows) > _MAX_ROWS or not all(map(floats, rows)):
            raise _bad(f"pth.gz: {str(name)[:80]!r} is not a tensor of floats, or a list of rows")
        if sum(row.numel() for row in rows) * 4 > MAX_BYTES:
            raise BadSample("too_large", f"pth.gz: {name[:80]!r} is larger than a sample's embeddings need")
        if isinstance(table, list):
            if len({row.shape for row in rows}) != 1 or rows[0].ndim != 1:
                raise _bad(f"pth.gz: {name[:80]!r} has rows of several shapes")
            table = torch.stack(rows)
        arrays[name] = table.float().numpy()
    return arrays


def _gunzip(content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise BadSample("too_large", f"pth.gz: {len(content):,} bytes")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(content, MAX_BYTES)
    except zlib.error:
        raise _bad("pth.gz: is damaged") from None
    if not unpacker.eof:
        if len(plain) == MAX_BYTES:
            raise BadSample("too_large", "pth.gz: unpacks to more than a sample's embeddings need")
        raise _bad("pth.gz: is truncated")
    if unpacker.unused_data:
        raise _bad("pth.gz: has something behind its end")
    return plain
