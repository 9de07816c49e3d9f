"""The page of `make bench-train`: every run is a valid command, and the numbers on the page are those of the logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobileclip.benchmark import learning
from mobileclip.benchmark.learning import BUDGETS, FULL, LADDER, METRICS, Recipe, Run, curves, efficiency, main, page, runs
from mobileclip.training.config import load_config

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)


def finish(run: Run, score: float) -> None:
    """What a finished run leaves, as far as the page looks at it."""
    run.folder.mkdir(parents=True)
    (run.folder / "model.safetensors").touch()
    scores = dict.fromkeys(METRICS.values(), score)
    (run.folder / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n" + json.dumps({"step": 2, **scores}) + "\n")


def test_every_run_is_a_valid_config():
    found = {run.folder: run for run in runs(SEEDS)}
    assert len(found) == len({tuple(run.command) for run in found.values()})
    for run in found.values():
        words = run.command
        changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        config = load_config(ROOT / run.recipe.config, changes)
        assert (config.schedule.samples, config.seed) == (run.samples, run.seed)
        assert config.batch_size == load_config(ROOT / LADDER[-1].config).batch_size


def test_plain_and_reinforced_differ_in_the_recipe_alone():
    plain, reinforced = (load_config(ROOT / r.config).deciding() for r in (LADDER[0], LADDER[-1]))
    assert {name for name in plain if plain[name] != reinforced[name]} == {"data", "loss"}


def test_page_tells_what_the_logs_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, score in zip(SEEDS, (0.40, 0.42, 0.44), strict=True):
        finish(Run(LADDER[0], FULL, seed), score)
    finish(Run(LADDER[-1], FULL, 0), 0.5)
    finish(Run(LADDER[-1], BUDGETS[0], 0), 0.3)
    finish(Run(LADDER[-1], BUDGETS[1], 0), 0.43)
    (Run(LADDER[0], BUDGETS[0], 0).folder).mkdir()
    text = page(SEEDS)
    assert f"| plain | {FULL:,} | 3 | {' | '.join(['42.0 ± 2.0'] * 4)} |" in text
    assert f"| reinforced | {FULL:,} | 1 | {' | '.join(['50.0'] * 4)} |" in text
    assert f"| plain | {BUDGETS[0]:,} | 0 | - | - | - | - |" in text
    assert "at least 5, under 11 (50,000 samples instead of 270,000 for 42.0 %)" in text


@pytest.mark.parametrize(
    ("plain", "reinforced", "told"),
    [
        ([], [(FULL, 50.0)], "not measured"),
        ([(BUDGETS[0], 10.0)], [(FULL, 50.0)], "not measured"),
        ([(FULL, 40.0)], [(FULL, 39.0)], "below 1"),
        ([(FULL, 40.0)], [(BUDGETS[0], 41.0)], "at least 11 (25,000 samples"),
    ],
)
def test_efficiency_is_never_better_than_measured(plain, reinforced, told):
    assert told in efficiency(plain, reinforced)


def test_runs_are_made_in_order_and_the_page_follows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(learning, "LADDER", (Recipe("plain", "a.yaml"), Recipe("reinforced", "b.yaml")))
    monkeypatch.setattr(learning, "VARIATIONS", ())
    made: list[Run] = []

    def perform(run: Run, progress: object) -> None:
        made.append(run)
        if run.scores() is None:
            finish(run, 0.1 * len(made))

    main(lambda step: None, (0,), perform)
    assert [(r.recipe.name, r.samples) for r in made[:2]] == [("reinforced", FULL), ("plain", FULL)]
    assert [samples for samples, _ in curves(learning.LADDER[0], (0,))] == list(BUDGETS)
    assert (tmp_path / "docs/learning.md").read_text() == page((0,))
    assert (tmp_path / "docs/learning.svg").read_text().startswith("<svg xmlns=")
