"""Packages to shards: joins, splits, exact counts, equal bytes, interruption."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import packs
import pytest
from PIL import Image

from mobileclip.cli import main
from mobileclip.data import emoji, fetch
from mobileclip.data.fetch import Fetched
from mobileclip.data.items import held_out, shuffled
from mobileclip.data.shards import read_shard
from mobileclip.errors import InputError, MissingToolError, StorageError


def quiet(_: str) -> None:
    pass


def samples(out: Path, split: str) -> dict[str, tuple[Image.Image, str, dict]]:
    """All samples of a split by their uid."""
    found = {}
    for shard in sorted((out / split).glob("*.tar")):
        for sample in read_shard(shard):
            image = Image.open(io.BytesIO(sample.members["webp"]))
            found[sample.key] = (image, sample.members["txt"].decode(), json.loads(sample.members["json"]))
    return found


def content(out: Path) -> dict[str, bytes]:
    """Every file of the data set but the downloads."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and "packages" not in p.parts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def sources(folder):
    return {"emoji": packs.emoji_source(folder)}


def make(out: Path, folder: Path, sources: dict, **options) -> Fetched:
    return fetch.fetch("emoji", out, quiet, folder=folder, sources=sources, pixels=32, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory, folder, sources) -> Fetched:
    return make(tmp_path_factory.mktemp("made") / "emoji", folder, sources)


def test_counts_are_exact(made):
    counts = made.dataset["counts"]
    assert {style: c["written"] for style, c in counts.items()} == {"held": 2, "coded": 10, "labelled": 3, "dashless": 2}
    for c in counts.values():
        assert c["present"] == len(packs.LABELS) == c["written"] + sum(c["skipped"].values())
        assert c["written"] == sum(c["splits"].values())
    stored = {split: samples(made.path, split) for split in made.dataset["splits"]}
    for split, found in stored.items():
        assert made.dataset["splits"][split]["samples"] == len(found) == sum(c["splits"].get(split, 0) for c in counts.values())
        assert all(uid == about["uid"] and about["split"] == split for uid, (_, _, about) in found.items())
    assert len({uid for found in stored.values() for uid in found}) == 17


def test_samples_say_what_they_show(made):
    held = {about["concept"]: (image, caption, about) for image, caption, about in samples(made.path, "val-style").values()}
    image, caption, about = held["1f436"]
    assert caption == "dog face"
    assert (image.size, image.mode) == ((32, 32), "RGB")
    assert image.getpixel((16, 16)) == (255, 0, 0)
    assert about == {
        "uid": about["uid"], "concept": "1f436", "label": "dog face", "tags": ["thing", "good boy"], "group": "animals-nature",
        "subgroup": "animal-mammal", "style": "held", "split": "val-style", "licence": "MIT", "source": "held@1.0",
    }  # fmt: skip
    assert set(held) == {"1f436", "2764"}  # U+FE0F is in one package and not in the other; an alias leads to the drawing


def test_an_alias_may_mirror_its_parent(made):
    everything = samples(made.path, "train") | samples(made.path, "val-concept")
    image = next(image for image, _, about in everything.values() if about["concept"] == "1f449")
    assert (image.getpixel((4, 16)), image.getpixel((28, 16))) == ((255, 255, 255), (255, 0, 0))


def test_splits_share_no_concept(made):
    train, unseen = ({about["concept"] for _, _, about in samples(made.path, s).values()} for s in ("train", "val-concept"))
    table = [json.loads(line) for line in (made.path / "concepts.jsonl").read_text().splitlines()]
    assert not train & unseen
    assert unseen == {row["concept"] for row in table if row["held_out"]}
    assert len(table) == len(packs.LABELS)
    assert len(unseen) == 1


def test_pictures_are_laid_on_white(tmp_path, folder, sources):
    done = make(tmp_path / "d", folder, sources, styles=["rendered"])
    found = {about["concept"]: image for s in done.dataset["splits"] for image, _, about in samples(done.path, s).values()}
    assert found["1f436"].getpixel((16, 16)) == (0, 0, 255)
    assert found["2764"].getpixel((16, 16)) == (255, 255, 255)


