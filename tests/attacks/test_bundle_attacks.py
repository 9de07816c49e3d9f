"""Bundles edited by hand, damaged, or forged with hashes that agree: refused with one line; nothing outside is read, nothing crashes."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import forge
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save

from mobileclip.errors import BundleError, GateError, MobileClipError
from mobileclip.export.bundle import GOLDEN, MANIFEST, REFERENCE, TARGETS, TOKENIZER, Bundle
from mobileclip.export.verify.gate import require_passed, verify
from mobileclip.files import canonical_json


@pytest.fixture
def bundle(nano_bundle, tmp_path) -> Path:
    return forge.copy(nano_bundle, tmp_path / "bundle")


@pytest.fixture
def full(nano_bundle_all, tmp_path) -> Path:
    return forge.copy(nano_bundle_all, tmp_path / "bundle")


def one_line(error: MobileClipError, folder: Path) -> str:
    message = str(error)
    assert message.isprintable()
    assert len(message) < 1500
    assert message.startswith(str(folder))
    return message


def refused(folder: Path, match: str, *targets: str) -> None:
    """Opening or verifying the bundle ends with one line and exit code 2."""
    with pytest.raises(BundleError, match=match) as e:
        verify(Bundle.open(folder), targets)
    one_line(e.value, folder)
    assert e.value.exit_code == 2


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    forge.replace(file, bytes(data))


# --- the manifest edited by hand


def leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where the values of a document are; of a list only the first item's."""
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in leaves(v, (*path, k))]
    if isinstance(value, list):
        return leaves(value[0], (*path, 0)) if value else []
    return [path]


def changed(value: object) -> object:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else "x"


def test_every_field_edited_by_hand(bundle):
    original = (bundle / MANIFEST).read_bytes()
    paths = leaves(json.loads(original))
    assert len(paths) > 60
    for path in paths:
        value = json.loads(original)
        *above, last = path
        inner = value
        for key in above:
            inner = inner[key]
        for new in (changed(inner[last]), None, [inner[last]]):
            inner[last] = new
            forge.replace(bundle / MANIFEST, json.dumps(value).encode())
            with pytest.raises(BundleError) as e:
                Bundle.open(bundle)
            one_line(e.value, bundle)
    forge.replace(bundle / MANIFEST, original)
    Bundle.open(bundle)


def test_every_field_removed_and_a_field_added(bundle):
    original = json.loads((bundle / MANIFEST).read_bytes())
    for name in original:
        forge.replace(bundle / MANIFEST, json.dumps({k: v for k, v in original.items() if k != name}).encode())
        refused(bundle, "was edited|schema version")
    forge.edit(bundle, lambda m: m.update(original, extra=1))
    refused(bundle, "was edited")


def test_the_same_value_in_another_type(bundle):
    """Readers in stricter languages would stumble over it."""
    for text in (b'"batch": "1"', b'"batch": 1.0', b'"batch": true'):
        data = (bundle / MANIFEST).read_bytes().replace(b'"batch": 1', text)
        assert text in data
        forge.replace(bundle / MANIFEST, data)
        refused(bundle, "was edited")
        forge.replace(bundle / MANIFEST, data.replace(text, b'"batch": 1'))
    Bundle.open(bundle)


def test_formatting_of_the_manifest_does_not_matter(bundle):
    forge.edit(bundle, lambda m: None)
    Bundle.open(bundle)


def test_a_file_and_its_hash_changed(bundle):
    flip(bundle / "image.onnx", 1000)

    def new_hash(m: forge.Json) -> None:
        entry = m["artifacts"][0]["files"][0]
        assert entry["path"] == "image.onnx"
        entry["sha256"] = forge.file_entry(bundle, bundle / "image.onnx").sha256

    forge.edit(bundle, new_hash)
    refused(bundle, "was edited after the export")


