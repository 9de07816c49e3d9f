"""Nothing that ships loads ONNX Runtime but by the function that switches its telemetry off first."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_one_place_loads_onnxruntime():
    files = [p for package in ("mobileclip", "export", "benchmark") for p in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    loading = [p for p in files if re.search(r"^\s*(import|from) onnxruntime\b", p.read_text(), re.MULTILINE)]
    assert loading == [ROOT / "export/runtimes/onnx.py"]


def test_it_switches_telemetry_off(tmp_path):
    script = (
        "import os, sys\n"
        "os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "seen = []\n"
        "sys.addaudithook(lambda e, a: e == 'import' and a[0] == 'onnxruntime' and seen.append(os.environ.get('ORT_DISABLE_TELEMETRY')))\n"
        "from pathlib import Path\n"
        "from mobileclip.export.runtimes.onnx import cpu_session\n"
        "assert not seen\n"
        "try: cpu_session(Path('none.onnx'), 1)\n"
        "except Exception: pass\n"
        "print(seen[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
