"""The command line's errors, one by one: one line on standard error, the right exit code, nothing touched, JSON only on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import forge
import pytest
import torch

from mobileclip.cli import main as cli
from mobileclip.errors import GateError

HEAVY = ("torch", "numpy", "coremltools", "onnx", "onnxruntime", "executorch", "pydantic", "huggingface_hub", "PIL", "tokenizers", "rich")


def apart(*arguments: object, first: str = "", **options) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, after some other statements."""
    script = f"{first}\nfrom mobileclip.cli.main import main\nmain()"
    argv = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, **options)


# --- words that are not known

NEAR = [
    (("export", "--target", "corml"), "unknown target 'corml'; did you mean 'coreml'?"),
    (("export", "--target", "ONNX"), "unknown target 'ONNX'; did you mean 'onnx'?"),
    (("export", "--target", "onnx", "--target", "executorh"), "unknown target 'executorh'; did you mean 'executorch'?"),
    (("export", "--precision", "fp61"), "unknown precision 'fp61'; did you mean 'fp16'?"),
    (("export", "--tower", "imgae"), "unknown tower 'imgae'; did you mean 'image'?"),
    (("export", "--backend", "xnpack"), "unknown backend 'xnpack'; did you mean 'xnnpack'?"),
    (("export", "mobileclip_s9"), "did you mean 'mobileclip_s"),
    (("export", "untrained:mobileclip2s0"), "did you mean 'mobileclip2_s0'?"),
    (("pull", "mobilclip_s0"), "did you mean 'mobileclip_s0'?"),
    (("convert", "a.pt", "b.pt", "--form", "nativ"), "unknown form 'nativ'; did you mean 'native'?"),
    (("bench", "--runtime", "onx", "BUNDLE"), "unknown runtime 'onx'; did you mean 'onnx'?"),
    (("bench", "--tower", "txt", "BUNDLE"), "unknown tower 'txt'; did you mean 'text'?"),
    (("exprot",), "Did you mean 'export'?"),
    (("export", "--traget", "onnx"), "--target"),
]


@pytest.mark.parametrize(("arguments", "said"), NEAR)
def test_unknown_words(arguments, said, run, monkeypatch, tmp_path, nano_bundle):
    monkeypatch.chdir(tmp_path)
    result = run(*(nano_bundle if a == "BUNDLE" else a for a in arguments))
    assert result.code == 2
    assert said in result.error
    assert result.out == ""
    assert not list(tmp_path.iterdir())


def test_a_word_that_is_like_no_other(run):
    assert run("export", "--target", "qqqq").error == "error: unknown target 'qqqq'; known: onnx, coreml, executorch, all"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nosuch",), "No such command 'nosuch'; see mobileclip --help"),
        (("pull", "a", "--bogus"), "No such option: --bogus; see mobileclip pull --help"),
        (("data", "fetch"), "Missing argument 'name'; see mobileclip data fetch --help"),
        (
            ("bench", "b", "--threads", "0"),
            "Invalid value for '--threads': Input should be greater than or equal to 1; see mobileclip bench --help",
        ),
    ],
)
def test_words_that_no_command_takes(arguments, said, run):
    result = run(*arguments)
    assert (result.code, result.out, result.err) == (2, "", f"error: {said}\n")


def test_nothing_asked_gets_the_help(run):
    result = run()
    assert (result.code, result.out) == (2, "")
    assert "Usage: " in result.err
    assert "error: " not in result.err


# --- values that cannot be