NOT_MANIFESTS = {
    "empty": (b"", "not valid JSON"),
    "not UTF-8": (b'{"schema_version": 1, "toolkit_version": "\xff\xfe"}', "not valid JSON"),
    "truncated": (b'{"schema_version": 1', "not valid JSON"),
    "deeply nested": (b"[" * 200_000 + b"]" * 200_000, "not valid JSON"),
    "deeply nested below a key": (b'{"schema_version": 1, "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "not valid JSON"),
    "infinity": (b'{"schema_version": 1, "embed_dim": 1e999}', "not valid JSON"),
    "NaN": (b'{"schema_version": 1, "embed_dim": NaN}', "not valid JSON"),
    "a huge number": (b'{"schema_version": 1, "embed_dim": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    "half a surrogate": (b'{"schema_version": 1, "toolkit_version": "\\ud800"}', "not valid JSON"),
    "a key twice": (b'{"schema_version": 2, "schema_version": 1}', "not valid JSON"),
    "a list": (b"[]", "not valid JSON"),
    "a number": (b"1", "not valid JSON"),
    "another schema": (b'{"schema_version": 2}', "schema version 2 is unknown; this toolkit reads 1"),
    "no schema": (b"{}", "schema version None is unknown"),
    "a schema of control characters": (b'{"schema_version": "\\u001b[2J\\n"}', "schema version"),
    "100 MB": (b" " * 100_000_000 + b"{}", "is larger than"),
}


@pytest.mark.parametrize("name", NOT_MANIFESTS)
def test_manifests_that_are_none(name, bundle):
    data, match = NOT_MANIFESTS[name]
    forge.replace(bundle / MANIFEST, data)
    refused(bundle, match)


def test_a_key_twice_with_a_true_hash(bundle):
    """Of two equal keys Python takes the last; a phone may take the first."""
    data = (bundle / MANIFEST).read_bytes()
    forge.replace(bundle / MANIFEST, data.replace(b'"batch": 1', b'"batch": 2,\n  "batch": 1'))
    refused(bundle, "not valid JSON")


def test_folders_that_are_no_bundle(bundle, tmp_path):
    (bundle / MANIFEST).unlink()
    refused(bundle, "is not a bundle")
    (bundle / MANIFEST).mkdir()
    refused(bundle, "is not a bundle")
    refused(tmp_path / "nothing", "is not a bundle")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file", "is not a bundle")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", "is not a bundle")


# --- files changed after the export


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", TOKENIZER, REFERENCE, GOLDEN])
def test_a_file_changed_by_one_byte_truncated_longer_or_missing(name, bundle):
    file = bundle / name
    data = file.read_bytes()
    for at in (0, len(data) // 2, len(data) - 1):
        flip(file, at)
        refused(bundle, rf"{name} was changed after the export")
        forge.replace(file, data)
    for other in (data[:-1], data + b"\0", b""):
        forge.replace(file, other)
        refused(bundle, rf"{name} was changed after the export")
    file.unlink()
    refused(bundle, rf"{name} is missing")
    file.mkdir()
    refused(bundle, rf"{name} is missing")


def test_links_out_of_the_bundle(bundle, tmp_path):
    file = bundle / "image.onnx"
    file.rename(tmp_path / "outside.onnx")
    file.symlink_to(tmp_path / "outside.onnx")
    refused(bundle, "image.onnx is a link out of the bundle")
    file.unlink()
    file.symlink_to(file)
    refused(bundle, "image.onnx")
    file.unlink()
    os.mkfifo(file)
    refused(bundle, "image.onnx is missing")


def test_a_bundle_may_be_reached_through_a_link(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    assert Bundle.open(tmp_path / "link").manifest == Bundle.open(bundle).manifest


# --- forged: every hash agrees


def sealed(folder: Path, change) -> None:
    """Edit the manifest and its own hash, whatever the schema says to it."""

    def edit(m: forge.Json) -> None:
        change(m)
        m.pop("manifest_sha256")
        m["manifest_sha256"] = forge.sha256(canonical_json(m))

    forge.edit(folder, edit)


OUTSIDE = ["../outside", "/etc/passwd", "C:/outside", "C:outside", "..\\outside", "a/../../outside", "", ".", "\\\\host\\share", "a\0b"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_out_of_the_bundle(path, bundle, tmp_path):
    (tmp_path / "outside").write_bytes((bundle / "image.onnx").read_bytes())
    original = (bundle / MANIFEST).read_bytes()

    def everywhere(m: forge.Json) -> None:
        m["artifacts"][0]["path"] = m["artifacts"][0]["files"][0]["path"] = path

    def artifact(m: forge.Json) -> None:
        m["artifacts"][0]["path"] = path

    def tokenizer(m: forge.Json) -> None:
        m["tokenizer"]["file"]["path"] = path

    for change in (everywhere, artifact, tokenizer):
        sealed(bundle, change)
        refused(bundle, "leaves the bundle|is not what its files are")
        forge.replace(bundle / MANIFEST, original)


def test_an_artifact_whose_files_are_not_listed(bundle):
    (bundle / "unlisted.onnx").write_bytes((bundle / "image.onnx").read_bytes())
    sealed(bundle, lambda m: m["artifacts"][0].update(path="unlisted.onnx"))
    refused(bundle, "is not what its files are")
    sealed(bundle, lambda m: m["artifacts"][0].update(path="image.onnx", files=[]))
    refused(bundle, "is not what its files are")


WRONG_NUMBERS = {
    "mean": lambda m: m["preprocess"].update(mean=[0.5, 0.5, 0.5]),
    "std": lambda m: m["preprocess"].update(std=[0.5, 0.5, 0.5]),
    "no std": lambda m: m["preprocess"].update(std=[0.0, 0.0, 0.0]),
    "interpolation": lambda m: m["preprocess"].update(interpolation="bicubic"),
    "resize": lambda m: m["preprocess"].update(resize="squash"),
}


@pytest.mark.parametrize("field", WRONG_NUMBERS)
def test_a_consistent_forger_is_found_by_the_numbers(field, bundle):
    forge.forge(bundle, WRONG_NUMBERS[field])
    opened = Bundle.open(bundle)
    with warnings.catch_warnings(action="ignore"):
        parity = verify(opened)
    assert not parity[0].passed
    with pytest.raises(GateError, match="onnx image tower") as e:
        require_passed(parity, opened.manifest.options.precision)
    assert e.value.exit_code == 3


WRONG_SHAPES = {
    "resolution": lambda m: m["preprocess"].update(resolution=32),
    "resolution 0": lambda m: m["preprocess"].update(resolution=0),
    "resolution below 0": lambda m: m["preprocess"].update(resolution=-1),
    "a huge resolution": lambda m: m["preprocess"].update(resolution=10**6),
    "embed_dim": lambda m: m.update(embed_dim=1),
    "baked": lambda m: m["preprocess"].update(baked=True),
    "batch": lambda m: m["artifacts"][0]["input"].update(shape=[2, 3, 64, 64]),
    "batch 0": lambda m: m["artifacts"][0]["input"].update(shape=[0, 3, 64, 64]),
    "no shape": lambda m: m["artifacts"][0]["input"].update(shape=[]),
    "name of the input": lambda m: m["artifacts"][0]["input"].update(name="x"),
    "towers exchanged": lambda m: [a.update(tower="text" if a["tower"] == "image" else "image") for a in m["artifacts"]],
    "context length": lambda m: m["artifacts"][1]["input"].update(shape=[1, 5]),
}


@pytest.mark.parametrize("field", WRONG_SHAPES)
def test_a_manifest_that_does_not_fit_its_artifacts(field, bundle):
    sealed(bundle, WRONG_SHAPES[field])
    with pytest.raises(MobileClipError) as e:
        require_passed(verify(Bundle.open(bundle)), "fp32")
    assert str(e.value).isprintable()


def reference(image: np.ndarray | None, text: np.ndarray | None) -> bytes:
    return save({k: v for k, v in {"image": image, "text": text}.items() if v is not None})


def test_damaged_references(bundle, nano_bundle):
    good = load_file(nano_bundle / REFERENCE)
    image, text = good["image"], good["text"]
    data = (nano_bundle / REFERENCE).read_bytes()
    broken = {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "header": b"\xff" * 8 + data[8:],
        "header of another tensor": data.replace(b'"F32"', b'"F99"'),
        "no text": reference(image, None),
        "flat": reference(image.reshape(-1), text),
        "narrow": reference(np.ascontiguousarray(image[:, :5]), text),
        "NaN": reference(image * np.float32(math.nan), text),
        "none": reference(np.ascontiguousarray(image[:0]), text),
        "whole numbers": data.replace(b'"F32"', b'"I32"'),
        "a number": reference(np.array(1, np.float32), text),
    }
    for name, content in broken.items():
        forge.replace(bundle / REFERENCE, content)
        forge.forge(bundle)
        with pytest.raises(BundleError, match="reference embeddings") as e:
            verify(Bundle.open(bundle))
        assert one_line(e.value, bundle), name


def test_references_of_another_set(bundle, nano_bundle):
    good = load_file(nano_bundle / REFERENCE)
    for image in (np.ascontiguousarray(good["image"][:5]), np.concatenate([good["image"]] * 3), good["image"][::-1].copy()):
        forge.replace(bundle / REFERENCE, reference(image, good["text"]))
        forge.forge(bundle)
        with pytest.raises(MobileClipError) as e:
            require_passed(verify(Bundle.open(bundle)), "fp32")
        assert str(e.value).isprintable()


def test_damaged_tokenizers(bundle, nano_bundle):
    data = (nano_bundle / TOKENIZER).read_bytes()
    document = json.loads(data)
    document["model"]["vocab"].pop("a</w>")
    for content in (
        b"",
        b"{}",
        b"[]",
        b"\xff",
        data[:-100],
        canonical_json(document),
        b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ):
        forge.replace(bundle / TOKENIZER, content)
        forge.forge(bundle)
        refused(bundle, "not a usable tokenizer file")


def external(path: Path, location: str) -> bytes:
    """The ONNX file with its largest constant moved to another file."""
    model = onnx.load(str(path))
    tensor = max(model.graph.initializer, key=lambda t: t.ByteSize())
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0"}.items():
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["/etc/passwd", "../../../../../../../../etc/passwd", "../secret", "link", "inside"])
def test_onnx_with_data_in_another_file(location, bundle, tmp_path):
    """Read only if it is inside, and then for what it is: with the right data the numbers are right."""
    file = bundle / "image.onnx"
    tensor = max(onnx.load(str(file)).graph.initializer, key=lambda t: t.ByteSize())
    (tmp_path / "secret").write_bytes(tensor.raw_data)
    (bundle / "inside").write_bytes(tensor.raw_data)
    (bundle / "link").symlink_to(tmp_path / "secret")
    forge.replace(file, external(file, location))
    forge.forge(bundle)
    if location == "inside":
        assert verify(Bundle.open(bundle))[0].passed
    else:
        refused(bundle, "ONNX Runtime refuses it", "onnx")


def test_onnx_that_is_none(bundle, nano_bundle):
    data = (nano_bundle / "image.onnx").read_bytes()
    for content in (b"", b"not ONNX", data[: len(data) // 2], b"\0" * 1000, data[:1000] + b"\xff" * 1000 + data[2000:]):
        forge.replace(bundle / "image.onnx", content)
        forge.forge(bundle)
        refused(bundle, "ONNX Runtime refuses it", "onnx")


VERIFY = """
import os, sys
import executorch.runtime
from mobileclip.cli.main import main
for folder in sys.argv[1:]:
    if not os.fork():
        sys.argv = ["mobileclip", "verify", folder]
        main()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def verified_apart(*folders: Path) -> tuple[list[int], list[str]]:
    """Exit codes and errors of `mobileclip verify`, each in a process of its own."""
    argv = [sys.executable, "-c", VERIFY, *folders]
    ran = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=300, check=True)
    assert "Traceback" not in ran.stderr
    return [int(line) for line in ran.stdout.split()], [line for line in ran.stderr.splitlines() if line.startswith("error: ")]


def only(target: str, folder: Path) -> None:
    """Leave one artifact of the image tower in a bundle."""
    sealed(folder, lambda m: m.update(artifacts=[a for a in m["artifacts"] if (a["target"], a["tower"]) == (target, "image")]))


@pytest.mark.slow
def test_executorch_programs_that_are_none(full, tmp_path):
    """The runtime is written in C++: each is tried in a process of its own."""
    only("executorch", full)
    data = (full / "image.pte").read_bytes()
    contents = [
        b"",
        b"not a program",
        bytes(np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)),
        data[: len(data) // 2],
        data[:100] + b"\xff" * 400 + data[500:],
        data[:8] + b"\xff" * 50_000,
        data[:4] + b"ET\xff\xff" + data[8:],
    ]
    folders = []
    for i, content in enumerate(contents):
        folders.append(shutil.copytree(full, tmp_path / f"b{i}"))
        forge.replace(folders[-1] / "image.pte", content)
        forge.forge(folders[-1])
    codes, errors = verified_apart(*folders)
    assert codes == [2] * len(folders)
    assert all("the ExecuTorch runtime refuses it" in error for error in errors)
    assert len(errors) == len(folders)


def test_coreml_packages_that_are_damaged(full):
    only("coreml", full)
    package = full / "image.mlpackage"
    files = [p for p in package.rglob("*") if p.is_file()]
    assert {p.name for p in files} == {"Manifest.json", "model.mlmodel", "weight.bin"}
    for file in files:
        data = file.read_bytes()
        for content in (b"", b"\xff" * 100, data[: len(data) // 2]):
            forge.replace(file, content)
            forge.forge(full)
            refused(full, "image.mlpackage", "coreml")
        forge.replace(file, data)
    forge.forge(full)
    assert verify(Bundle.open(full))[0].passed


def test_targets_are_all_attacked():
    assert set(TARGETS) == {"onnx", "coreml", "executorch"}
