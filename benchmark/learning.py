"""What reinforced training brings: `mobileclip train` over budgets, seeds and parts of the recipe, summed up in a page.

Run `make bench-train`. What a finished run has scored is kept in `docs/learning.jsonl`, beside the page, and the run is not made again
while its config is the same; one that was stopped goes on. So it can be spread over days and machines.
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev, variance
from typing import Any

from mobileclip.benchmark import plots
from mobileclip.configs import Strict
from mobileclip.errors import MobileClipError
from mobileclip.files import canonical_json, json_lines, write_bytes
from mobileclip.training.config import load_config
from mobileclip.training.log import read_log

METRICS = {
    "unseen style R@1": "unseen style/text_retrieval_recall@1",
    "unseen style R@5": "unseen style/text_retrieval_recall@5",
    "unseen concept R@1": "unseen concept/text_retrieval_recall@1",
    "unseen concept R@5": "unseen concept/text_retrieval_recall@5",
    "9 groups": "group/acc1",
}
MAIN = "unseen style R@1"
PLAIN, REINFORCED = "configs/nano-plain.yaml", "configs/nano.yaml"
FULL = 270_000
BUDGETS = (25_000, 50_000, 100_000, FULL)
RUNG = 50_000
TEXTS_PER_SAMPLE = 1.5
"""Of the text tower's first lesson, as in `REINFORCED`."""
RUNS = Path("runs/learning")
PAGE, PLOT, RECORDS = (Path("docs/learning").with_suffix(suffix) for suffix in (".md", ".svg", ".jsonl"))

_TEACHER_ALONE = "loss.teachers=[{name: lite0-minilm-l6, width: 256, scale: 30}]"
_ONE_TEACHER = (
    f"{_TEACHER_ALONE[:-1]}, {{name: lite2-minilm-l3, width: 256, weight: 0}}, {{name: conse-lite2-minilm-l3, width: 384, weight: 0}}]"
)
_NO_TEACHER = ("loss.distillation=0", "data.augmentation={scale: [0.6, 1.0]}")
_NO_WORDS, _NO_LESSON = "data.synthetic_keys=^syn_text$", "text_pretraining=null"


@dataclass(frozen=True)
class Recipe:
    """A way of training: a config with changes."""

    name: str
    config: str
    changes: tuple[str, ...] = ()


LADDER = (
    Recipe("plain", PLAIN),
    Recipe("+ synthetic captions", REINFORCED, (*_NO_TEACHER, _NO_WORDS, _NO_LESSON)),
    Recipe("+ distillation from one teacher", REINFORCED, (_ONE_TEACHER, _NO_WORDS, _NO_LESSON)),
    Recipe("+ three teachers", REINFORCED, (_NO_WORDS, _NO_LESSON)),
    Recipe("+ words", REINFORCED, (_NO_LESSON,)),
    Recipe("+ text tower first", REINFORCED),
)
"""Each rung adds one part of the recipe, in the order of MobileCLIP's ablation (arXiv 2311.17049, table 2) and then two parts of our own.
Strong augmentation, its fourth rung, is among `VARIATIONS`: at this budget it would hide what comes after it.
"""
VARIATIONS = (
    Recipe("captions: either at random", REINFORCED, ("data.captions=random",)),
    Recipe("strong augmentation", REINFORCED, ("data.shards=[data/emoji-dr-strong]",)),
    Recipe("embeddings in bf16", REINFORCED, ("data.shards=[data/emoji-dr-bf16]",)),
    Recipe("one teacher with 30 views instead of 5", REINFORCED, (_TEACHER_ALONE, "data.shards=[data/emoji-dr-30]", _NO_LESSON)),
)


@dataclass(frozen=True)
class Claim:
    """What is said of a part of the recipe: that `new` is better than `old`, or as good."""

    words: str
    old: Recipe
    new: Recipe
    better: bool = True

    def verdict(self, seed: int, decisive: float | None) -> str:
        """A row of the page: difference in `MAIN` of runs of `RUNG` samples, in points, and what it says.

        Args:
            seed: Of both runs.
            decisive: Points below which a difference decides nothing; None where it is not known yet.
        """
        scores = [Run(recipe, RUNG, seed).scores() for recipe in (self.old, self.new)]
        if decisive is None or scores[0] is None or scores[1] is None:
            return f"| {self.words} | - | not measured yet |"
        difference = scores[1][MAIN] - scores[0][MAIN]
        if abs(difference) <= decisive:
            told = "not decided" if self.better else "not refuted"
        else:
            told = "confirmed" if difference > 0 else "refuted"
        return f"| {self.words} | {difference:+.1f} | {told} |"


