"""What reinforced training brings: `mobileclip train` over budgets, seeds and parts of the recipe, summed up in a page.

Run `make bench-train`. Runs that are finished are not made again, and those that were stopped go on, so that it can be spread over days.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mobileclip.benchmark import plots
from mobileclip.errors import MobileClipError
from mobileclip.files import write_bytes
from mobileclip.training.log import read_log

METRICS = {
    "unseen style R@1": "unseen style/text_retrieval_recall@1",
    "R@5": "unseen style/text_retrieval_recall@5",
    "unseen concept R@1": "unseen concept/text_retrieval_recall@1",
    "9 groups": "group/acc1",
}
MAIN = "unseen style R@1"
PLAIN, REINFORCED = "configs/nano-plain.yaml", "configs/nano.yaml"
FULL = 270_000
BUDGETS = (25_000, 50_000, 100_000, FULL)
RUNG = 100_000
RUNS, PAGE, PLOT = Path("runs/learning"), Path("docs/learning.md"), Path("docs/learning.svg")

_TEACHER_ALONE = "loss.teachers=[{name: lite0-minilm-l6, width: 256, scale: 30}]"
_ONE_TEACHER = (
    f"{_TEACHER_ALONE[:-1]}, {{name: lite2-minilm-l3, width: 256, weight: 0}}, {{name: conse-lite2-minilm-l3, width: 384, weight: 0}}]"
)
_NO_TEACHER = ("loss.distillation=0", "data.augmentation={scale: [0.6, 1.0]}")
_NO_WORDS = "data.synthetic_keys=^syn_text$"


@dataclass(frozen=True)
class Recipe:
    """A way of training: a config with changes."""

    name: str
    config: str
    changes: tuple[str, ...] = ()


LADDER = (
    Recipe("plain", PLAIN),
    Recipe("+ synthetic captions", REINFORCED, (*_NO_TEACHER, _NO_WORDS)),
    Recipe("+ distillation from one teacher", REINFORCED, (_ONE_TEACHER, _NO_WORDS)),
    Recipe("+ three teachers", REINFORCED, (_NO_WORDS,)),
    Recipe("+ words", REINFORCED),
)
"""Each rung adds one part of the recipe (MobileCLIP, arXiv 2311.17049, table 1)."""
VARIATIONS = (
    Recipe("captions: either at random", REINFORCED, ("data.captions=random",)),
    Recipe("strong augmentation", REINFORCED, ("data.shards=[data/emoji-dr-strong]",)),
    Recipe("embeddings in bf16", REINFORCED, ("data.shards=[data/emoji-dr-bf16]",)),
    Recipe("one teacher with 30 views instead of 5", REINFORCED, (_TEACHER_ALONE, "data.shards=[data/emoji-dr-30]")),
)


@dataclass(frozen=True)
class Run:
    """One run of `mobileclip train`."""

    recipe: Recipe
    samples: int
    seed: int

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        name = "".join(c if c.isalnum() else "-" for c in self.recipe.name).strip("-")
        return RUNS / f"{name}-{self.samples}-{self.seed}"

    @property
    def command(self) -> list[str]:
        """The words of its command."""
        schedule = () if self.samples == FULL else (f"schedule.samples={self.samples}", f"schedule.warmup_steps={self.samples // 2500}")
        changes = (*self.recipe.changes, *schedule, f"seed={self.seed}")
        launch = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "mobileclip"]
        return [*launch, "train", self.recipe.config, "-o", str(self.folder), *(w for c in changes for w in ("--set", c))]

    def scores(self) -> dict[str, float] | None:
        """Its last scores; None if it is not finished."""
        if not (self.folder / "model.safetensors").is_file():
            return None
        found = [line for line in read_log(self.folder) if METRICS[MAIN] in line]
        return {name: 100 * found[-1][key] for name, key in METRICS.items()} if found else None


def runs(seeds: Sequence[int]) -> Iterator[Run]:
    """All runs, the most telling ones first."""
    plain, reinforced = LADDER[0], LADDER[-1]
    for seed in seeds:
        yield from (Run(recipe, FULL, seed) for recipe in (reinforced, plain))
    yield from (Run(recipe, samples, seeds[0]) for samples in BUDGETS[:-1] for recipe in (reinforced, plain))
    yield from (Run(recipe, RUNG, seeds[0]) for recipe in (*LADDER, *VARIATIONS))


def perform(run: Run, progress: Callable[[str], None]) -> None:
    """Make a run, or go on with it.

    Raises:
        MobileClipError: The command fails; its last line.
    """
    if run.scores() is not None:
        return
    progress(shlex.join(run.command))
    command = [sys.executable, "-m", "torch.distributed.run", *run.command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise MobileClipError(f"{run.folder}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def _cell(values: Sequence[float]) -> str:
    return "-" if not values else f"{values[0]:.1f}" if len(values) == 1 else f"{mean(values):.1f} ± {stdev(values):.1f}"


def _table(rows: Sequence[tuple[str, Sequence[Run]]]) -> list[str]:
    lines = [f"| | samples | runs | {' | '.join(METRICS)} |", f"|---|---|---|{'---|' * len(METRICS)}"]
    for name, group in rows:
        scores = [s for run in group if (s := run.scores()) is not None]
        cells = [_cell([s[metric] for s in scores]) for metric in METRICS]
        lines.append(f"| {name} | {group[0].samples:,} | {len(scores)} | {' | '.join(cells)} |")
    return lines


def curves(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[int, float]]:
    """(samples, score in %) of finished runs of every budget, the mean over the seeds."""
    points = []
    for samples in BUDGETS:
        scores = [s[MAIN] for seed in seeds if (s := Run(recipe, samples, seed).scores())]
        if scores:
            points.append((samples, mean(scores)))
    return points


def efficiency(plain: Sequence[tuple[int, float]], reinforced: Sequence[tuple[int, float]]) -> str:
    """How many times fewer samples reinforced training needs for what plain training reaches at the end, by whole runs of each budget."""
    if not plain or plain[-1][0] != FULL or not reinforced:
        return "not measured yet"
    wanted = plain[-1][1]
    enough = [samples for samples, score in reinforced if score >= wanted]
    if not enough:
        return f"below 1: no budget reaches {wanted:.1f} %"
    before = [samples for samples, score in reinforced if score < wanted and samples < enough[0]]
    between = f", under {FULL / before[-1]:.0f}" if before else ""
    return f"at least {FULL / enough[0]:.0f}{between} ({enough[0]:,} samples instead of {FULL:,} for {wanted:.1f} %)"


def page(seeds: Sequence[int]) -> str:
    """The page, from what is finished."""
    plain, reinforced = LADDER[0], LADDER[-1]
    series = {"plain": curves(plain, seeds), "reinforced": curves(reinforced, seeds)}
    full = [(name, [Run(r, FULL, seed) for seed in seeds]) for name, r in (("plain", plain), ("reinforced", reinforced))]
    budgets = [(name, [Run(r, b, seeds[0])]) for b in BUDGETS for name, r in (("plain", plain), ("reinforced", reinforced))]
    lines = [
        "# Learning: plain and reinforced training of mobileclip_nano", "",
        "Made by `make bench-train`; scores in %, mean ± standard deviation over seeds. `unseen style`: 1,653 drawings of a style that is",
        "not in the training data, each among all 1,914 labels. `unseen concept`: 835 drawings of concepts that are not in it, among their",
        "191 labels. `9 groups`: the drawings of the unseen style.",
        "", *_table(full), "",
        f"Learning efficiency, plain samples / reinforced samples for the same {MAIN}: **{efficiency(*series.values())}**.", "",
        f"![{MAIN} over samples]({PLOT.name})", "", "## Budgets", "", *_table(budgets), "",
        "## The parts of the recipe", "", *_table([(r.name, [Run(r, RUNG, seeds[0])]) for r in LADDER]), "",
        "Against the last line, the last of them against the third:", "",
        *_table([(r.name, [Run(r, RUNG, seeds[0])]) for r in VARIATIONS]), "",
        "## Commands", "", "```", *dict.fromkeys(shlex.join(run.command) for run in runs(seeds)), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(progress: Callable[[str], None], seeds: Sequence[int] = (0, 1, 2), perform: Callable[[Run, Any], None] = perform) -> None:
    """Make all runs; the page is written anew after each."""
    for run in runs(seeds):
        perform(run, progress)
        plain, reinforced = curves(LADDER[0], seeds), curves(LADDER[-1], seeds)
        write_bytes(PAGE, page(seeds).encode())
        write_bytes(PLOT, plots.curves({"plain": plain, "reinforced": reinforced}, "samples seen", f"{MAIN}, %").encode())


if __name__ == "__main__":
    main(print)
