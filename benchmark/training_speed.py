"""Speed and memory of training, as ratios within one run: reinforced to plain, our trainer to open_clip's, one process to two.

Run `make bench-train`. Each measurement is a process of its own; the two sides of a ratio take turns.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mobileclip.benchmark.learning import PLAIN, REINFORCED
from mobileclip.data.samples import Sample
from mobileclip.data.shards import read_shard
from mobileclip.errors import MobileClipError
from mobileclip.files import write_bytes
from mobileclip.training.log import read_log

PAGE = Path("docs/training_speed.md")
ROUNDS, STEPS = 3, 24
COMPARED, COMPARED_BATCH, COMPARED_STEPS = "mobileclip2_s0", 16, 12
OPEN_CLIP_NAME = "MobileCLIP2-S0"
BATCHES = (64, 128, 256, 512)
TRAIN = Path("data/emoji/train")


@dataclass(frozen=True)
class Measured:
    """One process: samples a second, share of the time that was waited for data, largest resident memory of it and its children."""

    samples_per_s: float
    waiting_share: float
    peak_bytes: int


def _finished(command: Sequence[str], threads: int) -> tuple[str, int]:
    """Run a command to its end: its output, and the largest resident memory in bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise MobileClipError(f"{' '.join(command)}: {(text.strip().splitlines() or ['failed'])[-1]}")
    return text, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ours(config: str, *changes: str, batch: int, steps: int = STEPS, processes: int = 1, threads: int = 2) -> Measured:
    """A few steps of `mobileclip train`; the first logged ones are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = (
            f"batch_size={batch}", f"schedule.samples={steps * batch}", "schedule.warmup_steps=1", "evaluations=[]", "save_every=100000",
            "text_pretraining=null",
            f"log_every={max(steps // 8, 1)}", f"threads={threads}",
        )  # fmt: skip
        words = ["train", config, "-o", folder, *(w for c in (*fixed, *changes) for w in ("--set", c))]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
        _, peak = _finished([sys.executable, *torchrun, "-m", "mobileclip", *words], threads)
        lines = [line for line in read_log(Path(folder)) if "samples_per_s" in line][2:]
    return Measured(median(line["samples_per_s"] for line in lines), median(line["waiting_share"] for line in lines), peak)


def compared_table(folder: Path) -> Path:
    """The first pictures of the training shards as files, with a table that both trainers read: open_clip's reader of shards is for an
    older webdataset.
    """
    samples = (s for shard in sorted(TRAIN.glob("*.tar")) for s in read_shard(shard) if isinstance(s, Sample))
    rows = ["filepath\ttitle"]
    for sample in itertools.islice(samples, COMPARED_STEPS * COMPARED_BATCH):
        picture = folder / f"{sample.key}.webp"
        picture.write_bytes(sample.image())
        rows.append(f"{picture}\t{' '.join(sample.members['txt'].decode().split())}")
    path = folder / "table.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


def theirs(table: Path) -> float:
    """Samples a second of open_clip's own trainer, on a table and the model of `COMPARED`."""
    with tempfile.TemporaryDirectory() as folder:
        text, _ = _finished(
            [
                sys.executable, "-m", "open_clip_train.main", "--model", OPEN_CLIP_NAME, "--device", "cpu", "--precision", "fp32",
                "--train-data", str(table), "--dataset-type", "csv", "--csv-separator", "\t", "--csv-img-key", "filepath",
                "--csv-caption-key", "title", "--workers", "1", "--epochs", "1", "--batch-size", str(COMPARED_BATCH), "--warmup", "1",
                "--log-every-n-steps", "1", "--logs", folder,
            ],
            threads=2,
        )  # fmt: skip
    rates = [float(rate) for rate in re.findall(r"Batch \(t\): [\d.]+, ([\d.]+)/s", text)]
    if len(rates) < COMPARED_STEPS // 2:
        raise MobileClipError("open_clip's trainer has logged no speed")
    return median(rates[2:])


def compared_config(folder: Path, table: Path) -> str:
    """A plain run of `COMPARED`, as like to open_clip's as can be."""
    config = {
        "schema_version": 1, "model": COMPARED, "batch_size": COMPARED_BATCH, "precision": "fp32", "schedule": {"samples": 1000},
        "data": {"shards": [str(table)], "workers": 1}, "optimizer": {"max_norm": None},
    }  # fmt: skip
    path = folder / "compared.yaml"
    path.write_text(json.dumps(config))
    return str(path)