def test_layout(made):
    assert {p.name for p in made.path.iterdir()} >= {"train", "val-concept", "val-style", "dataset.json", "NOTICE", "concepts.jsonl"}
    lines = [json.loads(line) for line in (made.path / "train" / "manifest.jsonl").read_text().splitlines()]
    assert lines == [{"shard": "00000", "num_uids": made.dataset["splits"]["train"]["samples"]}]
    with tarfile.open(made.path / "train" / "00000.tar") as tar:
        names = tar.getnames()
    assert [n.split(".")[1] for n in names[:3]] == ["json", "txt", "webp"]
    assert all(len(n.split(".")[0]) == 32 for n in names)
    assert "held 1.0: held by us. Licence: MIT." in (made.path / "NOTICE").read_text()
    assert {p["name"]: p["sha256"] for p in made.dataset["packages"]}.keys() == {"names", "words", "held", "coded", "labelled", "dashless"}


def test_shards_are_full_and_mixed(tmp_path, folder, sources, monkeypatch):
    monkeypatch.setattr(fetch, "SHARD_SAMPLES", 4)
    done = make(tmp_path / "d", folder, sources)
    train = done.dataset["splits"]["train"]
    assert [s["samples"] for s in train["shards"]] == [4] * (train["samples"] // 4) + [train["samples"] % 4] * (train["samples"] % 4 > 0)
    styles = [about["style"] for _, _, about in samples(done.path, "train").values()]
    assert styles != sorted(styles)


def test_equal_arguments_give_equal_bytes(tmp_path, made, folder, sources):
    again = make(tmp_path / "again", folder, sources)
    assert content(again.path) == content(made.path)
    other = make(tmp_path / "other", folder, sources, seed=1)
    assert content(other.path) != content(made.path)


def test_what_is_whole_is_not_made_again(tmp_path, made, folder, sources):
    out = tmp_path / "d"
    shutil.copytree(made.path, out)
    before = content(out)
    assert make(out, folder, sources).already_there
    (out / "train" / "00000.tar").write_bytes(b"damaged")
    (out / "val-style" / "00007.tar").write_bytes(b"of an older data set")
    assert not make(out, folder, sources).already_there
    assert content(out) == before


def test_a_folder_of_other_things_is_refused(tmp_path, folder, sources):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="choose an empty folder"):
        make(tmp_path, folder, sources)
    assert (tmp_path / "train" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"styles": ["coded", "helt"]}, "did you mean 'held'"), ({"pixels": 4}, "16 to 1024"), ({"name": "emojis"}, "did you mean 'emoji'")],
)
def test_wrong_arguments(tmp_path, folder, sources, options, message):
    arguments = {"name": "emoji", "pixels": 32, **options}
    with pytest.raises(InputError, match=message):
        fetch.fetch(out=tmp_path / "d", progress=quiet, folder=folder, sources=sources, **arguments)


def test_too_many_bad_drawings_stop_the_run(tmp_path):
    bad = packs.iconify(tmp_path / "p", "bad", {"dog-face": "<image href='/etc/hostname'/>", "red-heart": packs.RED})
    source = packs.partial(emoji.collect, **packs.names(tmp_path / "p"), styles={"bad": emoji.Style(bad, "train")})
    with pytest.raises(InputError, match=r"1 of 2 samples are bad .* more than the allowed 1\.00%"):
        make(tmp_path / "d", tmp_path / "p", {"emoji": source})
    assert {p.name for p in (tmp_path / "d").iterdir()} == {".mobileclip-data"}


