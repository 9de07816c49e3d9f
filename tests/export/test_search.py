"""The index of a folder: what it holds, that it is kept up to date, and that nothing damages it or is damaged by it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobileclip.errors import InputError, StorageError
from mobileclip.export import search
from mobileclip.export.encoder import Encoder, open_encoder
from mobileclip.export.search import FOLDER_NAME, SIDECAR, default_index, find_pictures, open_index, update
from mobileclip.export.verify.dataset import photograph, photograph_names
from mobileclip.files import canonical_json, sha256_file

NAMES = photograph_names()[:12]


def quiet(step: str) -> None:
    pass


@pytest.fixture(scope="module")
def encoder(nano_bundle) -> Encoder:
    return open_encoder(str(nano_bundle))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i, name in enumerate(NAMES):
        below = folder / ("", "b", "a/deep/er")[i % 3]
        below.mkdir(parents=True, exist_ok=True)
        photograph(name).resize((96, 80)).save(below / f"{name}.png")
    return folder


@pytest.fixture
def folder(tmp_path, photographs) -> Path:
    return Path(shutil.copytree(photographs, tmp_path / "pictures"))


def content(index: Path) -> dict[str, str]:
    """Every file of an index but its lock, by name."""
    return {p.name: sha256_file(p) for p in sorted(index.iterdir()) if not p.name.endswith(".lock")}


def test_ranking_equals_brute_force(folder, encoder):
    state = update(folder, encoder, quiet)
    assert (state.embedded, state.removed, state.skipped) == (12, 0, ())
    paths = state.index.sidecar.paths
    assert list(paths) == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    exact = encoder.encode_images(Image.open(folder / p) for p in paths)
    np.testing.assert_allclose(state.index.matrix, exact, atol=2**-11)
    for query in (encoder.encode_texts(["a photo of a cat"])[0], exact[5]):
        scores = state.index.matrix.astype(np.float32) @ query
        hits = state.index.search(query, 20)
        assert [h.path for h in hits] == [paths[i] for i in np.argsort(-scores, kind="stable")]
        assert [h.score for h in hits] == pytest.approx(sorted(scores, reverse=True), abs=1e-4)
    assert hits[0].path == paths[5]
    assert 0.999 < hits[0].score <= 1.0


def test_only_what_changed_is_embedded_and_the_result_is_that_of_a_new_index(folder, encoder):
    first = update(folder, encoder, quiet)
    before = content(first.index.path)
    stamp = (first.index.path / SIDECAR).stat().st_mtime_ns
    again = update(folder, encoder, quiet)
    assert (again.embedded, again.removed) == (0, 0)
    assert (first.index.path / SIDECAR).stat().st_mtime_ns == stamp
    assert content(first.index.path) == before

    (folder / first.index.sidecar.paths[0]).unlink()
    (folder / first.index.sidecar.paths[3]).rename(folder / "0 moved.png")
    Image.new("RGB", (30, 30), "red").save(folder / first.index.sidecar.paths[5])
    changed = update(folder, encoder, quiet)
    assert (changed.embedded, changed.removed) == (2, 2)
    assert len(changed.index.matrix) == 11
    new = update(folder, encoder, quiet, index=folder / "other")
    assert content(changed.index.path) == content(new.index.path) != before


def test_an_index_of_a_model_serves_its_bundle_and_the_other_way_round(folder, encoder):
    update(folder, open_encoder("untrained:mobileclip_nano"), quiet)
    assert update(folder, encoder, quiet).embedded == 0


def test_writing_now_and_then_gives_the_same_index(folder, encoder, monkeypatch):
    whole = content(update(folder, encoder, quiet).index.path)
    monkeypatch.setattr(search, "SAVE_EVERY", 5)
    assert content(update(folder, encoder, quiet, rebuild=True).index.path) == whole


def test_what_is_a_picture(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for file in (outside / "x.png", folder / ".hidden.png", folder / "UPPER.JPG", folder / "b" / "linked.png"):
        Image.new("RGB", (9, 9)).save(file)
    (folder / ".git").mkdir()
    shutil.copy(outside / "x.png", folder / ".git" / "x.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "loop").symlink_to(folder)
    (folder / "album.png").symlink_to(outside)
    (folder / "link.png").symlink_to(outside / "x.png")
    (folder / "self.png").symlink_to("self.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"")
    found, skipped = find_pictures(folder)
    expected = {p.relative_to(folder).as_posix() for p in folder.rglob("[!.]*.png") if p.stem in NAMES}
    assert {e.path for e in found} == expected | {"UPPER.JPG", "b/linked.png", "link.png"}
    assert [e.path for e in found] == sorted(e.path for e in found)
    assert {s.path: s.error.rpartition(": ")[2] for s in skipped} == {
        "self.png": "cannot be read (too many levels of symbolic links)",
        "gone.png": "cannot be read (no such file or directory)",
        "pipe.png": "is not a file",
        "\ufffd.png": "its name is not UTF-8; rename it",
    }


def test_very_deep_folders(tmp_path, encoder):
    deep = tmp_path
    try:
        for _ in range(1100):
            deep = deep / "d"
            deep.mkdir()
        Image.new("RGB", (9, 9)).save(deep / "x.png")
        assert update(tmp_path, encoder, quiet).embedded == 1
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_broken_pictures_are_listed_and_tried_again(folder, encoder):
    whole = (folder / "b" / f"{NAMES[1]}.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    state = update(folder, encoder, quiet)
    assert [s.path for s in state.skipped] == ["cut.png", "phone.heic"]
    assert "cut-off" in state.skipped[0].error
    assert len(state.index.matrix) == 12
    assert [s.path for s in update(folder, encoder, quiet).skipped] == ["cut.png", "phone.heic"]
    (folder / "cut.png").write_bytes(whole)
    assert update(folder, encoder, quiet).embedded == 1


def test_nothing_to_search(tmp_path, encoder):
    with pytest.raises(InputError, match="no pictures below it"):
        update(tmp_path, encoder, quiet)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its 1 pictures can be read; the first: .*not a picture"):
        update(tmp_path, encoder, quiet)
    with pytest.raises(InputError, match="no such folder"):
        update(tmp_path / "x.png", encoder, quiet)


def test_all_pictures_are_gone_or_broken_now(folder, encoder):
    index = update(folder, encoder, quiet).index.path
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="none of its 12 pictures can be read"):
        update(folder, encoder, quiet)
    assert len(open_index(index).matrix) == 0
    before = content(index)
    for file in folder.rglob("*.png"):
        file.unlink()
    with pytest.raises(InputError, match="no pictures below it"):
        update(folder, encoder, quiet)
    assert content(index) == before


def test_embedding_spaces_are_not_mixed(folder, encoder):
    index = update(folder, encoder, quiet).index.path
    before = content(index)
    other = replace(encoder, name="another_model", embedding_space="f" * 64)
    with pytest.raises(InputError, match=r"by mobileclip_nano \(embedding space \w{8}\).*with another_model \(embedding space ffffffff\)"):
        update(folder, other, quiet)
    assert content(index) == before
    assert update(folder, other, quiet, rebuild=True).index.sidecar.model == "another_model"
    with pytest.raises(InputError, match="holds embeddings of 128 numbers, not 64"):
        open_index(index).search(np.zeros(64, np.float32), 1)


def edit(index: Path, seal: bool = True, **changes: object) -> None:
    """Rewrite fields of the sidecar, with a digest that fits to them if `seal`."""
    value = json.loads((index / SIDECAR).read_bytes()) | changes
    if seal:
        value["sha256"] = hashlib.sha256(canonical_json({k: v for k, v in value.items() if k != "sha256"})).hexdigest()
    (index / SIDECAR).write_bytes(canonical_json(value))


def matrix(index: Path) -> Path:
    return next(index.glob("embeddings-*.npy"))


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def replace_matrix(index: Path, values: np.ndarray) -> None:
    """Another matrix, with a sidecar that vouches for it."""
    np.save(matrix(index), values)
    edit(index, matrix_sha256=sha256_file(matrix(index)))


PATHS = [f"{i:02}.png" for i in range(12)]
DAMAGE = {
    "one bit of the matrix": lambda i: flip(matrix(i), -1),
    "matrix cut off": lambda i: matrix(i).write_bytes(matrix(i).read_bytes()[:-100]),
    "matrix empty": lambda i: matrix(i).write_bytes(b""),
    "matrix missing": lambda i: matrix(i).unlink(),
    "matrix of objects": lambda i: replace_matrix(i, np.array([{}] * 12, dtype=object)),
    "matrix of float32": lambda i: replace_matrix(i, np.zeros((12, 128), np.float32)),
    "matrix too short": lambda i: replace_matrix(i, np.zeros((11, 128), np.float16)),
    "sidecar cut off": lambda i: (i / SIDECAR).write_bytes((i / SIDECAR).read_bytes()[:-20]),
    "sidecar empty": lambda i: (i / SIDECAR).write_bytes(b""),
    "sidecar no object": lambda i: (i / SIDECAR).write_bytes(b"[1, 2]"),
    "sidecar not UTF-8": lambda i: (i / SIDECAR).write_bytes(b'{"model": "\xff"}'),
    "sidecar edited": lambda i: edit(i, seal=False, model="mobileclip_s0"),
    "another schema": lambda i: edit(i, schema_version=2),
    "another field": lambda i: edit(i, note="mine"),
    "matrix elsewhere": lambda i: edit(i, matrix="../../x.npy"),
    "path outside": lambda i: edit(i, paths=["../x.png", *PATHS[1:]]),
    "path outside, further on": lambda i: edit(i, paths=[*PATHS[:11], "a/../../x.png"]),
    "absolute path": lambda i: edit(i, paths=["/etc/x.png", *PATHS[1:]]),
    "paths not sorted": lambda i: edit(i, paths=PATHS[::-1]),
    "one path twice": lambda i: edit(i, paths=[PATHS[0], *PATHS[:11]]),
    "columns that differ": lambda i: edit(i, paths=PATHS[:11]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_and_rebuilding_repairs(folder, encoder, damage):
    index = update(folder, encoder, quiet).index.path
    whole = content(index)
    damage(index)
    with pytest.raises(InputError) as caught:
        update(folder, encoder, quiet)
    message = str(caught.value)
    assert message.startswith(f"{index}: the index is damaged (")
    assert message.endswith("make a new one with --rebuild")
    assert "\n" not in message
    update(folder, encoder, quiet, rebuild=True)
    assert content(index) == whole


def test_numbers_that_are_not_finite_are_damage(folder, encoder):
    index = update(folder, encoder, quiet).index.path
    replace_matrix(index, np.full((12, 128), np.nan, np.float16))
    with pytest.raises(InputError, match=r"damaged \(numbers that are not finite"):
        update(folder, encoder, quiet).index.search(np.ones(128, np.float32), 3)


def test_index_at_a_file(folder, encoder):
    file = folder / "notes.txt"
    file.write_text("mine")
    with pytest.raises(InputError, match="is a file; give a folder for the index"):
        update(folder, encoder, quiet, index=file)
    assert file.read_text() == "mine"


def test_files_of_others_beside_an_index_stay(folder, encoder, tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    for name in ("index.json", "embeddings.npy", "embeddings-mine.npy"):
        (index / name).write_text("mine")
    update(folder, encoder, quiet, index=index)
    update(folder, encoder, quiet, index=index, rebuild=True)
    assert [p.name for p in index.iterdir() if p.is_file() and p.read_bytes() == b"mine"]
    assert all((index / name).read_text() == "mine" for name in ("index.json", "embeddings.npy", "embeddings-mine.npy"))


@contextlib.contextmanager
def as_plain_user() -> Iterator[None]:
    """Give up the rights of root, to which no folder is read-only."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_index_of_a_read_only_folder_lies_in_the_cache(folder, encoder, monkeypatch):
    update(folder, encoder, quiet)  # loads the model as long as its files can be read
    shutil.rmtree(folder / FOLDER_NAME)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        pictures, cache = Path(shutil.copytree(folder, root / "pictures")), root / "cache"
        cache.mkdir()
        cache.chmod(0o777)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        assert default_index(pictures) == pictures / FOLDER_NAME
        pictures.chmod(0o555)
        with as_plain_user():
            state = update(pictures, encoder, quiet)
            assert (state.index.path.parent, state.embedded) == (cache / "mobileclip" / "indexes", 12)
            assert update(pictures, encoder, quiet).embedded == 0
        assert not (pictures / FOLDER_NAME).exists()
        pictures.chmod(0o755)


