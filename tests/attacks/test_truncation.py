"""Checkpoints cut off or damaged: an error within seconds, never a part of a model."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from hostile import refused

from mobileclip.checkpoints import load, save
from mobileclip.errors import CheckpointError


@pytest.fixture(scope="module", params=[".pt", ".safetensors"])
def whole(request, nano, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / f"model{request.param}"
    save(nano, path)
    return path


@pytest.mark.parametrize("part", range(64))
def test_truncated(whole, tmp_path, part):
    data = whole.read_bytes()
    path = tmp_path / whole.name
    path.write_bytes(data[: len(data) * part // 64])
    refused(path, "truncated|damaged|empty")


@pytest.mark.parametrize("missing", [1, 2, 21, 22, 23, 42, 98, 99, 1000])
def test_last_bytes_missing(whole, tmp_path, missing):
    path = tmp_path / whole.name
    path.write_bytes(whole.read_bytes()[:-missing])
    refused(path, "truncated|damaged")


def test_flipped_bytes_give_an_error_or_a_whole_model(whole, nano, tmp_path):
    """Files with one bit changed, most of them in names and tables; weights have no checksum, so a changed value may pass."""
    data = whole.read_bytes()
    draw = random.Random(5)
    path = tmp_path / whole.name
    places = [draw.randrange(60_000) for _ in range(30)] + [draw.randrange(len(data)) for _ in range(10)]
    places += [len(data) - 1 - draw.randrange(60_000) for _ in range(20)]
    messages = []
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
        started = time.process_time()
        try:
            loaded = load(path)
        except CheckpointError as e:
            messages.append(str(e))
        else:
            assert {n: t.shape for n, t in loaded.state.items()} == {n: t.shape for n, t in nano.state.items()}
            assert all(torch.isfinite(t).all() for t in loaded.state.values())
        assert time.process_time() - started < 10
    assert all(m.isprintable() for m in messages)
    assert len(messages) > 15
