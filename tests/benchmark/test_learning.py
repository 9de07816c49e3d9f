"""The page of `make bench-train`: every run is a valid command, and the numbers on the page are those of the logs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mobileclip.benchmark import learning
from mobileclip.benchmark.learning import (
    BUDGETS,
    FULL,
    LADDER,
    METRICS,
    RUNG,
    TEXTS_PER_SAMPLE,
    Claim,
    Recipe,
    Run,
    curves,
    efficiency,
    keep,
    main,
    page,
    runs,
)
from mobileclip.errors import MobileClipError
from mobileclip.training.config import load_config

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the configs, where the runs are made."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finish(run: Run, score: float) -> None:
    """What a finished run leaves, as far as the page looks at it."""
    run.folder.mkdir(parents=True)
    scores = dict.fromkeys(METRICS.values(), score)
    lines = [{"step": 1, "samples_per_s": 100.0, "waiting_share": 0.01}, {"step": 2, **dict.fromkeys(scores, 0.0)}, {"step": 3, **scores}]
    (run.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keep(run)


def test_every_run_is_a_valid_config(here):
    found = {run.folder: run for run in runs(SEEDS)}
    assert len(found) == len({tuple(run.command) for run in found.values()})
    for run in found.values():
        words = run.command
        changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        config = load_config(ROOT / run.recipe.config, changes)
        assert (config.schedule.samples, config.seed) == (run.samples, run.seed)
        assert config.batch_size == load_config(ROOT / LADDER[-1].config).batch_size
        assert config.text_pretraining is None or config.text_pretraining.texts == TEXTS_PER_SAMPLE * run.samples


def test_plain_and_reinforced_differ_in_the_recipe_alone():
    plain, reinforced = (load_config(ROOT / r.config).deciding() for r in (LADDER[0], LADDER[-1]))
    assert {name for name in plain if plain[name] != reinforced[name]} == {"data", "loss", "text_pretraining"}


def test_page_tells_what_the_logs_say(here):
    for seed, score in zip(SEEDS, (0.40, 0.42, 0.44), strict=True):
        finish(Run(LADDER[0], FULL, seed), score)
    finish(Run(LADDER[-1], FULL, 0), 0.5)
    finish(Run(LADDER[-1], BUDGETS[0], 0), 0.3)
    finish(Run(LADDER[-1], BUDGETS[1], 0), 0.43)
    text = page(SEEDS)
    assert f"| plain | {FULL:,} | 3 | {' | '.join(['42.0 ± 2.0'] * 5)} |" in text
    assert f"| reinforced | {FULL:,} | 1 | {' | '.join(['50.0'] * 5)} |" in text
    assert f"| plain | {BUDGETS[0]:,} | 0 | - | - | - | - | - |" in text
    assert "| unseen concept R@1 | at least 5.4, under 10.8 (50,000 samples instead of 270,000 for 42.0 %) |" in text
    assert "\n5.7, two standard deviations" in text, "of a difference: 2 sqrt(2) x 2.0"


@pytest.mark.parametrize(
    ("score", "told"), [(0.36, "| +6.0 | confirmed |"), (0.24, "| -6.0 | refuted |"), (0.34, "| +4.0 | not decided |")]
)
def test_claims(here, score, told):
    claim, equal = Claim("it helps", LADDER[0], LADDER[1]), Claim("it is as good", LADDER[0], LADDER[1], better=False)
    finish(Run(LADDER[0], RUNG, 0), 0.3)
    assert claim.verdict(0, 5.0) == "| it helps | - | not measured yet |"
    finish(Run(LADDER[1], RUNG, 0), score)
    assert claim.verdict(0, 5.0).endswith(told)
    assert equal.verdict(0, 5.0).endswith(told.replace("not decided", "not refuted"))
    assert claim.verdict(0, None).endswith("| - | not measured yet |")


@pytest.mark.parametrize(
    ("plain", "reinforced", "told"),
    [
        ([], [(FULL, 50.0)], "not measured"),
        ([(BUDGETS[0], 10.0)], [(FULL, 50.0)], "not measured"),
        ([(FULL, 40.0)], [(FULL, 39.0)], "below 1"),
        ([(FULL, 40.0)], [(BUDGETS[0], 41.0)], "at least 10.8 (25,000 samples"),
    ],
)
def test_efficiency_is_never_better_than_measured(plain, reinforced, told):
    assert told in efficiency(plain, reinforced)


def test_a_run_is_made_again_when_its_config_has_changed(here):
    run = Run(LADDER[0], FULL, 0)
    finish(run, 0.4)
    before = run.folder
    assert run.scores() == dict.fromkeys(METRICS, 40.0)
    path = here / LADDER[0].config
    path.write_text(path.read_text().replace("log_every: 20", "log_every: 10"))
    assert run.scores(), "logs do not decide the weights"
    assert run.folder == before
    path.write_text(path.read_text().replace("lr: 3e-3", "lr: 2e-3"))
    assert run.scores() is None
    assert run.folder != before, "there the trainer would refuse the other config"
    finish(run, 0.5)
    assert run.scores() == dict.fromkeys(METRICS, 50.0)


def test_a_run_without_scores_is_not_kept(here):
    run = Run(LADDER[0], FULL, 0)
    run.folder.mkdir(parents=True)
    (run.folder / "log.jsonl").write_text('{"step": 1, "samples_per_s": 100.0, "waiting_share": 0.01}\n')
    with pytest.raises(MobileClipError, match="without scores"):
        keep(run)
    assert run.scores() is None


def test_runs_are_made_in_order_and_the_page_follows(here, monkeypatch):
    monkeypatch.setattr(learning, "LADDER", (Recipe("plain", learning.PLAIN), Recipe("reinforced", learning.REINFORCED)))
    monkeypatch.setattr(learning, "VARIATIONS", ())
    made: list[Run] = []

    def perform(run: Run, progress: object) -> None:
        made.append(run)
        if run.scores() is None:
            finish(run, 0.1 * len(made))

    main(lambda step: None, (0,), perform)
    assert [(r.recipe.name, r.samples) for r in made[:2]] == [("reinforced", BUDGETS[0]), ("plain", BUDGETS[0])]
    assert [r.samples for r in made] == sorted(r.samples for r in made)
    assert [samples for samples, _ in curves(learning.LADDER[0], (0,))] == list(BUDGETS)
    assert (here / "docs/learning.md").read_text() == page((0,))
    assert (here / "docs/learning.svg").read_text().startswith("<svg xmlns=")