def loading(workers: int, samples: int = 4096) -> float:
    """Samples a second that the loader gives of the reinforced set, nothing else being done."""
    from mobileclip.data.loader import Loader
    from mobileclip.data.source import find_shards
    from mobileclip.training.config import load_config
    from mobileclip.training.setup import make_recipe

    config = load_config(Path(REINFORCED))
    loader = iter(Loader({"shards": find_shards(config.data.shards), "seed": 0}, make_recipe(config), 256, workers))
    next(loader)
    began = time.perf_counter()
    for _ in range(samples // 256):
        next(loader)
    return samples / (time.perf_counter() - began)


def _in_turns(*sides: Callable[[], float]) -> list[list[float]]:
    rates: list[list[float]] = [[] for _ in sides]
    for _ in range(ROUNDS):
        for values, side in zip(rates, sides, strict=True):
            values.append(side())
    return rates


def _ratio(first: Sequence[float], second: Sequence[float]) -> str:
    ratios = sorted(a / b for a, b in zip(first, second, strict=True))
    return f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(ratios)})"


def main(progress: Callable[[str], None]) -> None:
    """Measure everything and write the page."""
    progress("reinforced and plain steps")
    reinforced, plain = _in_turns(
        lambda: ours(REINFORCED, batch=256).samples_per_s, lambda: ours(PLAIN, batch=256).samples_per_s
    )  # fmt: skip
    progress("our trainer and open_clip's")
    with tempfile.TemporaryDirectory() as folder:
        table = compared_table(Path(folder))
        config = compared_config(Path(folder), table)
        mine, other = _in_turns(
            lambda: ours(config, batch=COMPARED_BATCH, steps=COMPARED_STEPS).samples_per_s, lambda: theirs(table)
        )  # fmt: skip
    progress("one process and two")
    one, two = _in_turns(
        lambda: ours(REINFORCED, batch=256, threads=1).samples_per_s,
        lambda: ours(REINFORCED, batch=256, threads=1, processes=2).samples_per_s,
    )
    progress("memory")
    memory = {
        checkpointed: [ours(REINFORCED, f"gradient_checkpointing={checkpointed}", batch=b, steps=8).peak_bytes for b in BATCHES]
        for checkpointed in ("false", "true")
    }
    progress("loading")
    loaded = {workers: loading(workers) for workers in (0, 1, 2)}
    waiting = ours(REINFORCED, batch=256).waiting_share
    megabytes = {k: " | ".join(f"{v / 1e6:,.0f}" for v in values) for k, values in memory.items()}
    lines = [
        "# Speed and memory of training", "",
        f"Made by `make bench-train` on {os.cpu_count()} CPU cores, fp32, two threads unless said. Ratios: median of rounds in turns,",
        "least and largest.", "",
        "| ratio | value |", "|---|---|",
        f"| time of a reinforced step / a plain one, mobileclip_nano, batch 256 | {_ratio(plain, reinforced)} |",
        f"| samples/s of our trainer / open_clip's, {COMPARED}, batch {COMPARED_BATCH}, same pictures | {_ratio(mine, other)} |",
        f"| samples/s of two processes / one, one thread each, mobileclip_nano reinforced | {_ratio(two, one)} |", "",
        f"Samples/s, medians: reinforced {median(reinforced):.0f}, plain {median(plain):.0f}; {COMPARED} {median(mine):.1f} here, "
        f"{median(other):.1f} with open_clip. Share of time that training waits for data with one worker: {waiting:.1%}.", "",
        "| loader alone, reinforced set, workers | 0 | 1 | 2 |", "|---|---|---|---|",
        f"| samples/s | {' | '.join(f'{rate:,.0f}' for rate in loaded.values())} |", "",
        f"| peak memory in MB, mobileclip_nano reinforced, batch | {' | '.join(map(str, BATCHES))} |", f"|---|{'---|' * len(BATCHES)}",
        f"| | {megabytes['false']} |", f"| gradient checkpointing | {megabytes['true']} |", "",
    ]  # fmt: skip
    write_bytes(PAGE, "\n".join(lines).encode())


if __name__ == "__main__":
    main(print)