@pytest.mark.parametrize("batch", ["0", "-1", "1025", "99999999999999999999", "x", "1.5"])
def test_batches_that_cannot_be(batch, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = run("export", "--target", "onnx", "--batch", batch)
    assert result.code == 2
    assert batch in result.error or "'--batch'" in result.error
    assert result.err == f"{result.error}\n"
    assert not list(tmp_path.iterdir())


def test_the_coreml_delegate_takes_no_pixels(run, tmp_path):
    result = run("export", "--target", "executorch", "--backend", "coreml", "--bake-preprocessing", "-o", tmp_path / "b")
    assert (result.code, result.error) == (
        2, "error: the CoreML delegate takes no uint8 pixels; leave out --bake-preprocessing or use --backend xnnpack",
    )  # fmt: skip


def test_baked_coreml_takes_one_picture(run, tmp_path):
    result = run("export", "--target", "coreml", "--tower", "image", "--bake-preprocessing", "--batch", "2", "-o", tmp_path / "b")
    assert result.code == 2
    assert "use --batch 1" in result.error
    assert not (tmp_path / "b").exists()


def test_models_that_are_not_there(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    result = run("export", tmp_path / "none.pt", "-o", tmp_path / "b")
    assert (result.code, result.error) == (2, f"error: {tmp_path / 'none.pt'}: no such file; check the path")
    result = run("export", "mobileclip_s0", "-o", tmp_path / "b")
    assert result.code == 2
    assert "mobileclip pull mobileclip_s0" in result.error
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    assert run("export", tmp_path / "notes.txt", "-o", tmp_path / "b").code == 2
    assert (
        run("export", tmp_path, "-o", tmp_path / "b").error
        == f"error: {tmp_path}: is a folder; give a checkpoint file or the name of a variant"
    )
    assert f"{tmp_path / 'none'}: no such file" in run("export", tmp_path / "none", "-o", tmp_path / "b").error
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("there", ["a folder with a file", "a file", "a link to nothing"])
def test_out_that_is_no_bundle(there, run, tmp_path):
    out = tmp_path / "precious"
    if there == "a file":
        out.write_text("precious")
    elif there == "a link to nothing":
        out.symlink_to(tmp_path / "nothing")
    else:
        out.mkdir()
        (out / "file").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    result = run("export", "mobileclip_nano", "--target", "onnx", "--tower", "image", "-o", out)
    assert result.code == 2
    assert "exists and is not a bundle; choose another folder with -o" in result.error
    assert [p for p in sorted(tmp_path.rglob("*")) if p.name != ".precious.lock"] == before


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_out_that_has_no_name(out, run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = run("export", "mobileclip_nano", "--target", "onnx", "--tower", "image", "-o", out)
    assert result.code == 2
    assert "choose" in result.error
    assert "with -o" in result.error
    assert {p.name for p in tmp_path.rglob("*")} <= {"here", ".here.lock"}


@pytest.mark.parametrize("command", [("verify",), ("bench",), ("classify", "IMAGE", "--labels", "a,b", "--model")])
def test_bundles_that_are_none(command, run, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"")
    result = run(*(tmp_path / "picture.png" if a == "IMAGE" else a for a in command), tmp_path)
    assert result.code == 2
    assert result.out == ""
    assert str(tmp_path) in result.error


# --- packages that are missing

HIDE = """
import importlib.util, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else real(name, package)
HIDDEN = {hidden!r}
"""
MISSING = [
    ("coremltools", ("export", "--target", "coreml", "-o", "b"), "coreml"),
    ("executorch", ("export", "--target", "executorch", "-o", "b"), "executorch"),
    ("onnxscript", ("export", "--target", "onnx", "-o", "b"), "onnx"),
    ("onnxruntime", ("verify", "BUNDLE"), "onnx"),
    ("open_clip", ("export", "open_clip:ViT-B-32", "-o", "b"), "open-clip"),
]


@pytest.mark.parametrize(("package", "arguments", "extra"), MISSING)
def test_missing_extra(package, arguments, extra, nano_bundle, tmp_path):
    arguments = [nano_bundle if a == "BUNDLE" else a for a in arguments]
    ran = apart(*arguments, first=HIDE.format(hidden={package}), cwd=tmp_path)
    assert ran.returncode == 4, ran.stderr
    line = ran.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert f"needs the package {package}" in line
    assert f"pip install 'mobileclip-toolkit[{extra}]'" in line
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "b").exists()


# --- how errors are told


def test_traceback_only_with_debug(run, tmp_path):
    plain, debug = run("verify", tmp_path), run("--debug", "verify", tmp_path)
    assert plain.code == debug.code == 2
    assert plain.error == debug.err.splitlines()[-1]
    assert "Traceback" in debug.err
    assert "BundleError" in debug.err


def test_errors_of_our_own_making_have_no_traceback_either(run, tmp_path, monkeypatch):
    from mobileclip.export.bundle import Bundle

    def broken(path: Path) -> Bundle:
        raise ZeroDivisionError("so\nwrong")

    monkeypatch.setattr(Bundle, "open", broken)
    result = run("verify", tmp_path)
    assert result.code == 1
    assert result.error.startswith("error: this is a bug: ZeroDivisionError: so wrong; ")
    assert "Traceback" in run("--debug", "verify", tmp_path).err


ENDINGS = {
    GateError("wrong numbers"): (3, "error: wrong numbers"),
    OSError(28, "No space left on device"): (5, "No space left on device"),
    MemoryError(): (5, "error: out of memory; use a smaller model or batch"),
    torch.OutOfMemoryError("CUDA out of memory."): (5, "error: out of memory; use a smaller model or batch"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"): (5, "error: out of memory; use a smaller model or batch"),
    KeyboardInterrupt(): (130, "error: interrupted"),
}


@pytest.mark.parametrize("error", ENDINGS, ids=lambda e: type(e).__name__)
def test_exit_codes(error, run, tmp_path, monkeypatch):
    from mobileclip.export.bundle import Bundle

    def fails(path: Path) -> Bundle:
        raise error

    monkeypatch.setattr(Bundle, "open", fails)
    result = run("verify", tmp_path)
    code, said = ENDINGS[error]
    assert result.code == code
    assert said in result.error


@pytest.mark.parametrize("arguments", [("verify", "NONE", "--json"), ("bench", "NONE", "--json"), ("export", "NONE.pt", "--json")])
def test_json_is_empty_when_there_is_nothing_to_tell(arguments, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.error
    assert len(result.err.splitlines()) == 1


def test_json_is_whole_when_the_gate_fails(run, nano_bundle, tmp_path):
    bundle = forge.copy(nano_bundle, tmp_path / "bundle")
    forge.forge(bundle, lambda m: m["preprocess"].update(mean=[0.5, 0.5, 0.5]))
    result = run("verify", bundle, "--json")
    assert result.code == 3
    assert [p["passed"] for p in json.loads(result.out)[0]["parity"]] == [False, True]
    assert "onnx image tower" in result.error


def test_broken_pipe(tmp_path):
    """The reader goes away before, or while, the command writes."""
    script = "from mobileclip.cli.main import main\nmain()"
    argv = [sys.executable, "-c", script, "models", "--json"]
    for bytes_read in (0, 1):
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.read(bytes_read)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def test_help_loads_nothing_heavy():
    script = "import sys; from mobileclip.cli.main import main\ntry: main()\nfinally: print(*sorted(sys.modules), file=sys.stderr)"
    for arguments in (["--help"], ["--version"], ["models", "--help"], ["export", "--help"]):
        ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False)
        loaded = {name.partition(".")[0] for name in ran.stderr.splitlines()[-1].split()}
        assert "typer" in loaded
        by_typer = {"pydantic"} if len(arguments) > 1 else set()  # it imports that itself to parse a command's options
        assert not loaded & (set(HEAVY) - by_typer), arguments


def test_every_command_shows_an_example():
    for command in cli.COMMANDS:
        ran = apart(command, "--help")
        assert ran.returncode == 0
        assert f"mobileclip {command}" in ran.stdout.partition("Example:")[2], command
