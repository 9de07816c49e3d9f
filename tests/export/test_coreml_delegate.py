"""ExecuTorch programs lowered to the CoreML delegate: checked without a Mac by interpreting the package inside."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mobileclip.errors import BundleError, MissingToolError
from mobileclip.export import coreml_delegate
from mobileclip.export.bundle import Bundle
from mobileclip.export.coreml_delegate import METADATA, extract, stored_files, wholly_lowered

NANO = "untrained:mobileclip_nano"


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def bundle(request, bundle_of) -> Bundle:
    return Bundle.open(bundle_of(NANO, ("executorch",), request.param, executorch_backend="coreml"))


def test_both_towers_go_wholly_to_the_delegate_and_pass(bundle):
    for artifact in bundle.manifest.artifacts:
        assert (artifact.backend, artifact.not_delegated) == ("coreml", {})
    assert len(bundle.manifest.parity) == 2
    for parity in bundle.manifest.parity:
        assert parity.passed
        assert parity.engine.startswith("ML program interpreter")


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["fp32"], indirect=True)
def test_lowering_twice_gives_the_same_bytes(bundle, tmp_path):
    """Identifiers are drawn at random and the date changes; neither may reach the artifact."""
    script = "from mobileclip.cli.main import main; main()"  # another process: protobuf orders maps by a seed of its own
    words = ("export", NANO, "--target", "executorch", "--backend", "coreml", "-o", str(tmp_path / "again"))
    subprocess.run([sys.executable, "-c", script, *words], check=True, capture_output=True)
    again = Bundle.open(tmp_path / "again")
    assert [a.files for a in again.manifest.artifacts] == [a.files for a in bundle.manifest.artifacts]
    assert b"conversion_date\x12\n2000-01-01" in (again.path / "image.pte").read_bytes()


def test_models_differ_in_their_identifier(bundle):
    """A phone keeps compiled models under it."""

    def identifier(tower: str) -> str:
        blob = wholly_lowered(bundle.path / f"{tower}.pte")
        assert blob is not None
        return json.loads(blob[stored_files(blob)[METADATA]])["identifier"]

    assert identifier("image") != identifier("text")
    assert identifier("image").startswith("executorch_")


def test_a_program_for_another_delegate_needs_its_own_runtime(bundle_of, tmp_path):
    other = bundle_of(NANO) / "image.pte"
    assert wholly_lowered(other) is None
    with pytest.raises(MissingToolError, match="not all of it went to the CoreML delegate"):
        extract(other, tmp_path)


def test_something_else_is_no_program(tmp_path):
    (tmp_path / "image.pte").write_bytes(b"\0" * 4 + b"ET12" + bytes(range(256)))
    with pytest.raises(BundleError, match="is not a sound ExecuTorch program"):
        extract(tmp_path / "image.pte", tmp_path)


def stored(*nodes: dict[str, object]) -> bytes:
    return b"content" + json.dumps({"nodes": nodes})[::-1].encode()


def folder(**children: int) -> dict[str, object]:
    return {"name": "f", "kind": 1, "dataRegion": {"offset": 0, "size": 0}, "children": children}


def file(offset: int = 0, size: int = 7) -> dict[str, object]:
    return {"name": "f", "kind": 0, "dataRegion": {"offset": offset, "size": size}, "children": {}}


def test_files_are_found_in_folders():
    assert stored_files(stored(file(2, 3), folder(**{"a.bin": 0}), folder(sub=1))) == {"sub/a.bin": slice(2, 5)}


@pytest.mark.parametrize(
    "nodes",
    [
        [folder(**{"..": 1}), file()],
        [folder(**{"a/b": 1}), file()],
        [folder(**{"/etc": 1}), file()],
        [folder(**{"": 1}), file()],
        [folder(a=1), file(0, 1 << 40)],
        [folder(a=1), file(-1, 2)],
        [folder(a=1), folder(a=1)],
        [folder(a=1, b=1), file()],
        [folder(a=1), {**file(), "dataRegion": {"offset": 0, "size": 7.0}}],
        [folder(**{"a" * 300: 1}), file()],
        [folder(**{f"f{i}": i + 1 for i in range(1200)}), *[file()] * 1200],
        [folder(a=7)],
        [{}],
        [],
    ],
)
def test_hostile_listings_are_refused(nodes, monkeypatch, tmp_path):
    """Names that leave the folder, regions outside the bytes, cycles, absent nodes."""
    monkeypatch.setattr(coreml_delegate, "wholly_lowered", lambda path: stored(*nodes))
    with pytest.raises(BundleError, match="delegate's files are damaged"):
        extract(tmp_path / "image.pte", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_published_image_tower_goes_wholly_to_the_delegate(bundle_of):
    bundle = Bundle.open(bundle_of("untrained:mobileclip2_s0", ("executorch",), towers=("image",), executorch_backend="coreml"))
    artifact = bundle.artifact("executorch", "image")
    assert (artifact.backend, artifact.not_delegated) == ("coreml", {})
    assert [p.passed for p in bundle.manifest.parity] == [True]