def test_clipart(tmp_path):
    png = {f"animals/cat_{i:02d}": packs.picture(f"#0000{i:02x}", kind="PNG") for i in range(19)}
    about = {name: packs.svg_about(f"Cat {i}", "cat", "unsorted", "hash(0x12f)", "house_cat") for i, name in enumerate(png)}
    for i in range(8):
        png[f"food/nice-cake_0{i}"], about[f"food/nice-cake_0{i}"] = packs.picture(kind="PNG"), packs.svg_about("Various Cliparts")
    png["shapes/star"], about["shapes/star"] = packs.picture(kind="PNG"), packs.svg_about("star")
    png["animals/eel"], about["animals/eel"] = packs.picture("red", (200, 40), "PNG"), packs.svg_about("eel")
    png["animals/ant"], about["animals/ant"] = packs.picture("red", (8, 8), "PNG"), packs.svg_about("ant")
    png["animals/yak"], about["animals/yak"] = packs.picture("red", (4001, 4000), "PNG"), packs.svg_about("yak")
    png["animals/nameless"], about["animals/nameless"] = packs.picture(kind="PNG"), packs.svg_about(" ")
    png["animals/wide"], about["animals/wide"] = packs.picture("red", (128, 64), "PNG"), packs.svg_about("wide")
    page = Image.new("RGBA", (100, 100))
    page.paste("black", (60, 60, 92, 92))
    file = io.BytesIO()
    page.save(file, "PNG")
    png["animals/my_dog_3"], about["animals/my_dog_3"] = file.getvalue(), packs.svg_about("Clipart by Ann")
    link = tarfile.TarInfo("./usr/share/openclipart/png/animals/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "cat_00.png"
    png["animals/link"] = link
    sources = {"clipart": packs.clipart_source(tmp_path / "p", png, about)}
    done = fetch.fetch("clipart", tmp_path / "d", quiet, folder=tmp_path / "p", sources=sources, pixels=32)
    counts = done.dataset["counts"]["clipart"]
    assert counts["skipped"] == {"left_out": 3, "no_caption": 1, "too_large": 1}
    assert (counts["present"], counts["written"]) == (len(png) - 1, 29)
    assert sum(counts["splits"].values()) == 29
    everything = [s for split in done.dataset["splits"] for s in samples(done.path, split).values()]
    captions = Counter(caption for _, caption, _ in everything)
    assert captions["nice cake"] == 8  # the file's name, where the title is a collection's
    tags = next(about["tags"] for _, caption, about in everything if caption == "Cat 3")
    assert tags == ["cat", "house cat"]
    assert captions["my dog"] == 1  # as this title names its artist only
    assert next(image for image, caption, _ in everything if caption == "my dog").getpixel((1, 1)) == (0, 0, 0)  # empty margins are cut off
    wide = next(image for image, caption, _ in everything if caption == "wide")
    assert [wide.getpixel((16, y)) for y in (4, 16, 28)] == [(255, 255, 255), (255, 0, 0), (255, 255, 255)]


def test_draws_are_stable():
    """Those of the split that results are published on."""
    names = [f"n{i}" for i in range(1914)]
    assert len(held_out(names, 0.1, 0)) == 191
    assert shuffled(names, 0)[:3] == ["n1728", "n950", "n1278"]
    assert held_out(reversed(names), 0.1, 0) == held_out(names, 0.1, 0) != held_out(names, 0.1, 1)


def client(folder: Path, script: str) -> Path:
    """A program `npm` that does what the script says."""
    folder.mkdir(exist_ok=True)
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return folder


def test_downloads_are_kept_and_used_offline(tmp_path, folder, sources, monkeypatch):
    copy = f'name=$(echo "$4" | sed "s/^@//; s/[/]/-/; s/@/-/"); echo "$4" >> {tmp_path}/asked; cp {folder}/"$name".tgz .'
    monkeypatch.setenv("PATH", f"{client(tmp_path / 'bin', copy)}:{os.environ['PATH']}")
    fetch.fetch("emoji", tmp_path / "d", quiet, sources=sources, pixels=32)
    asked = (tmp_path / "asked").read_text().split()
    assert sorted(asked) == ["coded@1.0", "dashless@1.0", "held@1.0", "labelled@1.0", "names@1.0", "words@1.0"]
    monkeypatch.setenv("PATH", str(client(tmp_path / "bin", "exit 1")))
    assert not fetch.fetch("emoji", tmp_path / "d", quiet, sources=sources, pixels=48).already_there


def test_a_client_that_fails(tmp_path, sources, monkeypatch):
    monkeypatch.setenv("PATH", f"{client(tmp_path / 'bin', 'echo the registry is away >&2; exit 1')}:{os.environ['PATH']}")
    with pytest.raises(StorageError, match=r"names 1\.0: npm could not get it \(the registry is away\); connect, or put names-1\.0\.tgz"):
        fetch.fetch("emoji", tmp_path / "d", quiet, sources=sources)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="npm, which is not installed"):
        fetch.fetch("emoji", tmp_path / "d", quiet, sources=sources)
    assert list((tmp_path / "d" / "packages").iterdir()) == []