CLAIMS = (
    Claim("synthetic captions help", LADDER[0], LADDER[1]),
    Claim("distillation helps", LADDER[1], LADDER[2]),
    Claim("strong augmentation helps", LADDER[-1], VARIATIONS[1]),
    Claim("three teachers are better than one", LADDER[2], LADDER[3]),
    Claim("words help", LADDER[3], LADDER[4]),
    Claim("teaching the text tower first helps", LADDER[4], LADDER[5]),
    Claim("real and synthetic captions together are better than either at random", VARIATIONS[0], LADDER[-1]),
    Claim("5 views are as good as 30", VARIATIONS[3], LADDER[2], better=False),
    Claim("embeddings in bf16 are as good as in fp32", LADDER[-1], VARIATIONS[2], better=False),
)


@dataclass(frozen=True)
class Run:
    """One run of `mobileclip train`."""

    recipe: Recipe
    samples: int
    seed: int

    @property
    def folder(self) -> Path:
        """Where it is kept; each config has its own, as the trainer refuses to go on with another one."""
        name = "".join(c if c.isalnum() else "-" for c in self.recipe.name).strip("-")
        return RUNS / f"{name}-{self.samples}-{self.seed}-{self.config_sha256[:8]}"

    @property
    def command(self) -> list[str]:
        """The words of its command."""
        launch = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "mobileclip"]
        return [*launch, "train", self.recipe.config, "-o", str(self.folder), *(w for c in self.changes for w in ("--set", c))]

    def _budget(self) -> list[str]:
        """The changes that make the whole run shorter."""
        if self.samples == FULL:
            return []
        changes = [f"schedule.samples={self.samples}", f"schedule.warmup_steps={self.samples // 2500}"]
        teaches = self.recipe.config == REINFORCED and _NO_LESSON not in self.recipe.changes
        return changes + ([f"text_pretraining.texts={TEXTS_PER_SAMPLE * self.samples:.0f}"] if teaches else [])

    def scores(self) -> dict[str, float] | None:
        """Its last scores in %; None if it is not finished."""
        found = records().get(self.config_sha256)
        return found.scores if found else None

    @property
    def changes(self) -> tuple[str, ...]:
        """What differs from the recipe's file."""
        return (*self.recipe.changes, *self._budget(), f"seed={self.seed}")

    @property
    def config_sha256(self) -> str:
        """Of all that decides the weights."""
        return hashlib.sha256(canonical_json(load_config(Path(self.recipe.config), self.changes).deciding())).hexdigest()


class Record(Strict):
    """A line of `RECORDS`: what a finished run has told."""

    name: str
    config_sha256: str
    scores: dict[str, float]
    """The last ones, in %, of each of `METRICS`."""
    samples_per_s: float | None
    """Median over the run, of both processes; None where the log is lost."""
    waiting_share: float | None
    """Median of the shares of the time spent waiting for data."""


def records() -> dict[str, Record]:
    """The finished runs, by `Run.config_sha256`."""
    found = [Record.model_validate(line) for line, *_ in json_lines(RECORDS)] if RECORDS.exists() else []
    return {record.config_sha256: record for record in found}


def keep(run: Run) -> None:
    """Keep what a finished run has told.

    Raises:
        MobileClipError: Its log has no scores.
    """
    lines = read_log(run.folder)
    scored = [line for line in lines if METRICS[MAIN] in line]
    if not scored:
        raise MobileClipError(f"{run.folder}: has ended without scores; remove it and start again")
    steps = [line for line in lines if "samples_per_s" in line]
    found = Record(
        name=run.folder.name,
        config_sha256=run.config_sha256,
        scores={name: round(100 * scored[-1][key], 3) for name, key in METRICS.items()},
        samples_per_s=round(median(line["samples_per_s"] for line in steps), 1),
        waiting_share=round(median(line["waiting_share"] for line in steps), 4),
    )
    before = RECORDS.read_bytes() if RECORDS.exists() else b""
    write_bytes(RECORDS, before + found.model_dump_json().encode() + b"\n")


def runs(seeds: Sequence[int]) -> Iterator[Run]:
    """All runs, the shorter ones first: the page says something early."""
    ends = (LADDER[-1], LADDER[0])
    budgets = [Run(recipe, samples, seeds[0]) for samples in BUDGETS for recipe in ends]
    rungs = [Run(recipe, RUNG, seeds[0]) for recipe in (*LADDER, *VARIATIONS)]
    repeated = [Run(recipe, FULL, seed) for seed in seeds[1:] for recipe in ends]
    yield from sorted(dict.fromkeys((*budgets, *rungs, *repeated)), key=lambda run: run.samples)


