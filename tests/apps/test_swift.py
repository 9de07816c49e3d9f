"""The iPhone app: every file parses; where a Swift 6 toolchain is, the package passes its tests, the conformance kit among them,
and the rest is checked against declarations of Apple's API (`apple/README.md`)."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_swift

from mobileclip.benchmark.protocol import BenchAnswer
from mobileclip.export.bundle import Bundle
from mobileclip.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
KIT = ROOT / "ios_app/MobileCLIPKit"
APP = ROOT / "ios_app/MobileCLIP"
APPLE = Path(__file__).parent / "apple"
ENTITIES = KIT / "Sources/MobileCLIPCore/Resources/entities.tsv"
FILES = sorted((ROOT / "ios_app").rglob("*.swift"))
MAX_LINES = 400

FRAMEWORKS = (
    "FoundationApple", "Darwin", "CoreGraphics", "ImageIO", "CoreVideo", "CoreMedia", "CoreML", "UIKit", "AVFoundation", "Photos",
    "PhotosUI", "UniformTypeIdentifiers", "SwiftUI", "Charts",
)  # fmt: skip
"""Those that others need first."""
TARGETS = ("MobileCLIPCore", "MobileCLIPAppCore", "MobileCLIPCoreML")
RESOURCES = "import Foundation\nextension Bundle { static var module: Bundle { Bundle.main } }\n"
"""What the package manager writes for a target with resources."""
WRONG = {
    "name": "import SwiftUI\nstruct X: View { var body: some View { Text(\"x\").paddding() } }\n",
    "type": "import MobileCLIPCoreML\nimport Foundation\nlet x = try CompiledModels(folder: \"x\")\n",
    "isolation": "import UIKit\nfunc f() -> String { UIDevice.current.name }\n",
    "race": "import CoreML\nfunc f(_ m: MLModel) async { Task { m.modelDescription }; await g(m) }\n@MainActor func g(_ m: MLModel) {}\n",
    "case": "import MobileCLIPCore\nfunc f(_ t: Tower) -> Int { switch t { case .image: 1 } }\n",
}  # fmt: skip


def nodes(source: bytes) -> Iterator[tree_sitter.Node]:
    open_nodes = [tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language())).parse(source).root_node]
    while open_nodes:
        node = open_nodes.pop()
        yield node
        open_nodes += node.children


def place(node: tree_sitter.Node) -> str:
    return f"line {node.start_point[0] + 1}: {node.text[:60]!r}"


def errors(source: bytes) -> list[str]:
    """Where the grammar does not fit."""
    return [place(node) for node in nodes(source) if node.is_error or node.is_missing]


def unwraps(source: bytes) -> list[str]:
    """Where something is unwrapped by force."""
    return [place(node) for node in nodes(source) if node.type == "postfix_expression" and node.children[-1].type == "bang"]


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_swift_files_parse(file):
    assert errors(file.read_bytes()) == []
    assert len(file.read_text().splitlines()) <= MAX_LINES


def test_the_parser_sees_mistakes():
    assert errors(b"func f( { return }")
    assert unwraps(b"let a = b!.c[0]!")
    assert not unwraps(b"let a = !b; let c = d != e; var f: String!")


def test_nothing_can_end_the_app():
    for file in FILES:
        if "Tests" not in file.parts:
            text = file.read_text()
            assert unwraps(file.read_bytes()) == [], file.name
            for word in ("fatalError(", "precondition(", "try!", "as!"):
                assert word not in text, f"{file.name}: {word}"


def test_both_apps_have_the_same_table_of_entities():
    assert ENTITIES.read_bytes() == (ROOT / "android_app/core/src/main/resources/org/mobileclip/core/entities.tsv").read_bytes()


def swift(*words: object, timeout_s: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["swift", *map(str, words)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=timeout_s)


@functools.cache
def plugins() -> str:
    """Where the toolchain keeps its macros; skips without a toolchain."""
    if not shutil.which("swift"):
        pytest.skip("no Swift toolchain is installed")
    told = json.loads(swift("-frontend", "-print-target-info").stdout)
    if not told["compilerVersion"].startswith("Swift version 6"):
        pytest.skip(f"Swift 6 is needed, not {told['compilerVersion']}")
    return str(Path(told["paths"]["runtimeResourcePath"]) / "host/plugins")


@pytest.mark.slow
def test_the_compilers_own_parser_accepts_every_file():
    plugins()
    done = swift("-frontend", "-parse", *FILES)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_package_passes_its_tests(tmp_path, bundle_of):
    """Core and app logic are compiled and run, on a bundle of the toolkit too; the toolkit's models read the answers of the benchmark."""
    plugins()
    Tokenizer.clip().save(tmp_path / "tokenizer.json")
    answers, given = tmp_path / "answers", tmp_path / "given"
    answers.mkdir()
    given.mkdir()
    exported = bundle_of("untrained:mobileclip_nano", ("coreml",))
    shutil.make_archive(str(given / "bundle"), "zip", exported.parent, exported.name)
    captions = ["a photo of a cat", "", "Ein Hund läuft &amp; läuft!", "word " * 100]
    rows = Bundle.open(exported).tokenizer()(captions).tolist()
    (given / "expected.json").write_text(json.dumps({"captions": captions, "ids": rows}))
    done = swift(
        "test", "--package-path", KIT, "--scratch-path", tmp_path / "build", timeout_s=1700,
        MOBILECLIP_TOKENIZER=str(tmp_path / "tokenizer.json"), MOBILECLIP_ANSWERS=str(answers), MOBILECLIP_BUNDLE=str(given),
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "warning:" not in done.stdout + done.stderr
    assert "skipped" not in done.stdout
    found = [BenchAnswer.model_validate_json(file.read_bytes()) for file in answers.iterdir()]
    assert len(found) > 20
    assert any(answer.samples and not answer.error for answer in found)
    assert any(answer.samples and answer.error for answer in found)


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Folder with modules of the declarations and of the package, made from its sources."""
    folder = tmp_path_factory.mktemp("modules")
    resources = folder / "resources.swift"
    resources.write_text(RESOURCES)
    sources = {name: sorted(APPLE.glob(f"{name}.swift")) for name in FRAMEWORKS}
    sources["SwiftUI"].append(APPLE / "SwiftUIViews.swift")
    sources |= {name: sorted((KIT / f"Sources/{name}").glob("*.swift")) for name in TARGETS}
    sources["MobileCLIPCore"].append(resources)
    for name, files in sources.items():
        done = compiled(folder, name, files, "-emit-module", "-o", folder / f"{name}.swiftmodule")
        assert done.returncode == 0, done.stderr[-4000:]
    return folder


def compiled(folder, name, files, *action):
    options = ("-parse-as-library", "-swift-version", "6", "-module-name", name, "-I", folder, "-plugin-path", plugins())
    return swift("-frontend", *action, *options, *files)


def checked(folder, name, files):
    """Type-check, and look for data races, which the compiler finds after that."""
    return compiled(folder, name, files, "-emit-sil", "-o", os.devnull)


@pytest.mark.slow
def test_the_coreml_target_fits_apples_declarations(modules):
    done = checked(modules, "MobileCLIPCoreML", sorted((KIT / "Sources/MobileCLIPCoreML").glob("*.swift")))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_the_app_fits_apples_declarations(modules):
    done = checked(modules, "MobileCLIP", sorted(APP.rglob("*.swift")))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("mistake", WRONG)
def test_the_check_sees_mistakes(modules, tmp_path, mistake):
    wrong = tmp_path / "Wrong.swift"
    wrong.write_text(WRONG[mistake])
    done = checked(modules, "MobileCLIP", [*sorted(APP.rglob("*.swift")), wrong])
    assert done.returncode != 0
    assert "Wrong.swift" in done.stderr
