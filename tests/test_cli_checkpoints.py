"""`mobileclip models` and `mobileclip convert` as a user types them: output, exit codes, one line for an error, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mobileclip.checkpoints import load, save
from mobileclip.specs import REGISTRY


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from mobileclip.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


SEVERAL = """
import contextlib, io, json, sys
from mobileclip.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["mobileclip", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as e:
            code = e.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def fail(*commands: tuple[object, ...]) -> list[str]:
    """Run commands that must fail, one after the other in one process; the error line of each."""
    listed = json.dumps([[str(a) for a in arguments] for arguments in commands])
    done = subprocess.run([sys.executable, "-c", SEVERAL, listed], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    errors = []
    for code, out, err in map(json.loads, done.stdout.splitlines()):
        assert (code, out) == (2, "")
        (line,) = (line for line in err.splitlines() if not line.startswith("reading "))
        assert line.startswith("error: ")
        errors.append(line)
    assert len(errors) == len(commands)
    return errors


@pytest.fixture
def source(nano, tmp_path) -> Path:
    save(nano, tmp_path / "nano.pt")
    return tmp_path / "nano.pt"


def test_models():
    done = run("models")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f" {name} " in done.stdout for name in REGISTRY)
    assert "Apple's" in done.stdout
    listed = json.loads(run("models", "--json").stdout)
    assert [m["name"] for m in listed] == list(REGISTRY)
    s0 = next(m for m in listed if m["name"] == "mobileclip_s0")
    assert (s0["image_parameters"], s0["text_parameters"]) == (11_356_992, 42_435_072)
    assert s0["published_by_apple"]["imagenet_top1_percent"] == 67.8


def test_convert_and_fuse(source, nano):
    target = source.with_name("fused.safetensors")
    done = run("convert", source, target, "--fuse")
    assert done.returncode == 0
    size_mb = target.stat().st_size / 1e6
    assert done.stdout == f"wrote {target} ({size_mb:.1f} MB): mobileclip_nano, open_clip, inference form, untrained weights\n"
    loaded = load(target)
    assert (loaded.spec, loaded.fused) == (nano.spec, True)


def test_convert_as_json(source, nano):
    target = source.with_name("copy.pt")
    done = run("convert", source, target, "--form", "open_clip", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads(done.stdout)
    assert written["file"] == str(target)
    assert (written["variant"], written["form"], written["fused"], written["trained"]) == ("mobileclip_nano", "open_clip", False, False)
    assert target.read_bytes() == source.read_bytes()


def test_refusals(source):
    target = source.with_name("out.pt")
    native, form, suffix, missing = fail(
        ("convert", source, target, "--form", "native"),
        ("convert", source, target, "--form", "openclip"),
        ("convert", source, source.with_name("out.onnx")),
        ("convert", source.with_name("none.pt"), target),
    )
    assert "mobileclip_nano has no native form" in native
    assert "unknown form 'openclip'; did you mean 'open_clip'?" in form
    assert "unknown kind of checkpoint '.onnx'" in suffix
    assert "no such file" in missing
    assert os.listdir(source.parent) == [source.name]


class Gadget:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def test_hostile_files(tmp_path, source):
    marker, target = tmp_path / "code-was-run", tmp_path / "out.pt"
    code, cut, other = (tmp_path / f"{name}.pt" for name in ("code", "cut", "other"))
    torch.save({"state_dict": {"weight": Gadget(marker)}}, code)
    cut.write_bytes(source.read_bytes()[:-1000])
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, other)
    errors = fail(*(("convert", path, target) for path in (code, cut, other)))
    assert "refused, it holds objects other than tensors (posix.system)" in errors[0]
    assert "is truncated or damaged; download it again" in errors[1]
    assert "is not a MobileCLIP checkpoint" in errors[2]
    assert not marker.exists()
    assert not target.exists()
