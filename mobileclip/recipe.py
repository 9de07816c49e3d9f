"""Deterministic weights for tests and demos: every tensor follows from its published name and shape alone. They are not trained."""

from __future__ import annotations

import re
import zlib

import numpy as np
import numpy.typing as npt

SALT = "mobileclip-golden-v1:"


def recipe_tensor(key: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | npt.NDArray[np.int64]:
    """The value of one tensor.

    Values are spread so that mistakes show: layer scales are not small, and each sixteenth channel of a norm has a tiny scale and running
    variance, where a wrong epsilon is visible.

    Args:
        key: Name in the published checkpoint.
        shape: Its shape.

    Returns:
        float32, or int64 zeros for `num_batches_tracked`.
    """
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    random = np.random.RandomState(zlib.crc32((SALT + key).encode()))
    z = random.standard_normal(int(np.prod(shape))).reshape(shape)
    if key == "logit_scale":
        value = np.full(shape, 4.0)
    elif key.endswith("running_mean"):
        value = 0.05 * z
    elif key.endswith("running_var"):
        value = 0.75 + 0.25 * z * z
        value[::16] *= 1e-4
    elif "layer_scale" in key:
        value = 0.15 + 0.03 * z
    elif re.search(r"embedding_layer|token_embedding|positional_embedding|pos_embed|cls_token", key):
        value = 0.05 * z
    elif len(shape) == 1 and key.endswith("weight"):
        value = 1.0 + 0.1 * z
        value[::16] *= 0.01
    elif len(shape) == 1:
        value = 0.02 * z
    else:
        gain = 2.0 if re.search(r"qkv|in_proj", key) else 1.0
        value = gain * z / np.sqrt(np.prod(shape[1:]))
    return value.astype(np.float32)
