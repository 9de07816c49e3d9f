from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
from PIL import Image
from small_sets import NANO, ensemble, sample

from mobileclip.data import vocabulary
from mobileclip.data.augment import replay
from mobileclip.data.embeddings import read
from mobileclip.data.shards import read_shard, write_shard
from mobileclip.errors import InputError, StorageError
from mobileclip.export.encoder import open_encoder
from mobileclip.reinforce import shard as shard_module
from mobileclip.reinforce.views import scaled


def shards_in(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("[!.]*.tar"))}


def test_embeddings_are_those_of_the_stored_views_and_captions(make, tmp_path):
    summary = make(NANO, views=3, captions=4, dtype="fp32")
    assert (summary.tally.seen, summary.tally.present, summary.made) == (10, 10, 3)
    teacher = open_encoder(NANO["source"])
    lines = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert lines == [{"shard": "00000", "num_uids": 5}, {"shard": "00001", "num_uids": 4}, {"shard": "00002", "num_uids": 1}]
    seen = 0
    for path in sorted((tmp_path / "out").glob("*.tar")):
        for s in read_shard(path):
            seen += 1
            assert set(s.members) == {"png", "txt", "json", "npz", "syn.json", "paug.json"}
            r = read(s.members)
            assert r.image.shape == (3, 128)
            assert r.real.shape == (1, 128)
            assert r.synthetic["syn_text"].shape == (4, 128)
            image = Image.open(io.BytesIO(s.members["png"]))
            views = [Image.fromarray(replay(image, scaled(p, 64 / 224), 64, "bilinear")) for p in r.param_aug]
            np.testing.assert_allclose(teacher.encode_images(views), r.image, atol=2e-6)
            np.testing.assert_allclose(teacher.encode_texts(s.captions()), r.real, atol=2e-6)
            np.testing.assert_allclose(teacher.encode_texts(r.captions["syn_text"]), r.synthetic["syn_text"], atol=2e-6)
            assert np.abs(r.image[0] - r.image[1]).max() > 1e-4
    assert seen == 10


def test_shards_larger_than_every_batch_are_whole(make, tmp_path, monkeypatch):
    make(out=tmp_path / "large")
    monkeypatch.setattr(shard_module, "_BLOCK", 2)
    monkeypatch.setattr(shard_module, "_VIEWS_AT_ONCE", 3)
    make(out=tmp_path / "small")
    assert shards_in(tmp_path / "large") == shards_in(tmp_path / "small")


def test_result_does_not_depend_on_order_or_on_what_was_remembered(make, data, tmp_path):
    make(out=tmp_path / "all")
    make(shards=data / "00001.tar", out=tmp_path / "one")
    assert shards_in(tmp_path / "all")["00001.tar"] == shards_in(tmp_path / "one")["00001.tar"]


def test_repeated_pictures_and_captions_are_embedded_once(make, tmp_path, monkeypatch):
    stages = make(captions=0).stages
    assert stages["images tiny"][0] == 9 * 2, "ten pictures, two of them the same"
    assert stages["texts tiny"][0] == 10
    found = {s.key: read(s.members) for p in (tmp_path / "out").glob("*.tar") for s in read_shard(p)}
    assert found[f"{1:032x}"].param_aug == found[f"{6:032x}"].param_aug
    assert np.array_equal(found[f"{1:032x}"].image, found[f"{6:032x}"].image)
    monkeypatch.setattr(shard_module, "_CACHE_BYTES", 0)
    assert make(captions=0, out=tmp_path / "forgetful").stages["images tiny"][0] == 10 * 2, "the two are in different shards"
    assert shards_in(tmp_path / "forgetful") == shards_in(tmp_path / "out")


def test_seed_changes_views_and_captions(make, tmp_path):
    make(out=tmp_path / "a")
    make(out=tmp_path / "b", seed=1)
    a, b = (next(iter(read_shard(tmp_path / name / "00000.tar"))) for name in "ab")
    assert a.members["paug.json"] != b.members["paug.json"]
    assert a.members["syn.json"] != b.members["syn.json"]


def test_several_teachers_stand_side_by_side_each_at_its_own_size(make, tmp_path, tiny):
    make(NANO, tiny, out=tmp_path / "both", dtype="fp32")
    make(NANO, out=tmp_path / "first", dtype="fp32")
    make(tiny, out=tmp_path / "second", dtype="fp32")
    rows = [read(next(iter(read_shard(tmp_path / n / "00000.tar"))).members) for n in ("both", "first", "second")]
    np.testing.assert_array_equal(rows[0].image, np.concatenate([rows[1].image, rows[2].image], 1))
    np.testing.assert_array_equal(rows[0].real, np.concatenate([rows[1].real, rows[2].real], 1))
    about = json.loads((tmp_path / "both/reinforcement.json").read_text())
    assert [(t["name"], t["width"], t["side"]) for t in about["teachers"]] == [("nano", 128, 64), ("tiny", 24, 32)]


