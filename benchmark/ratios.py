"""Ratios against what a user would do today, measured in one run: open_clip eager, open_clip exported plainly, and ours per target.

Run `make bench`, or `mobileclip ratios mobileclip2_s0 mobileclip2_b`. All paths of a tower are loaded in one process and
timed in turns of random order, so that noise of the machine falls on all of them alike. Weights are random: they do not change the work.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mobileclip.errors import InputError
from mobileclip.export.bundle import PRECISIONS, TOWERS, Options, Precision, PreprocessInfo, Target, Tower
from mobileclip.specs import ModelSpec, get_spec

VARIANTS = ("mobileclip2_s0", "mobileclip2_s2", "mobileclip2_b")
ROUNDS, WARMUP_RUNS = 25, 3
OPEN_CLIP_NAMES = {
    "mobileclip_s1": "MobileCLIP-S1", "mobileclip_s2": "MobileCLIP-S2", "mobileclip_b": "MobileCLIP-B",
    "mobileclip2_s0": "MobileCLIP2-S0", "mobileclip2_s2": "MobileCLIP2-S2", "mobileclip2_b": "MobileCLIP2-B",
    "mobileclip2_s3": "MobileCLIP2-S3", "mobileclip2_s4": "MobileCLIP2-S4", "mobileclip2_l14": "MobileCLIP2-L-14",
}  # fmt: skip
"""The variants that open_clip has too."""
MATMUL = 1024


@dataclass
class Way:
    """One way of running a tower."""

    name: str
    run: Callable[[], Any]
    ours: bool
    latency_ms: list[float] = field(default_factory=list)

    @property
    def p50_ms(self) -> float:
        """Median of the timed runs."""
        return median(self.latency_ms)


def _matmul() -> Way:
    """A square fp32 matrix multiplication: what this machine can do, taken in turns with the rest."""
    import torch

    a, b = torch.rand(MATMUL, MATMUL), torch.rand(MATMUL, MATMUL)
    return Way("matrix multiplication", lambda: a @ b, ours=False)


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


def macs(net: Any, example: Any) -> float:
    """Multiply-accumulates of one run: convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        net(example)
    return counter.get_total_flops() / 2


def ways_of(spec: ModelSpec, tower: Tower, folder: Path, precisions: Sequence[Precision] = PRECISIONS) -> tuple[list[Way], float]:
    """All ways to run a tower, and its multiply-accumulates in fused form."""
    import open_clip
    import torch

    from mobileclip.export import runtimes
    from mobileclip.export.export import plan_for
    from mobileclip.export.exporter import write
    from mobileclip.export.graph import fold_affine
    from mobileclip.sources import load_model

    image = tower == "image"
    model = load_model(f"untrained:{spec.name}")
    resolution = spec.preprocess.resolution
    value: np.ndarray[Any, Any] = (
        np.random.default_rng(0).random((1, 3, resolution, resolution), np.float32) if image else model.tokenizer(["a photo of a dog"])
    )
    example = torch.from_numpy(value)
    net = model.image if image else model.text

    def eager(module: Any, x: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return module(x)

        return run

    theirs = open_clip.create_model(OPEN_CLIP_NAMES[spec.name]).eval()
    their_net = theirs.visual if image else theirs.text
    their_example = example if image else example.long()
    plain = folder / f"{tower}-open_clip.onnx"
    torch.onnx.export(their_net, (their_example,), str(plain), dynamo=True, verbose=False)
    ways = [
        Way("open_clip eager", eager(their_net, their_example), ours=False),
        Way("open_clip torch.onnx.export", _ort(plain, their_example.numpy()), ours=False),
        Way("fused eager", eager(net, example), ours=True),
    ]
    folded = fold_affine(net)
    preprocess = PreprocessInfo(**spec.preprocess.__dict__, baked=False)
    targets: tuple[Target, ...] = ("onnx", "executorch")
    for target in targets:
        for precision in precisions:
            plan = plan_for(tower, spec.embed_dim, Options(precision=precision), preprocess, value)
            session = runtimes.load_artifact(folder, write(target, folded, plan, folder), threads=1)
            ways.append(Way(f"{target} {precision}", _bound(session, value), ours=True))
    return ways, macs(net, example)


def _bound(session: Any, value: Any) -> Callable[[], Any]:
    return lambda: session.run(value)


def _ort(path: Path, value: Any) -> Callable[[], Any]:
    from mobileclip.export.runtimes.onnx import cpu_session

    session = cpu_session(path, threads=1)
    feed = {session.get_inputs()[0].name: value}
    return lambda: session.run(None, feed)


def measure(paths: Sequence[Way], rounds: int = ROUNDS) -> None:
    """Time every path in turns of random order; fills `latency_ms`."""
    order = random.Random(0)
    for path in paths:
        for _ in range(WARMUP_RUNS):
            path.run()
    for _ in range(rounds):
        for path in order.sample(list(paths), len(paths)):
            path.latency_ms.append(_timed(path.run))


@dataclass(frozen=True)
class Table:
    """The ways to run one tower, measured in one run."""

    variant: str
    tower: str
    ways: list[Way]
    macs: float
    matmul: Way

    @property
    def gflops(self) -> float:
        """This machine's fp32 matrix multiplication rate on one thread in this run, 1e9 floating-point operations a second."""
        return 2 * MATMUL**3 / self.matmul.p50_ms / 1e6

    @property
    def roofline_ms(self) -> float:
        """2 x MACs over the machine's measured matrix multiplication rate."""
        return 2 * self.macs / self.gflops / 1e6

    def rows(self) -> list[tuple[object, ...]]:
        """Path, p50 ms, ratio to open_clip eager, to the best fp32 path that is not ours, to the roofline, n."""
        eager = self.ways[0].p50_ms
        best = min(w.p50_ms for w in self.ways if not w.ours)
        return [
            (
                w.name, f"{w.p50_ms:.1f}", f"{w.p50_ms / eager:.3f}", f"{w.p50_ms / best:.3f}", f"{w.p50_ms / self.roofline_ms:.2f}",
                len(w.latency_ms),
            )
            for w in self.ways
        ]  # fmt: skip


COLUMNS = ("path", "p50 ms", "of open_clip eager", "of the best not ours", "of the roofline", "n")


def tables(
    names: Sequence[str], progress: Callable[[str], None], rounds: int = ROUNDS, precisions: Sequence[Precision] = PRECISIONS
) -> Iterator[Table]:
    """Measure each tower of each variant, ours in these precisions.

    Raises:
        InputError: A variant that open_clip does not have.
    """
    import torch

    torch.set_num_threads(1)
    specs = [get_spec(name) for name in names or VARIANTS]
    for spec in specs:
        if spec.name not in OPEN_CLIP_NAMES:
            raise InputError(f"{spec.name} has no twin in open_clip to compare with; known: {', '.join(OPEN_CLIP_NAMES)}")
    for spec in specs:
        for tower in TOWERS:
            progress(f"{spec.name} {tower}: exporting")
            with tempfile.TemporaryDirectory() as folder:
                ways, work = ways_of(spec, tower, Path(folder), precisions)
                progress(f"{spec.name} {tower}: measuring {len(ways)} paths")
                matmul = _matmul()
                measure([*ways, matmul], rounds)
                yield Table(spec.name, tower, ways, work, matmul)