def test_unreadable_folders_are_listed(folder, encoder):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o777)
        shutil.copy(folder / f"{NAMES[0]}.png", root / "x.png")
        (root / "closed").mkdir(0o000)
        with as_plain_user():
            _, skipped = find_pictures(root)
            assert [(s.path, s.error) for s in skipped] == [("closed", f"{root}/closed: cannot be read (permission denied)")]
            with pytest.raises(StorageError, match="permission denied"):
                find_pictures(root / "closed")


def test_full_disk_leaves_the_old_index(folder, encoder):
    index = update(folder, encoder, quiet).index.path
    before = content(index)
    for i in range(8):
        Image.new("RGB", (20 + i, 20)).save(folder / f"new {i}.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            update(folder, encoder, quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(index) == before
    assert update(folder, encoder, quiet).embedded == 8


SCRIPT = """
import sys
from pathlib import Path
from mobileclip.export import search
from mobileclip.export.encoder import open_encoder
search.SAVE_EVERY = 1
print(search.update(Path(sys.argv[2]), open_encoder(sys.argv[1]), lambda step: None).embedded)
"""


def start(bundle: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(bundle), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_several_processes_take_turns(folder, encoder, nano_bundle):
    processes = [start(nano_bundle, folder) for _ in range(3)]
    outputs = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], outputs
    assert sorted(int(out) for out, _ in outputs) == [0, 0, 12]
    found = content(folder / FOLDER_NAME)
    assert content(update(folder, encoder, quiet, rebuild=True).index.path) == found


def test_killed_at_any_moment_the_index_is_whole_and_the_next_run_goes_on(folder, encoder, nano_bundle):
    index, rng, partial = folder / FOLDER_NAME, random.Random(0), 0
    for awaited in (index, *[index / SIDECAR] * 4):
        shutil.rmtree(index, ignore_errors=True)
        process = start(nano_bundle, folder)
        deadline = time.monotonic() + 60
        while not awaited.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.communicate()
        kept = len(open_index(index).matrix) if (index / SIDECAR).exists() else 0
        partial += 0 < kept < 12
        assert update(folder, encoder, quiet).embedded == 12 - kept
        found = content(index)
        assert sorted(p.split("-")[0] for p in found) == ["embeddings", "mobileclip"]
        assert content(update(folder, encoder, quiet, rebuild=True).index.path) == found
    assert partial
