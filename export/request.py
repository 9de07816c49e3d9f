"""From the words of a command line to checked export options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

from mobileclip.errors import InputError
from mobileclip.export.bundle import PRECISIONS, TARGETS, TOWERS, Options, Precision, Target, Tower
from mobileclip.files import did_you_mean

MAX_BATCH = 1024


def options_from(
    targets: Sequence[str], precision: str, tower: str, batch: int, normalize: bool, bake_preprocessing: bool, backend: str
) -> Options:
    """Check the words and put them into the order of the manifest.

    Raises:
        InputError: An unknown word, with the nearest known one, or a combination that no target can do.
    """
    backends = get_args(Options.model_fields["executorch_backend"].annotation)
    chosen = {t for word in targets for t in (TARGETS if word == "all" else (_known("target", word, TARGETS, "all"),))}
    towers = TOWERS if tower == "both" else (_known("tower", tower, TOWERS, "both"),)
    if not 1 <= batch <= MAX_BATCH:
        raise InputError(f"batch {batch} is out of range; give 1 to {MAX_BATCH}")
    if bake_preprocessing and batch != 1 and "coreml" in chosen and "image" in towers:
        raise InputError("CoreML takes one picture at a time when preprocessing is baked in; use --batch 1 or another target")
    if bake_preprocessing and backend == "coreml" and "executorch" in chosen and "image" in towers:
        raise InputError("the CoreML delegate takes no uint8 pixels; leave out --bake-preprocessing or use --backend xnnpack")
    return Options(
        targets=tuple(t for t in TARGETS if t in chosen),
        towers=cast(tuple[Tower, ...], towers),
        precision=cast(Precision, _known("precision", precision, PRECISIONS)),
        batch=batch,
        normalize=normalize,
        bake_preprocessing=bake_preprocessing,
        executorch_backend=cast(object, _known("backend", backend, backends)),  # type: ignore[arg-type]
    )


def _known(kind: str, word: str, known: Sequence[str], *more: str) -> Target | Tower | Precision:
    if word not in known:
        raise did_you_mean(kind, word, [*known, *more])
    return cast(Target, word)