INTERRUPTED = """
import os, signal, sys, time
from concurrent.futures.process import _ExecutorManagerThread as Manager
from pathlib import Path
import packs
from mobileclip.data import fetch
def slowly(manager, join=Manager.join_executor_internals):
    print("shutting down", flush=True)
    time.sleep(1)
    join(manager)
Manager.join_executor_internals = slowly
if __name__ == "__main__":
    root = Path(sys.argv[1])
    sources = {"emoji": packs.emoji_source(root / "p")}
    try:
        fetch.fetch("emoji", root / "d", lambda step: print(step, flush=True), folder=root / "p", sources=sources)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("moment", ["reading packages", "rendered", "shutting down"])
def test_ctrl_c_leaves_nothing_half_written(tmp_path, moment):
    (tmp_path / "run.py").write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(Path(packs.__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "run.py", str(tmp_path)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith(moment) for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert {p.name for p in (tmp_path / "d").iterdir()} == {".mobileclip-data"}


KILLED = """
import multiprocessing, os, signal
from mobileclip.data import fetch
from mobileclip.data.items import Item
if __name__ == "__main__":
    items = [Item(str(n), "s", "train", "c", {}, b"no picture") for n in range(200)]
    rendered = fetch._render_all(items, 32, print)
    next(rendered)
    print(*(p.pid for p in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_renderers_end_with_the_main_process(tmp_path):
    (tmp_path / "run.py").write_text(KILLED)
    # they hold the pipe open as long as they live
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split()


def run_cli(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mobileclip", *arguments])
    try:
        main.main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_command(tmp_path, folder, sources, monkeypatch, capsys):
    monkeypatch.setitem(fetch.SOURCES, "emoji", sources["emoji"])
    arguments = ("data", "fetch", "emoji", "-o", str(tmp_path / "d"), "--from", str(folder), "--pixels", "32")
    code, out, err = run_cli(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "rendered 17 of 17 pictures" in err
    assert "8 no_image" in out
    code, out, _ = run_cli(monkeypatch, capsys, *arguments, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["already_there"]
    assert report["counts"]["dashless"]["written"] == 2


def test_command_errors(tmp_path, folder, sources, monkeypatch, capsys):
    arguments = ("data", "fetch", "emoji", "-o", str(tmp_path / "d"))
    code, _, err = run_cli(monkeypatch, capsys, *arguments, "--from", str(tmp_path))
    assert (code, len(err.splitlines())) == (2, 2)
    assert "emojibase-data-17.0.0.tgz: no such file" in err
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run_cli(monkeypatch, capsys, *arguments)
    assert code == 4
    assert "--from" in err


@pytest.mark.slow
def test_the_pinned_packages(tmp_path):
    """Really gets them, and renders every icon."""
    if not shutil.which("npm") or subprocess.run(["npm", "ping"], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("npm or its registry cannot be reached")
    done = fetch.fetch("emoji", tmp_path / "d", quiet)
    written = {style: c["written"] for style, c in done.dataset["counts"].items()}
    counts = {"noto": 1653, "twemoji": 1914, "fluent-emoji-flat": 1595, "fluent-emoji-3d": 1852}
    assert written == {**counts, "emojione": 1330, "noto-v1": 1227, "fxemoji": 467}
    assert not any(c["skipped"].get("bad_image") for c in done.dataset["counts"].values())
