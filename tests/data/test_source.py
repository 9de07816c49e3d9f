"""What a user may name as data."""

from __future__ import annotations

import http.server
import json
import tarfile
import threading

import pytest

from mobileclip.data.samples import BadSample
from mobileclip.data.shards import read_entry, write_shard
from mobileclip.data.source import find_shards, opened
from mobileclip.errors import InputError, StorageError


def names(*places):
    return [place.rpartition("/")[2] for shard in find_shards(*places) for place in shard.places]


@pytest.fixture
def folder(tmp_path):
    for n in range(12):
        write_shard(tmp_path / f"{n:03}.tar", [(f"{i:032x}", {"txt": f"{n}/{i}".encode()}) for i in range(3)])
    return tmp_path


def test_patterns(folder):
    assert names([str(folder)]) == [f"{n:03}.tar" for n in range(12)]
    assert names([f"{folder}/00*.tar"]) == [f"{n:03}.tar" for n in range(10)]
    assert names([f"{folder}/{{008..011}}.tar", f"{folder}/000.tar"]) == ["008.tar", "009.tar", "010.tar", "011.tar", "000.tar"]
    assert names(["s3://bucket/{0..1}/{00..01}.tar"]) == ["00.tar", "01.tar", "00.tar", "01.tar"]


@pytest.mark.parametrize("pattern", ["absent", "absent-*.tar", "{000..013}.tar", "x.csv", "{9..1}.tar", "{0..99999999}.tar"])
def test_absent(folder, pattern):
    with pytest.raises(InputError, match=r"no such shard|no range"):
        find_shards([f"{folder}/{pattern}"])


def test_a_shard_named_twice(folder):
    """It would be read twice without a word."""
    with pytest.raises(InputError, match=r"003\.tar: is named twice"):
        find_shards([str(folder), f"{folder}/003.tar"])


def test_joined_by_key(folder, tmp_path):
    """Members of both; what only one side has is counted as bad, and nothing is lost."""
    other = tmp_path / "other" / "000.tar"
    write_shard(other, [(f"{i:032x}", {"syn.json": b"{}", "txt": b"not taken"}) for i in (0, 2, 7)])
    (shard,) = find_shards([f"{folder}/005.tar"], [str(other)])
    with opened(shard) as entries:
        good = [read_entry(e).members for e in entries if not e.bad]
        bad = [(e.key, e.bad) for e in entries if e.bad]
    assert good == [{"txt": b"5/0", "syn.json": b"{}"}, {"txt": b"5/2", "syn.json": b"{}"}]
    assert bad == [(f"{1:032x}", "not_joined"), (f"{7:032x}", "not_joined")]
    with pytest.raises(InputError, match="equally many, got 12 and 1"):
        find_shards([str(folder)], [str(other)])


def test_each_sample_of_a_join_counts_once(tmp_path):
    """Also where one side is bad or has it twice."""
    write_shard(tmp_path / "a.tar", [(f"{i:032x}", {"txt": b"x"}) for i in (1, 2)])
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in (f"p/{1:032x}.json", f"q/{1:032x}.json", f"{2:032x}.json", f"{2:032x}.json"):
            tar.addfile(tarfile.TarInfo(name))
    (shard,) = find_shards([f"{tmp_path}/a.tar"], [f"{tmp_path}/b.tar"])
    with opened(shard) as entries:
        assert sorted(e.bad or "" for e in entries) == ["", "damaged_shard", "duplicate"]


def test_half_written_shards_are_not_seen(folder):
    (folder / ".mobileclip-tmp-x.tar").write_bytes(b"half")
    assert names([str(folder)]) == [f"{n:03}.tar" for n in range(12)]


def table(tmp_path, name, text):
    (tmp_path / "a.png").write_bytes(b"picture a")
    (tmp_path / "b.jpg").write_bytes(b"picture b")
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    (shard,) = find_shards([str(path)])
    with opened(shard) as entries:
        return [e.bad or (read_entry(e).image(), read_entry(e).captions()) for e in entries]


def test_csv(tmp_path):
    text = 'filepath,title\na.png,"a cat, black"\nb.jpg,"two\nlines"\nabsent.png,x\na.png, \nb.txt,x\n'
    wanted = [(b"picture a", ["a cat, black"]), (b"picture b", ["two\nlines"]), "no_image", "no_caption", "no_image"]
    assert table(tmp_path, "x.csv", text) == wanted
    assert table(tmp_path, "x.tsv", "image\tcaption\na.png\ta cat\n") == [(b"picture a", ["a cat"])]


def test_json_lines(tmp_path):
    rows = [{"image": "a.png", "caption": ["one", "two", 3]}, {"image": "b.jpg", "caption": "three"}, {"image": None}, {"image": "a\0"}]
    wanted = [(b"picture a", ["one", "two"]), (b"picture b", ["three"]), "no_image", "no_image"]
    assert table(tmp_path, "x.jsonl", "\n\n".join(map(json.dumps, rows))) == wanted


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "picture,words\na,b\n", "no column for the picture file; name it one of image"),
        ("x.csv", "image,words\na,b\n", "no column for the caption"),
        ("x.csv", 'image,caption\na.png,"never closed\nb.jpg,lost without a word\n', r"x\.csv:2: "),
        ("x.jsonl", '{"image": "a.png", "caption": "x"}\n[1]\n', "x.jsonl:2: is not a JSON object"),
        ("x.jsonl", "[" * 100_000, "x.jsonl:1: is not a JSON object"),
    ],
)
def test_bad_tables(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        table(tmp_path, name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", b"image,caption\na.png,caf\xe9\nb.jpg,fine\n"),
        ("x.jsonl", b'{"image": "a.png", "caption": "caf\xe9"}\n\xef\xbb\xbf{"image": "b.jpg", "caption": "fine"}\n'),
    ],
)
def test_a_caption_that_is_not_utf8_is_one_bad_sample(tmp_path, name, text):
    (tmp_path / "a.png").write_bytes(b"picture a")
    (tmp_path / "b.jpg").write_bytes(b"picture b")
    (tmp_path / name).write_bytes(text)
    (shard,) = find_shards([str(tmp_path / name)])
    with opened(shard) as entries:
        bad, good = (read_entry(e) for e in entries)
    with pytest.raises(BadSample, match="not_utf8"):
        bad.captions()
    assert good.captions() == ["fine"]


@pytest.fixture
def served(folder):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_urls(served):
    shards = find_shards([f"{served}/{{000..001}}.tar"])
    with opened(shards[1]) as entries:
        assert [read_entry(e).members["txt"] for e in entries] == [b"1/0", b"1/1", b"1/2"]
    (missing,) = find_shards([f"{served}/absent.tar"])
    with pytest.raises(StorageError, match="cannot be fetched"), opened(missing):
        pass


@pytest.mark.parametrize(
    ("place", "message"),
    [("s3://bucket/*.tar", r"only local patterns take \*; .* like \{000\.\.099\}"), ("https://host/a.csv", "pictures lie beside it")],
)
def test_places_that_cannot_be_urls(place, message):
    with pytest.raises(InputError, match=message):
        find_shards([place])


@pytest.mark.parametrize("place", ["nosuchscheme://x/y.tar", "pipe:exit 1"])
def test_unreachable(place):
    (shard,) = find_shards([place])
    with pytest.raises((InputError, StorageError)), opened(shard):
        pass
