"""Models of open_clip as teachers and captioners."""

from __future__ import annotations

from typing import Any

from mobileclip.errors import InputError
from mobileclip.files import did_you_mean, require

_WITH_WEIGHTS = ("local-dir:", "hf-hub:")
"""Names that stand for weights as well; open_clip does not look at `pretrained` then."""


def open_clip_model(who: str, name: str, pretrained: str | None) -> Any:
    """A model in eval mode, without gradients; without weights they are drawn, the same each time.

    Raises:
        InputError: An unknown model, or its weights cannot be had.
        MissingToolError: open_clip is not installed.
    """
    require("open_clip", "open-clip", who)
    import open_clip
    import torch

    complete = name.startswith(_WITH_WEIGHTS)
    if not complete and name not in open_clip.list_models():
        raise did_you_mean("open_clip model", name, open_clip.list_models())
    loads = complete or pretrained is not None
    torch.manual_seed(0)
    try:
        model = open_clip.create_model(name, pretrained=pretrained, load_weights=loads, require_pretrained=loads)
    except (RuntimeError, OSError, ImportError, ValueError) as e:
        raise InputError(f"{who}: open_clip cannot load {name}: {(str(e).splitlines() or [type(e).__name__])[0][:300]}") from None
    return model.eval().requires_grad_(False)
