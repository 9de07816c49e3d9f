"""A small data set of real photographs, plain and as its config."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import traceback
from pathlib import Path

import pytest
from PIL import Image

from mobileclip.data.shards import write_shard
from mobileclip.training.config import TrainConfig

PHOTOS = sorted(p for p in (Path(__file__).parents[2] / "mobileclip/assets/photos").iterdir() if p.suffix in (".jpg", ".png", ".webp"))


def picture(index: int) -> bytes:
    """A part of a photograph, 80 px."""
    with Image.open(PHOTOS[index % len(PHOTOS)]) as photo:
        left = 7 * index % (photo.width - 80)
        part = photo.convert("RGB").crop((left, left % (photo.height - 80), left + 80, left % (photo.height - 80) + 80))
    buffer = io.BytesIO()
    part.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for n in range(3):
        write_shard(
            folder / f"{n:05}.tar", [(f"{i:032x}", {"png": picture(i), "txt": f"part {i}".encode()}) for i in range(8 * n, 8 * n + 8)]
        )
    return folder


@pytest.fixture
def config(shards):
    return settings(shards)


def settings(shards, **changes):
    value = {
        "schema_version": 1, "model": "mobileclip_nano", "data": {"shards": [str(shards)], "workers": 0},
        "schedule": {"samples": 24, "warmup_steps": 2}, "batch_size": 4, "precision": "fp32", "ema": 0.9, "threads": 1,
        "log_every": 1, "save_every": 2,
    }  # fmt: skip
    return TrainConfig.model_validate(value | changes)


def digests(folder):
    """Of the weights that a run leaves."""
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.safetensors", "model-ema.safetensors")]


def forked(function, *arguments):
    """Call it in a process of its own, which ends with 0, or with 1 after an error; returns the pid."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(300)
            function(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def exit_code(pid):
    """Of a forked process once it has ended, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
