from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from mobileclip.benchmark import kit
from mobileclip.benchmark.protocol import BenchAnswer, BenchPlan
from mobileclip.cli import main
from mobileclip.errors import BundleError
from mobileclip.export.bundle import MANIFEST, read_manifest
from mobileclip.tokenizer import Tokenizer

CONFORMANCE = Path(__file__).parents[2] / "conformance"
HOW = "make it again: mobileclip conformance"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    assert CliRunner().invoke(main.build(), ["conformance", "-o", str(folder)]).exit_code == 0
    return folder


def test_the_committed_kit_is_current(made: Path) -> None:
    assert {p.name for p in CONFORMANCE.iterdir()} == {p.name for p in made.iterdir()} | {"README.md"}
    for file in made.iterdir():
        if file.name != kit.EMBEDDINGS:
            assert (CONFORMANCE / file.name).read_bytes() == file.read_bytes(), f"{file.name} is out of date; {HOW}"


def test_embeddings_are_those_of_the_model_that_ships(made: Path) -> None:
    new, old = load_file(made / kit.EMBEDDINGS), load_file(CONFORMANCE / kit.EMBEDDINGS)
    assert new.keys() == old.keys()
    for name, value in new.items():
        assert np.abs(value.astype(np.float64) - old[name]).max() < 1e-5, HOW


def test_captions_are_many_and_of_all_kinds() -> None:
    lines = [json.loads(line) for line in (CONFORMANCE / kit.CAPTIONS).read_text().splitlines()]
    texts = [line["text"] for line in lines]
    assert len(set(texts)) == len(lines) >= 2000
    lengths = [len(line["ids"]) for line in lines]
    assert min(lengths) == 2
    assert lengths.count(77) >= 10
    for kind in ("", "\x00", "&eacute;", "👩‍🚀", "猫", "\r\n", "٣"):
        assert any(kind in text for text in texts), kind
    for line, row in zip(lines, Tokenizer.clip()(texts).tolist(), strict=True):
        assert row == line["ids"] + [0] * (77 - len(line["ids"]))


CASES = json.loads((CONFORMANCE / kit.MANIFESTS).read_text())


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_manifests(case: dict, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(case["manifest"]))
    if case["valid"]:
        assert read_manifest(tmp_path).model.name == "mobileclip_nano"
    else:
        with pytest.raises(BundleError) as error:
            read_manifest(tmp_path)
        assert "\n" not in str(error.value)


ANSWERS = json.loads((CONFORMANCE / kit.ANSWERS).read_text())


@pytest.mark.parametrize("case", ANSWERS["answers"], ids=[case["name"] for case in ANSWERS["answers"]])
def test_answers(case: dict) -> None:
    if case["valid"]:
        BenchAnswer.model_validate_json(json.dumps(case["answer"]))
    else:
        with pytest.raises(ValueError, match=r"."):
            BenchAnswer.model_validate_json(json.dumps(case["answer"]))


def test_the_plan() -> None:
    assert len(BenchPlan.model_validate_json(json.dumps(ANSWERS["plan"])).measurements) == 2
