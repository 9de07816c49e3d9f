"""The greediest of the hostile files, in a process of their own whose memory is measured."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import torch
from hostile import write_pickle
from test_pickles import ALLOCATIONS, hash_bomb
from test_tensors import SAFETENSORS, of_one_number
from test_zip_members import bomb

SCRIPT = """
import json, resource, sys
from pathlib import Path
from mobileclip import checkpoints
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for path in sys.argv[1:]:
    try:
        checkpoints.load(Path(path))
    except checkpoints.CheckpointError:
        print(json.dumps([path, peak() - before]))
"""


def test_memory_stays_bounded(tmp_path):
    """Each is refused, quietly, with at most twice its size and 200 MiB more in memory than before."""
    for kind, program in ALLOCATIONS.items():
        write_pickle(tmp_path / f"{kind}.pt", program)
    write_pickle(tmp_path / "hash.pt", hash_bomb(60, 2))
    bomb(tmp_path / "zip.pt", zipfile.ZIP_DEFLATED)
    of_one_number(tmp_path / "s4.pt", "mobileclip2_s4")
    torch.save({"weight": torch.zeros(1).expand(1 << 40)}, tmp_path / "terabytes.pt")
    SAFETENSORS["offsets beyond the file"](tmp_path / "offsets.safetensors")
    SAFETENSORS["huge header"](tmp_path / "header.safetensors")
    SAFETENSORS["huge and empty"](tmp_path / "empty.safetensors")
    paths = sorted(tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, paths)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    peaks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [path for path, _ in peaks] == [str(path) for path in paths]
    assert max(grown for _, grown in peaks) <= 2 * max(p.stat().st_size for p in paths) + (200 << 20)