def perform(run: Run, progress: Callable[[str], None]) -> None:
    """Make a run, or go on with it, and keep its scores.

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
    keep(run)


def _cell(values: Sequence[float]) -> str:
    return "-" if not values else f"{values[0]:.1f}" if len(values) == 1 else f"{mean(values):.1f} ± {stdev(values):.1f}"


def _table(rows: Sequence[tuple[str, Sequence[Run]]]) -> list[str]:
    lines = [f"| | samples | runs | {' | '.join(METRICS)} |", f"|---|---|---|{'---|' * len(METRICS)}"]
    for name, group in rows:
        scores = [s for run in group if (s := run.scores()) is not None]
        cells = [_cell([s[metric] for s in scores]) for metric in METRICS]
        lines.append(f"| {name} | {group[0].samples:,} | {len(scores)} | {' | '.join(cells)} |")
    return lines


def curves(recipe: Recipe, seeds: Sequence[int], metric: str = MAIN) -> list[tuple[int, float]]:
    """(samples, score in %) of finished runs of every budget, the mean over the seeds."""
    points = []
    for samples in BUDGETS:
        scores = [s[metric] for seed in seeds if (s := Run(recipe, samples, seed).scores())]
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
    between = f", under {math.ceil(10 * FULL / before[-1]) / 10:g}" if before else ""
    return f"at least {math.floor(10 * FULL / enough[0]) / 10:g}{between} ({enough[0]:,} samples instead of {FULL:,} for {wanted:.1f} %)"


def decisive(groups: Sequence[Sequence[Run]]) -> float | None:
    """From how many points on a difference in `MAIN` of two single runs says something: two standard deviations of such a difference, by
    the spread over the seeds of groups of runs; None where there is no spread yet.
    """
    scores = [[s[MAIN] for run in group if (s := run.scores())] for group in groups]
    spreads = [variance(values) for values in scores if len(values) > 1]
    return 2 * math.sqrt(2 * mean(spreads)) if spreads else None


def page(seeds: Sequence[int]) -> str:
    """The page, from what is finished."""
    plain, reinforced = LADDER[0], LADDER[-1]
    ratios = [(m, efficiency(curves(plain, seeds, m), curves(reinforced, seeds, m))) for m in METRICS]
    full = [(name, [Run(r, FULL, seed) for seed in seeds]) for name, r in (("plain", plain), ("reinforced", reinforced))]
    least = decisive([group for _, group in full])
    lost = [run.folder.name for run in runs(seeds) if (kept := records().get(run.config_sha256)) and kept.samples_per_s is None]
    budgets = [(name, [Run(r, b, seeds[0])]) for b in BUDGETS for name, r in (("plain", plain), ("reinforced", reinforced))]
    lines = [
        "# Learning: plain and reinforced training of mobileclip_nano", "",
        "Made by `make bench-train`; scores in %, mean ± standard deviation over seeds. `unseen style`: 1,653 drawings of a style that is",
        "not in the training data, each among all 1,914 labels. `unseen concept`: 835 drawings of concepts that are not in it, among their",
        "191 labels. `9 groups`: the drawings of the unseen style. Reinforced training first shows the text tower",
        f"{TEXTS_PER_SAMPLE} texts a sample without pictures; they are not counted as samples. `mobileclip train CONFIG --dry-run`",
        "tells the operations of both.",
        "", *_table(full), "",
        "Learning efficiency, how many times fewer samples reinforced training needs for the score that plain training ends with. Of the",
        f"smaller budgets there is one run each, of {FULL:,} samples the mean of all.", "",
        "| score | plain samples / reinforced samples |", "|---|---|", *(f"| {m} | {ratio} |" for m, ratio in ratios), "",
        f"![{MAIN} over samples]({PLOT.name})", "", "## Budgets", "", *_table(budgets), "",
        "## The parts of the recipe", "", *_table([(r.name, [Run(r, RUNG, seeds[0])]) for r in LADDER]), "",
        "Against the last line, the last of them against the third:", "",
        *_table([(r.name, [Run(r, RUNG, seeds[0])]) for r in VARIATIONS]), "",
        "## What is said of the parts, and what these runs show", "",
        f"Difference in {MAIN}, in points, between two single runs of {RUNG:,} samples. One below",
        f"{'-' if least is None else f'{least:.1f}'}, two standard deviations of such a difference by the seeds of the full runs,",
        "decides nothing.", "",
        "| | difference | |", "|---|---|---|", *(claim.verdict(seeds[0], least) for claim in CLAIMS), "",
        "## Commands", "", *([f"Logs that are lost, scores kept to one decimal: {', '.join(lost)}.", ""] if lost else []),
        "```", *(shlex.join(run.command) for run in runs(seeds)), "```", "",
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
