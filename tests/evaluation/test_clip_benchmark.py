"""clip_benchmark's data sets: shards from a real HTTP server, and pictures from the package's own readers."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mobileclip.data.shards import write_shard
from mobileclip.errors import InputError, MissingToolError, StorageError
from mobileclip.evaluation.clip_benchmark import open_all, open_benchmark
from mobileclip.evaluation.datasets import Example, open_dataset
from mobileclip.evaluation.tasks import Task, run


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(layouts, tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder with copies of the published layouts, and its address as a `root`."""
    for source in (layouts.published, layouts.published_retrieval):
        shutil.copytree(source, tmp_path / source.name)
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{http.server_port}/{{dataset_cleaned}}"
    http.shutdown()
    http.server_close()


def test_shards_from_a_server_score_as_our_own_reader_does(layouts, nano_encoder, server):
    _, root = server
    for name, folder in (("wds/published", layouts.published), ("wds/published/retrieval", layouts.published_retrieval)):
        remote, local = open_benchmark(name, root), open_dataset(str(folder))
        assert (remote.classes, remote.templates) == (local.classes, local.templates)
        theirs, ours = (run(nano_encoder, data, Task(), 0.0, lambda step: None) for data in (remote, local))
        assert theirs == ours
        assert ours.details["pictures"] == 10


def test_local_shards_are_read_by_our_own_reader(layouts):
    root = str(layouts.published.parent / "{dataset}")
    assert len([e for e in open_benchmark("wds/published", root).read() if isinstance(e, Example)]) == 10


class Harmful:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth"])
def test_a_pickle_in_a_remote_shard_is_not_run(server, extension):
    folder, root = server
    victim = folder / "victim"
    content = pickle.dumps(Harmful(victim))
    write_shard(folder / "published" / "test" / "0.tar", [("a", {"cls": b"0", extension: content})])
    with pytest.raises(InputError, match=r"published: clip_benchmark cannot read it .*not allowed for security reasons"):
        list(open_benchmark("wds/published", root).read())
    assert not victim.exists()
    pickle.loads(content)
    assert victim.exists()  # it would have been harmful


def test_a_remote_shard_without_its_data(server):
    folder, root = server
    with pytest.raises(StorageError, match="absent: clip_benchmark cannot get it"):
        open_benchmark("wds/absent", root)
    (folder / "published" / "test" / "0.tar").unlink()
    with pytest.raises(InputError, match="published: clip_benchmark cannot read it"):
        list(open_benchmark("wds/published", root).read())


def test_a_data_set_of_the_package_itself(layouts, tmp_path, nano_encoder):
    """The package takes `fer2013` from a folder for each class, without asking the network when it is there."""
    names = ("0-angry", "1-disgusted", "2-afraid", "3-happy", "4-neutral")
    for source, target in zip(sorted(p for p in layouts.folders.iterdir()), names, strict=True):
        shutil.copytree(source, tmp_path / "fer2013" / "test" / target)
    data = open_benchmark("fer2013", str(tmp_path / "{dataset}"))
    assert (len(data.classes), data.classes[3]) == (7, "happy")
    assert all("{}" in template for template in data.templates)
    score = run(nano_encoder, data, Task(), 0.0, lambda step: None)
    assert (score.details["pictures"], score.details["classes"], score.details["templates"]) == (10, 7, len(data.templates))
    assert 0 <= score.metrics["acc1"] <= score.metrics["acc5"] <= 1


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("cifar11", None, "Unsupported dataset: cifar11"),
        ("sugar_crepe/add_att", None, "choosing between captions cannot be scored"),
        ("wds/x", "http://127.0.0.1/a'; touch /tmp/x; '", "apostrophe"),
    ],
)
def test_what_cannot_be_scored(name, root, message):
    with pytest.raises(InputError, match=message):
        open_benchmark(name, root)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match=r"mobileclip-toolkit\[clip-benchmark\]"):
        open_benchmark("cifar10")


def test_data_sets_by_their_keys(layouts):
    root = str(layouts.published.parent / "{dataset_cleaned}")
    assert list(open_all(root, ["wds/published", "wds/published/retrieval"], None)) == ["published", "published/retrieval"]
    assert list(open_all(str(layouts.folders), (), "vtab/flowers")) == ["vtab/flowers"]
    with pytest.raises(InputError, match="--key is for one"):
        open_all(root, ["wds/a", "wds/b"], "c")
    with pytest.raises(InputError, match="no data set; give --data"):
        open_all(None, (), None)
