"""The Android app's platform-neutral modules, compiled and run on this machine over the whole conformance kit."""

from __future__ import annotations

import html.entities
import re
import shutil
from pathlib import Path

import pytest

from mobileclip.benchmark.bench import bench
from mobileclip.benchmark.devices.app import AppDevice
from mobileclip.export.export import export_bundle
from mobileclip.sources import load_model
from mobileclip.tokenizer import Tokenizer
from tests.apps.kotlin import ANDROID, RESOURCES, ROOT, Kotlin

pytestmark = pytest.mark.slow
CONFORMANCE = ROOT / "conformance"
TESTS = re.compile(r"class (\w+Test) \{")


@pytest.fixture(scope="module")
def onnx(kotlin) -> list[Path]:
    return kotlin.onnx()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The model that ships, as the kit's embeddings were made with it."""
    from mobileclip.export.bundle import Options

    return export_bundle(load_model("mobileclip_nano"), Options(targets=("onnx",)), tmp_path_factory.mktemp("bundles") / "nano", print).path


def classes(module: str) -> list[str]:
    return [
        f"org.mobileclip.{file.parent.name}.{found}"
        for file in sorted((ANDROID / module / "src/test").rglob("*Test.kt"))
        for found in TESTS.findall(file.read_text())
    ]


def test_the_core_passes_the_conformance_kit(kotlin, tmp_path):
    Tokenizer.clip().save(tmp_path / "tokenizer.json")
    said = kotlin.test(classes("core"), [kotlin.core(), RESOURCES], conformance=CONFORMANCE, tokenizer=tmp_path / "tokenizer.json")
    assert int(re.search(r"OK \((\d+) tests\)", said)[1]) >= 45


def test_a_bundle_gives_python_s_embeddings_in_onnx_runtime(kotlin, onnx, bundle):
    said = kotlin.test(classes("runtime-onnx"), onnx, conformance=CONFORMANCE, bundle=bundle)
    assert int(re.search(r"OK \((\d+) tests\)", said)[1]) >= 7


class Jvm(AppDevice):
    """The app's benchmark on this computer, with the app's own folder as a folder here."""

    kind, key, name, serial = "jvm", "jvm", "JVM", "jvm"
    targets = ("onnx",)

    def __init__(self, home: Path, kotlin: Kotlin, classpath: list[Path]) -> None:
        self.home, self._kotlin, self._classpath = home, kotlin, classpath

    def lacks(self, artifact):
        return None

    def providers(self, artifact):
        return ("cpu",)

    def install(self, package):
        raise NotImplementedError

    def check_app(self):
        pass

    def put(self, folder):
        shutil.copytree(folder, self.home / folder.name)

    def get(self, name):
        file = self.home / name
        return file.read_bytes() if file.is_file() else None

    def remove(self, name):
        shutil.rmtree(self.home / name)

    def command(self, plan):
        return self._kotlin.command("org.mobileclip.onnx.BenchMainKt", self._classpath, str((self.home / plan).parent))

    def why_it_ended(self, code, lines):
        return f"exit code {code}: {lines[-1:]}"


@pytest.mark.parametrize("mode", ["burst", "sustained"])
def test_the_app_s_benchmark_answers_as_the_protocol_wants(kotlin, onnx, bundle, tmp_path, mode):
    (tmp_path / "mobileclip-of-a-host-that-was-killed").mkdir()
    found = bench([bundle], device=Jvm(tmp_path, kotlin, onnx), mode=mode, seconds=1.2, samples=30)
    assert found.failures == ()
    assert [r.label for r in found.results] == ["nano onnx image", "nano onnx text"]
    for r in found.results:
        assert r.parity is not None
        assert r.parity.passed
        assert r.samples.warm_load_ms is not None
        assert len(r.samples.warmup_ms) == 10
        assert len(r.samples.start_ms) == r.summary.n >= 30
        assert [s.moment for s in r.samples.states] == ["before", "after"]
        assert (len(r.samples.block_samples) == 1) == (mode == "sustained")
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_a_plan_that_leaves_its_folder_is_refused(kotlin, onnx, bundle, tmp_path, monkeypatch):
    plan = AppDevice._plan

    def outside(self, jobs, seed):
        made = plan(self, jobs, seed)
        return made.model_copy(update={"measurements": tuple(m.model_copy(update={"inputs": "../secret"}) for m in made.measurements)})

    monkeypatch.setattr(AppDevice, "_plan", outside)
    found = bench([bundle], device=Jvm(tmp_path, kotlin, onnx), towers=["text"], seconds=0.1, samples=5)
    assert "../secret leads out of the plan's folder" in found.failures[0].message


def test_the_table_of_entities_is_html_s():
    lines = (RESOURCES / "org/mobileclip/core/entities.tsv").read_text().splitlines()
    found = {name: "".join(chr(int(code, 16)) for code in codes.split()) for name, codes in (line.split("\t") for line in lines)}
    assert found == html.entities.html5
