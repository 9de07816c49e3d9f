"""Words with the teachers' embeddings of them, beside the shards of a reinforced data set.

`vocabulary.safetensors` holds `text_emb`, float32 (V, sum of the teachers' widths), the teachers side by side. Its metadata has one entry,
`about`: JSON with `words`, V of them, and `teachers`, a list of name, width and SHA-256 of the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobileclip.errors import InputError
from mobileclip.files import reading, staged_file

NAME = "vocabulary.safetensors"
_LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Words and their embeddings.

    Attributes:
        words: Distinct.
        rows: (len(words), D) float32.
        teachers: Name, width and weights of each teacher; the widths add up to D.
    """

    words: list[str]
    rows: NDArray[np.float32]
    teachers: list[list[str | int]]


def read(path: Path) -> Vocabulary:
    """Read and check a vocabulary.

    Raises:
        InputError: No such file, or not one that `write` made.
        StorageError: It cannot be read.
    """
    import safetensors

    damaged = InputError(f"{path}: is damaged; remove it, `mobileclip reinforce` makes it again")
    try:
        with reading(path), safetensors.safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["about"])
            dtype, shape = file.get_slice("text_emb").get_dtype(), file.get_slice("text_emb").get_shape()
            if dtype != "F32" or len(shape) != 2 or not all(shape):  # numpy lacks some types
                raise damaged
            rows = file.get_tensor("text_emb")
        words, teachers = about["words"], about["teachers"]
        encoded = [word.encode() for word in words]  # fails for what is no text
        width = sum(width for _, width, _ in teachers)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if not isinstance(words, list) or not isinstance(teachers, list) or not all(isinstance(t, list) for t in teachers):
        raise damaged
    if len(set(encoded)) != len(words) or (len(words), width) != rows.shape or not (rows.min() >= -_LARGEST and rows.max() <= _LARGEST):
        raise damaged
    return Vocabulary(words, rows, teachers)


def write(path: Path, vocabulary: Vocabulary) -> None:
    """Write a vocabulary atomically; equal input gives equal bytes.

    Raises:
        StorageError: It cannot be written.
    """
    from safetensors.numpy import save_file

    about = json.dumps({"words": vocabulary.words, "teachers": vocabulary.teachers})  # one entry: several come in any order
    with staged_file(path) as tmp:
        save_file({"text_emb": np.ascontiguousarray(vocabulary.rows, np.float32)}, tmp, {"about": about})
