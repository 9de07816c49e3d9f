"""The web page's core under node, over the whole conformance kit. Its embeddings are tested in a browser, see tests/devices/test_web.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mobileclip.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
WEB, TESTS, CONFORMANCE = ROOT / "benchmark/devices/web", ROOT / "tests/apps/javascript", ROOT / "conformance"
ENTITIES = ROOT / "android_app/core/src/main/resources/org/mobileclip/core/entities.tsv"
SUITES = sorted(TESTS.glob("*.test.mjs"))
IMPORTS = re.compile(r"""(?:\bfrom|\bimport)\s*\(?\s*"([^"]+)";?""")


def node() -> str:
    found = shutil.which("node")
    if not found:
        pytest.skip("node is not installed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < 20:
        pytest.skip(f"node {version.strip()} is too old; 20 or later runs these tests")
    return found


def run(suites: list[Path], folder: Path, kit: Path = CONFORMANCE) -> tuple[int, str]:
    Tokenizer.clip().save(folder / "tokenizer.json")
    environment = os.environ | {"MOBILECLIP_TOKENIZER": str(folder / "tokenizer.json"), "MOBILECLIP_CONFORMANCE": str(kit)}
    command = [node(), "--test", "--test-reporter=tap", *map(str, suites)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_the_core_passes_the_conformance_kit(tmp_path):
    code, said = run(SUITES, tmp_path)
    assert code == 0, said[-4000:]
    passed = re.search(r"^# pass (\d+)$", said, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) >= 18
    assert "# skipped 0" in said


def test_a_kit_that_is_wrong_is_noticed(tmp_path):
    kit = shutil.copytree(CONFORMANCE, tmp_path / "kit")
    for name, old, new in (
        ("captions.jsonl", b"49406, 320, ", b"49406, 321, "), ("ranking.json", b'"label": 0', b'"label": 9'),
        ("ranking.json", b'"row": 25', b'"row": 24'), ("manifests.json", b'"valid": false', b'"valid": true'),
    ):  # fmt: skip
        content = (kit / name).read_bytes()
        assert old in content
        (kit / name).write_bytes(content.replace(old, new, 1))
    code, said = run([TESTS / "conformance.test.mjs"], tmp_path, kit)
    assert code == 1
    found = re.findall(r"^not ok \d+ - (.+)$", said, re.MULTILINE)
    assert found == ["captions have their ids", "labels have their ranks", "search finds its rows", "manifests are opened or refused"]


def test_the_table_of_entities_is_that_of_the_apps():
    table = (WEB / "core/entities.mjs").read_text().split("String.raw`", 1)[1].split("`", 1)[0]
    assert table == ENTITIES.read_text()


def test_the_core_needs_nothing_but_itself():
    for file in sorted((WEB / "core").glob("*.mjs")):
        for name in IMPORTS.findall(file.read_text()):
            assert re.fullmatch(r"\./\w+\.mjs", name), f"{file.name} imports {name}"
        code = re.sub(r"//[^\n]*|/\*.*?\*/", "", file.read_text(), flags=re.DOTALL)
        for word in ("document", "window", "fetch", "process", "require"):
            assert not re.search(rf"(?<![\w.]){word}\b[.(]", code), f"{file.name}: {word}"
