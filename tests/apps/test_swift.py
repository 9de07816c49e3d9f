"""The iPhone app's package: every file parses; where a Swift toolchain is, it passes the conformance kit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_swift

from mobileclip.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
KIT = ROOT / "ios_app/MobileCLIPKit"
ENTITIES = KIT / "Sources/MobileCLIPCore/Resources/entities.tsv"
FILES = sorted((ROOT / "ios_app").rglob("*.swift"))


def errors(source: bytes) -> list[str]:
    """Where the grammar does not fit."""
    found, open_nodes = [], [tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language())).parse(source).root_node]
    while open_nodes:
        node = open_nodes.pop()
        if node.is_error or node.is_missing:
            found.append(f"line {node.start_point[0] + 1}: {node.text[:60]!r}")
        open_nodes += node.children
    return found


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_swift_files_parse(file):
    assert errors(file.read_bytes()) == []


def test_the_parser_sees_mistakes():
    assert errors(b"func f( { return }")


def test_nothing_can_end_the_app():
    for file in FILES:
        if "Tests" not in file.parts:
            text = file.read_text()
            for word in ("fatalError(", "precondition(", "try!", "as!"):
                assert word not in text, f"{file.name}: {word}"


def test_both_apps_have_the_same_table_of_entities():
    assert ENTITIES.read_bytes() == (ROOT / "android_app/core/src/main/resources/org/mobileclip/core/entities.tsv").read_bytes()


def test_the_core_passes_the_conformance_kit(tmp_path):
    if not shutil.which("swift"):
        pytest.skip("no Swift toolchain is installed")
    Tokenizer.clip().save(tmp_path / "tokenizer.json")
    environment = os.environ | {"MOBILECLIP_TOKENIZER": str(tmp_path / "tokenizer.json")}
    command = ["swift", "test", "--package-path", str(KIT), "--scratch-path", str(tmp_path / "build")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
