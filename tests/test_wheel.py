"""The built wheel: what it installs, and that the command works from it alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_it_installs_only_mobileclip(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"mobileclip"}
    for wanted in (
        "mobileclip/export/verify/gate.py",
        "mobileclip/benchmark/devices/host.py",
        "mobileclip/benchmark/report.html",
        "mobileclip/assets/photos/cat.webp",
        "mobileclip/assets/captions.json",
    ):
        assert wanted in names
    assert any(n.endswith("licenses/NOTICE") for n in names)


def test_the_command_works_from_it(wheel, tmp_path):
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    environment = os.environ | {"PYTHONPATH": str(target)}
    code = "import mobileclip, mobileclip.export.bundle, sys; sys.argv = ['mobileclip', '--help']; print(mobileclip.__file__)\n"
    code += "from mobileclip.cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(target))
    assert "export" in run.stdout
    assert "verify" in run.stdout


@pytest.mark.slow
def test_it_works_in_a_clean_environment(wheel, tmp_path):
    """With what it declares to need and nothing else: no package of the targets or of the tests."""
    uv, python = Path(sys.executable).with_name("uv"), tmp_path / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True, timeout=300)
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, timeout=600)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = python.with_name("mobileclip"), *arguments
        return subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)

    assert "export" in run("--help").stdout
    classified = run("classify", str(ROOT / "mobileclip/assets/drawings/pizza.webp"), "--labels", "pizza,car", "--json")
    assert classified.returncode == 0, classified.stderr
    missing = run("export", "--target", "onnx")
    assert missing.returncode == 4
    assert "pip install 'mobileclip-toolkit[onnx]'" in missing.stderr.splitlines()[-1]
    packages = subprocess.run(
        [python, "-c", "import os, mobileclip; print(os.path.dirname(mobileclip.__path__[0]))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert packages.stdout.startswith(str(tmp_path))