def test_without_images_the_layout_is_apples(make, tmp_path):
    make(images=False)
    s = next(iter(read_shard(tmp_path / "out/00000.tar")))
    assert set(s.members) == {"json", "paug.json", "pth.gz", "syn.json"}


def test_finished_shards_are_kept_and_others_made_again(make, tmp_path):
    out = tmp_path / "out"
    make()
    before = shards_in(out)
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    (out / "00001_stats.json").unlink()
    (out / "00002.tar").write_bytes(before["00002.tar"][:-1])
    (out / ".mobileclip-tmp-left").write_bytes(b"x")
    assert make().made == 2
    assert shards_in(out) == before
    assert (out / "00000.tar").stat().st_mtime_ns == times["00000.tar"]
    assert not list(out.glob(".mobileclip-tmp-*"))


def test_folder_made_in_another_way_is_refused(make, tmp_path):
    make()
    with pytest.raises(InputError, match=r"another way \(views 2 there, 3 now\)"):
        make(views=3)


def test_bad_samples_are_counted_by_reason(make, tmp_path):
    folder = tmp_path / "bad"
    good = [sample(n) for n in range(4)]
    cut = ("cut", sample(4)[1] | {"png": sample(4)[1]["png"][:300]})
    none = ("none", {k: v for k, v in sample(5)[1].items() if k != "png"})
    mute = ("mute", {"png": sample(6)[1]["png"], "txt": b" "})
    latin = ("latin", sample(7)[1] | {"txt": "caf\xe9".encode("latin-1")})
    bomb = ("bomb", sample(8)[1] | {"png": b"P6 10000 10000 255 "})  # a PPM that claims more pixels than the limit
    write_shard(folder / "00000.tar", [*good, cut, none, mute, latin, bomb])
    (folder / "00001.tar").write_bytes(b"no tar file" * 100)
    summary = make(shards=folder, max_bad=1.0)
    reasons = {"bad_image": 1, "no_image": 1, "no_caption": 1, "not_utf8": 1, "too_large": 1, "damaged_shard": 1}
    assert (summary.tally.seen, dict(summary.tally.skipped)) == (4, reasons)
    assert summary.tally.present == 10
    with pytest.raises(InputError, match="6 of 10 samples are bad"):
        make(shards=folder, out=tmp_path / "strict")


def test_shards_are_never_written_over(make, data, tmp_path):
    before = shards_in(data)
    with pytest.raises(InputError, match="holds shards that are to be read"):
        make(out=data)
    assert shards_in(data) == before
    assert not (data / "reinforcement.json").exists()


def test_hostile_samples_are_skipped_and_counted(make, tmp_path):
    """Each would have ended the run, in the same place each time."""
    folder = tmp_path / "hostile"
    picture = sample(0)[1]["png"]
    many = json.dumps([f"caption {n}" for n in range(1001)]).encode()
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for key, text in (("good", b"x"), ("many", many), ("long", b"x" * (1 << 17)), ("k" * 90, b"x"), ("", b"x"), ("line\nbreak", b"x")):
            for extension, content in (("png", picture), ("txt", text)):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    summary = make(shards=folder, max_bad=1.0)
    assert dict(summary.tally.skipped) == {"too_large": 2, "bad_key": 3}
    assert (summary.tally.seen, summary.tally.present) == (1, 6)


