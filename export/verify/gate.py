"""The gate: an artifact is published only when its own outputs, in its real runtime, agree with the model's on real inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mobileclip.errors import BundleError, GateError
from mobileclip.export import runtimes
from mobileclip.export.bundle import TOWERS, ArtifactInfo, Bundle, Options, ParityInfo, Precision, PreprocessInfo, Target, Tower
from mobileclip.export.verify.dataset import captions, dataset_sha256, pictures
from mobileclip.zeroshot import normalized

if TYPE_CHECKING:
    from mobileclip.tokenizer import Tokenizer

Embeddings = npt.NDArray[np.float32]

MIN_COSINE: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999}
MIN_TOP1_AGREEMENT = 0.99
MIN_RECALL10_OVERLAP = 0.99
TIE: dict[Precision, float] = {"fp32": 1e-6, "fp16": 2**-11}
"""Scores closer than this, the rounding of a number near 1 (a few roundings in fp32), are in no order at this precision."""
LENGTH_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2}


def image_inputs(preprocess: PreprocessInfo) -> npt.NDArray[np.generic]:
    """The verification pictures as an artifact takes them: (N, 3, R, R) float32, or (N, R, R, 3) uint8 when preprocessing is baked in."""
    from mobileclip.preprocess import preprocess as prepared
    from mobileclip.preprocess import resize_crop

    spec = preprocess.spec
    function = resize_crop if preprocess.baked else prepared
    return np.stack([function(p.image, spec) for p in pictures()])


def text_inputs(tokenizer: Tokenizer) -> npt.NDArray[np.int32]:
    """The verification captions as token ids (N, context)."""
    return tokenizer(captions())


def input_names(tower: Tower) -> list[str]:
    """What to call each verification input in a message."""
    return [p.name for p in pictures()] if tower == "image" else [repr(c[:40]) for c in captions()]


@dataclass(frozen=True)
class Agreement:
    """How well two sets of embeddings of the same inputs agree; see `compare`."""

    cosine: npt.NDArray[np.float64]
    max_abs: float
    top1_agreement: float
    recall10_overlap: float


def compare(reference: Embeddings, got: Embeddings, others: Embeddings, precision: Precision) -> Agreement:
    """Compare normalised embeddings of one tower.

    Ranks are those of the other tower's reference embeddings, by cosine. A rank that the reference itself does not decide, because its
    scores differ by no more than the precision's rounding (`TIE`), is not counted against the artifact.

    Args:
        reference: (N, D), the model's.
        got: (N, D), the artifact's.
        others: (M, D), the model's embeddings of the other tower.
        precision: The artifact's.
    """
    a, b = reference.astype(np.float64), got.astype(np.float64)
    wanted, found = a @ others.T.astype(np.float64), b @ others.T.astype(np.float64)  # (N, M) scores
    tie = TIE[precision]
    first = np.take_along_axis(wanted, found.argmax(1)[:, None], 1)[:, 0]
    k = min(10, others.shape[0])
    tenth = np.sort(wanted, 1)[:, -k]
    chosen = np.take_along_axis(wanted, np.argsort(-found, 1)[:, :k], 1)
    return Agreement(
        cosine=np.minimum((a * b).sum(1), 1.0),
        max_abs=float(np.abs(a - b).max()),
        top1_agreement=float((first >= wanted.max(1) - tie).mean()),
        recall10_overlap=float((chosen >= tenth[:, None] - tie).mean()),
    )


def filled(count: int, batch: int) -> npt.NDArray[np.int64]:
    """Indices of all inputs, repeated from the start to whole batches, so that every row of a batch is judged."""
    return np.arange(-(-count // batch) * batch) % count


def check(
    artifact: ArtifactInfo,
    engine: str,
    outputs: Embeddings,
    reference: Embeddings,
    others: Embeddings,
    options: Options,
    norms: npt.NDArray[np.float32] | None = None,
) -> ParityInfo:
    """Judge an artifact's outputs. Their lengths must be 1, or the model's own where the artifact is not to normalise.

    Args:
        outputs: (N, D) of the verification inputs, as the artifact gave them.
        reference: (N, D), the model's.
        others: The model's embeddings of the other tower.
        norms: (N,), lengths of the model's embeddings before normalisation.
    """
    sound = outputs.shape == reference.shape and bool(np.isfinite(outputs).all())
    unit = normalized(outputs) if sound else np.zeros_like(reference)
    if sound:
        lengths = np.linalg.norm(outputs, axis=1) / (1 if norms is None or options.normalize else norms)
        sound = bool((np.abs(lengths - 1) <= LENGTH_TOLERANCE[options.precision]).all())
    agreement = compare(reference, unit, others, options.precision)
    names = input_names(artifact.tower)
    worst = np.argsort(agreement.cosine)[:3]
    return ParityInfo(
        target=artifact.target,
        tower=artifact.tower,
        engine=engine,
        inputs=len(reference),
        cosine_min=float(agreement.cosine.min()),
        cosine_mean=float(agreement.cosine.mean()),
        max_abs=agreement.max_abs,
        top1_agreement=agreement.top1_agreement,
        recall10_overlap=agreement.recall10_overlap,
        worst_inputs=tuple(f"{names[i % len(names)]} ({agreement.cosine[i]:.6f})" for i in worst),
        passed=bool(
            sound
            and agreement.cosine.min() >= MIN_COSINE[options.precision]
            and agreement.top1_agreement >= MIN_TOP1_AGREEMENT
            and agreement.recall10_overlap >= MIN_RECALL10_OVERLAP
        ),
    )


def verify(
    bundle: Bundle, targets: Sequence[Target] | None = None, towers: Sequence[Tower] = TOWERS, threads: int = 1
) -> tuple[ParityInfo, ...]:
    """Run the artifacts of an opened bundle in their runtimes on the verification set and judge them.

    The inputs are prepared as the manifest says, from the package's own pictures and captions, so a wrong manifest fails as well.

    Raises:
        MissingToolError: A runtime is not installed.
    """
    manifest = bundle.manifest
    if manifest.dataset_sha256 != dataset_sha256():
        raise BundleError(f"{bundle.path}: was verified on another set of pictures and captions; export it again with this version")
    reference = {"image": bundle.reference("image"), "text": bundle.reference("text")}
    inputs: dict[str, npt.NDArray[np.generic]] = {}
    results = []
    for artifact in manifest.artifacts:
        if artifact.tower not in towers or (targets and artifact.target not in targets):
            continue
        tower, batch = artifact.tower, artifact.input.shape[0]
        if tower not in inputs:
            inputs[tower] = image_inputs(manifest.preprocess) if tower == "image" else text_inputs(bundle.tokenizer())
        session = runtimes.load(bundle, artifact.target, tower, threads)
        rows = filled(len(inputs[tower]), batch)
        outputs = runtimes.embed(session, inputs[tower][rows], batch)
        others = reference["text" if tower == "image" else "image"]
        norms = bundle.reference_norms(tower)[rows]
        results.append(check(artifact, session.engine, outputs, reference[tower][rows], others, manifest.options, norms))
        del session
    return tuple(results)


def require_passed(parity: Sequence[ParityInfo], precision: Precision) -> None:
    """Raise unless every artifact passed.

    Raises:
        GateError: Names the worst artifact, what it reached, what it needs, and the worst inputs.
    """
    failed = [p for p in parity if not p.passed]
    if failed:
        p = min(failed, key=lambda p: p.cosine_min)
        raise GateError(
            f"{len(failed)} of {len(parity)} artifacts fail; the worst is the {p.target} {p.tower} tower on {p.engine}: cosine "
            f"{p.cosine_min:.6f} (needs {MIN_COSINE[precision]}), top-1 agreement {p.top1_agreement:.1%} (needs {MIN_TOP1_AGREEMENT:.0%}), "
            f"recall@10 overlap {p.recall10_overlap:.3f} (needs {MIN_RECALL10_OVERLAP}); worst inputs: {', '.join(p.worst_inputs)}"
        )