def test_keys_that_differ_in_their_folder_stay_apart(make, tmp_path):
    folder = tmp_path / "folders"
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for n in (1, 2):
            for extension, content in sample(n)[1].items():
                info = tarfile.TarInfo(f"class{n}/1.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert make(shards=folder).tally.seen == 2
    keys = [s.key for s in read_shard(tmp_path / "out/00000.tar")]
    assert keys[0] == "1"
    assert re.fullmatch("1-[0-9a-f]{8}", keys[1])


def test_a_mistake_in_a_table_stops_with_its_line(make, tmp_path):
    (tmp_path / "a.png").write_bytes(sample(0)[1]["png"])
    table = tmp_path / "t.jsonl"
    table.write_text('{"image": "a.png", "caption": "x"}\nno json\n')
    with pytest.raises(InputError, match=r"t\.jsonl:2"):
        make(shards=table, max_bad=1.0)
    assert not list((tmp_path / "out").glob("*_stats.json"))


def test_a_mended_config_may_take_the_folder_of_one_that_made_nothing(make, tmp_path, tiny):
    with pytest.raises(InputError, match="did you mean"):
        make(tiny | {"model": "ViT-L-41"})
    (tmp_path / "out" / vocabulary.NAME).write_bytes(b"words of the first config")
    assert make().made == 3
    assert not (tmp_path / "out" / vocabulary.NAME).exists()


def test_teachers_with_other_weights_leave_finished_shards_alone(make, tmp_path, tiny_open_clip):
    model = tiny_open_clip()
    teacher = {"kind": "open_clip", "name": "t", "model": model}
    make(teacher)
    out = tmp_path / "out"
    (out / "00001_stats.json").unlink()
    before = shards_in(out)
    path = Path(model.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    weights = path.read_bytes()
    state = safetensors.torch.load(weights)
    safetensors.torch.save_file({name: t * 2 if t.ndim > 1 else t for name, t in state.items()}, path)
    with pytest.raises(InputError, match="teachers with other weights"):
        make(teacher)
    assert shards_in(out) == before
    path.write_bytes(weights)
    assert make(teacher).made == 1
    assert shards_in(out) == before


def test_names_that_are_not_utf8(make, data, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.tar")).write_bytes((data / "00000.tar").read_bytes())
    assert make(shards=folder).tally.seen == 5
    assert make(shards=folder).made == 0


@pytest.mark.slow
def test_two_at_once_in_one_folder(make, data, tiny, tmp_path):
    """The second waits, and finds everything made."""
    processes = [start(data, tiny, tmp_path, "--json") for _ in range(2)]
    made = []
    for process in processes:
        told, error = process.communicate()
        assert process.returncode == 0, error
        made.append(json.loads(told)["made"])
    assert sorted(made) == [0, 3]
    make(out=tmp_path / "whole")
    assert shards_in(tmp_path / "out") == shards_in(tmp_path / "whole")


def test_nan_teacher_stops_the_run(make, tmp_path, monkeypatch):
    import torch

    from mobileclip.reinforce.teachers import OpenClipTeacher

    build = OpenClipTeacher.__init__

    def broken(self, *arguments):
        build(self, *arguments)
        with torch.no_grad():
            self._model.visual.proj.fill_(float("nan"))

    monkeypatch.setattr(OpenClipTeacher, "__init__", broken)
    with pytest.raises(InputError, match="teacher tiny: gives numbers that are not finite"):
        make()
    assert not list((tmp_path / "out").glob("*.tar"))


def start(data: Path, tiny: dict[str, object], tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    config = tmp_path / "teachers.yaml"
    config.write_text(json.dumps(ensemble(tiny).model_dump(mode="json")))
    code = "from mobileclip.cli.main import main; main()"
    arguments = ["reinforce", str(data), "-o", str(tmp_path / "out"), "--teachers", str(config), "--views", "2", "--captions", "2"]
    return subprocess.Popen([sys.executable, "-c", code, *arguments, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_a_shard(out: Path, process: subprocess.Popen[str]) -> None:
    while not list(out.glob("*_stats.json")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)


@pytest.fixture
def many(tmp_path) -> Path:
    """Forty shards of a sample: time to interrupt what reads them."""
    for n in range(40):
        write_shard(tmp_path / f"many/{n:05d}.tar", [sample(n)])
    return tmp_path / "many"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_interrupted_run_goes_on_to_the_same_bytes(make, many, tiny, tmp_path, sent, code):
    make(shards=many, out=tmp_path / "whole")
    process = start(many, tiny, tmp_path)
    wait_for_a_shard(tmp_path / "out", process)
    process.send_signal(sent)
    error = process.communicate()[1]
    assert process.returncode == code, error
    assert shards_in(tmp_path / "out").items() < shards_in(tmp_path / "whole").items()
    make(shards=many)
    assert shards_in(tmp_path / "out") == shards_in(tmp_path / "whole")
    assert (tmp_path / "out/manifest.jsonl").read_bytes() == (tmp_path / "whole/manifest.jsonl").read_bytes()


@pytest.mark.slow
def test_ray_replaces_killed_workers(make, many, tiny, tmp_path):
    for path in many.iterdir():
        write_shard(path, [*((s.key, s.members) for s in read_shard(path)), ("bad", {"txt": b"no picture"})])
    make(shards=many, out=tmp_path / "whole", max_bad=1)
    process = start(many, tiny, tmp_path, "--workers", "2", "--max-bad", "1")
    wait_for_a_shard(tmp_path / "out", process)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name().startswith("ray::MapWorker")]
    for worker in workers:
        worker.kill()
    assert len(list((tmp_path / "out").glob("*_stats.json"))) < 40, "killed too late"
    error = process.communicate()[1]
    assert workers
    assert process.returncode == 0, error
    assert shards_in(tmp_path / "out") == shards_in(tmp_path / "whole")
    counts = [json.loads((tmp_path / name / "reinforcement.json").read_text())["counts"] for name in ("out", "whole")]
    assert counts[0] == counts[1] == {"present": 80, "written": 40, "skipped": {"no_image": 40}}


@pytest.mark.slow
def test_ray_cluster_by_its_address(make, data, tiny, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        process = start(data, tiny, tmp_path, "--address", cluster.address, "--json")
        told, error = process.communicate()
    finally:
        cluster.shutdown()
    assert process.returncode == 0, error
    assert json.loads(told)["made"] == 3
    make(out=tmp_path / "whole")
    assert shards_in(tmp_path / "out") == shards_in(tmp_path / "whole")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "auto", "nowhere"])
def test_no_ray_at_the_address(make, address):
    """Ray itself would try for minutes."""
    with pytest.raises(StorageError, match=r"^Ray cannot be reached \(.*\); run again, or with --engine local$"):
        make(engine="ray", address=address)
