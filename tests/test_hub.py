"""Pulling weights: every test talks real HTTP to a local server, each pull in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from fake_hub import FakeHub

from mobileclip import hub as hub_module
from mobileclip import specs
from mobileclip.errors import InputError

REPO, NAME = "apple/MobileCLIP-S0", "mobileclip_s0.pt"
CHUNK = 10 << 20  # huggingface_hub writes in pieces of 10 MiB
BIG = random.Random(0).randbytes(24 << 20)
SMALL = random.Random(1).randbytes(50_000)

DRIVER = """
import json, resource, sys
from mobileclip.errors import MobileClipError
from mobileclip.hub import cached, pull
for line in sys.stdin:
    request = json.loads(line)
    resource.setrlimit(resource.RLIMIT_FSIZE, (request.pop("limit_bytes"), resource.RLIM_INFINITY))
    seen = []
    try:
        path = pull(**request, on_progress=lambda done, total: seen.append([done, total]))
        found = cached(request["repo_id"], request["filename"], revision=request["revision"])
        answer = {"path": str(path), "cached": str(found), "progress": seen}
    except MobileClipError as e:
        answer = {"error": type(e).__name__, "exit_code": e.exit_code, "message": str(e)}
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Client:
    """A user's machine: one HF_HOME, one process per environment (the library reads its variables once)."""

    home: Path
    endpoint: str
    bytecode: Path
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def process(self, env: dict[str, str], number: int = 0) -> subprocess.Popen[str]:
        mine = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.endpoint, "NO_PROXY": "127.0.0.1"} | env
        key = json.dumps([number, mine], sort_keys=True)
        if key not in self.processes:
            theirs = ("HF_", "HUGGING", "TRANSFORMERS_", "PYTHONDONTWRITEBYTECODE")
            others = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
            others |= {"PYTHONPYCACHEPREFIX": str(self.bytecode)}  # compile the library once, not once a process
            self.processes[key] = subprocess.Popen(
                [sys.executable, "-c", DRIVER], env=others | mine, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True
            )
        return self.processes[key]

    def start(self, env: dict[str, str], number: int = 0, **request: Any) -> subprocess.Popen[str]:
        process = self.process(env, number)
        assert process.stdin is not None
        request = {"repo_id": REPO, "filename": NAME, "revision": "main", "limit_bytes": 1 << 40} | request
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return process

    def run(self, env: dict[str, str] | None = None, **request: Any) -> dict[str, Any]:
        return finish(self.start(env or {}, **request))

    def pull(self, env: dict[str, str] | None = None, **request: Any) -> Path:
        answer = self.run(env, **request)
        assert "path" in answer, answer
        assert answer["cached"] == answer["path"]
        return Path(answer["path"])

    def fail(self, error: str, env: dict[str, str] | None = None, **request: Any) -> str:
        answer = self.run(env, **request)
        assert answer.get("error") == error, answer
        assert answer["exit_code"] == {"InputError": 2, "StorageError": 5}[error]
        assert "\n" not in answer["message"]
        return str(answer["message"])

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()
        self.processes.clear()

    def blobs(self) -> list[str]:
        """Whole files in the cache, and links to them."""
        names = [p for p in self.home.glob("hub/models--*/blobs/*") if p.suffix != ".incomplete"]
        return sorted(p.name for p in names + list(self.home.glob("hub/models--*/snapshots/*/**/*.pt")))

    def partial_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.home.glob("hub/models--*/blobs/*.incomplete"))


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    answer: dict[str, Any] = json.loads(line)
    return answer


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub().running() as hub:
        yield hub


@pytest.fixture
def client(hub: FakeHub, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(tmp_path / "home", hub.url, tmp_path_factory.getbasetemp() / "bytecode")
    yield client
    client.kill()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- the good way


def test_pull_follows_the_redirect_checks_and_works_offline_afterwards(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, BIG)
    answer = client.run({"HF_TOKEN": "hf_secret"})
    path = Path(answer["path"])
    assert path.read_bytes() == BIG
    assert path.is_relative_to(client.home)
    assert answer["progress"] == [[CHUNK, len(BIG)], [2 * CHUNK, len(BIG)], [len(BIG), len(BIG)]]
    assert {r.authorization for r in hub.log if r.server == "hub"} == {"Bearer hf_secret"}
    assert [(r.method, r.authorization) for r in hub.log if r.server == "cdn"] == [("GET", None)]

    requests = len(hub.log)
    assert client.pull() == path
    assert [r.method for r in hub.log[requests:]] == ["HEAD"]  # asked, nothing transferred

    requests = len(hub.log)
    assert client.pull(sha256=sha256(BIG)) == path
    assert client.pull({"HF_HUB_OFFLINE": "1"}) == path
    assert len(hub.log) == requests

    client.endpoint = f"http://127.0.0.1:{free_port()}"
    assert client.pull() == path


def test_small_file_outside_lfs_is_checked_by_its_git_checksum(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, "configs/open clip.json", b"{}", lfs=False)
    assert client.pull(filename="configs/open clip.json", sha256=sha256(b"{}")).read_bytes() == b"{}"
    wrong = client.fail("StorageError", filename="configs/open clip.json", sha256="0" * 64)
    assert "expected " + "0" * 64 in wrong


def test_endpoint_behind_a_redirect_on_its_own_host(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    hub.mirror = True
    client.endpoint += "/mirror/"
    assert client.pull().read_bytes() == SMALL
    assert any(r.path.startswith("/mirror/") for r in hub.log)


def test_xet_is_announced_and_plain_http_is_used(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    hub.headers = {"X-Xet-Hash": "ab" * 32, "Link": f'<{hub.url}/xet-token>; rel="xet-auth"'}
    assert client.pull().read_bytes() == SMALL
    assert not [r for r in hub.log if "xet" in r.path]
    assert len(hub.bodies()) == 1


def test_without_symlinks(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    env = {"HF_HUB_DISABLE_SYMLINKS": "1"}
    path = client.pull(env)
    assert not path.is_symlink()
    assert client.pull(env | {"HF_HUB_OFFLINE": "1"}) == path
    path.write_bytes(SMALL[:-1])
    assert "damaged" in client.fail("StorageError", env | {"HF_HUB_OFFLINE": "1"})


def test_blob_in_a_store_shared_between_repositories(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    path = client.pull()
    store = client.home / "hub" / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob = path.parent / os.readlink(path)
    blob.rename(store)
    blob.symlink_to(store)
    assert client.pull({"HF_HUB_OFFLINE": "1"}) == path
    assert client.pull() == path
    assert len(hub.bodies()) == 1


def test_new_commit_is_fetched_and_the_old_one_can_be_pinned(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    first, commit = client.pull(), hub.commit
    hub.commit = "d" * 40
    hub.add(REPO, NAME, SMALL[::-1])
    assert client.pull().read_bytes() == SMALL[::-1]
    assert client.run({"HF_HUB_OFFLINE": "1"}, revision=commit)["path"] == str(first)


def test_two_pulls_at_once_transfer_once(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, BIG)
    hub.bytes_per_s = 16e6
    answers = [finish(p) for p in [client.start({}, number) for number in range(2)]]
    assert answers[0]["path"] == answers[1]["path"]
    assert Path(answers[0]["path"]).read_bytes() == BIG
    assert len(hub.bodies()) == 1


# --- interrupted


def test_killed_download_resumes_in_the_next_process(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, BIG)
    hub.stalls, hub.cut_after = True, 16 << 20
    client.start({})
    deadline = time.monotonic() + 30
    while client.partial_bytes() < CHUNK and time.monotonic() < deadline:
        time.sleep(0.02)
    client.kill()
    assert client.blobs() == []
    assert client.partial_bytes() == CHUNK

    hub.stalls = False
    answer = client.run()
    assert Path(answer["path"]).read_bytes() == BIG
    assert answer["progress"] == [[2 * CHUNK, len(BIG)], [len(BIG), len(BIG)]]
    assert [(r.range, r.status) for r in hub.bodies()] == [(None, 200), (f"bytes={CHUNK}-", 206)]
    assert client.partial_bytes() == 0


def test_reset_connection_is_an_error_and_the_next_pull_resumes(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, BIG)
    hub.cuts, hub.cut_after, hub.reset = 1, 22 << 20, True
    message = client.fail("StorageError")
    assert f"of {len(BIG)} bytes" in message
    assert "run again to resume" in message
    assert client.pull().read_bytes() == BIG
    assert [r.range for r in hub.bodies()] == [None, f"bytes={2 * CHUNK}-"]


def test_closed_connection_resumes_within_the_same_pull(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, BIG)
    hub.cuts, hub.cut_after = 1, 12 << 20
    assert client.pull().read_bytes() == BIG
    assert [r.range for r in hub.bodies()] == [None, f"bytes={CHUNK}-"]


@pytest.mark.parametrize("tail", [b"", b"longer than the file on the Hub"], ids=["same size", "too long"])
def test_stale_partial_file_is_never_handed_out(hub: FakeHub, client: Client, tail: bytes) -> None:
    file = hub.add(REPO, NAME, SMALL)
    partial = client.home / "hub" / "models--apple--MobileCLIP-S0" / "blobs" / f"{file.checksum}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(SMALL[::-1] + tail)
    if not tail:
        assert "damaged" in client.fail("StorageError")
    assert client.pull().read_bytes() == SMALL


# --- wrong bytes


def test_corrupted_body_leaves_nothing(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    hub.corrupt = True
    assert "damaged" in client.fail("StorageError")
    assert client.blobs() == []
    assert client.partial_bytes() == 0
    hub.corrupt = False
    assert client.pull().read_bytes() == SMALL


def test_truncated_body_leaves_nothing(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    hub.short_by = 1
    assert "another size" in client.fail("StorageError")
    assert client.blobs() == []
    assert client.partial_bytes() == 0


def test_pinned_checksum_refuses_before_downloading(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    assert f"expected {'0' * 64}" in client.fail("StorageError", sha256="0" * 64)
    assert hub.bodies() == []
    client.pull()
    assert f"expected {'0' * 64}" in client.fail("StorageError", {"HF_HUB_OFFLINE": "1"}, sha256="0" * 64)
    assert len(client.blobs()) == 2  # the Hub's own file is intact and stays


def test_damaged_cache_is_refused_offline_and_mended_online(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    path = client.pull()
    path.write_bytes(SMALL[:-1])
    assert client.pull().read_bytes() == SMALL
    path.write_bytes(SMALL[:-1] + b"?")
    assert "damaged" in client.fail("StorageError", {"HF_HUB_OFFLINE": "1"})
    assert client.blobs() == []


def test_answers_without_usable_checksum_or_commit(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, "config.json", b"{}", lfs=False)
    for hub.withheld in ({"X-Repo-Commit"}, {"ETag"}):
        assert "no commit or no checksum" in client.fail("StorageError", filename="config.json")
    hub.withheld = set()
    for hub.headers in ({"ETag": '"../../../evil"'}, {"X-Repo-Commit": "../../evil"}):
        assert "no commit or no checksum" in client.fail("StorageError", filename="config.json")
    assert client.blobs() == []


# --- refused, away, full


def test_http_errors(hub: FakeHub, client: Client) -> None:
    for status, code, error, text in (
        (403, "GatedRepo", "InputError", "is gated; accept its terms"),
        (401, "GatedRepo", "InputError", "hf auth login"),
        (401, "", "InputError", "hf auth login"),
        (403, "", "InputError", "refuses access (403)"),
        (429, "", "StorageError", "answered 429"),
        (503, "", "StorageError", "answered 503"),
    ):
        hub.status = (status, code)
        assert text in client.fail(error)


def test_cached_copy_serves_while_the_hub_is_down(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    path = client.pull()
    hub.status = (503, "")
    assert client.pull() == path
    hub.status = (404, "EntryNotFound")
    assert "has no file" in client.fail("InputError")


def test_unknown_repository_revision_and_file(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    assert "is not at http://127.0.0.1" in client.fail("InputError", repo_id="apple/Nothing")
    assert "no revision 'v9'" in client.fail("InputError", revision="v9")
    assert f"has no file 'x.pt' at revision 'main'; see {hub.url}/{REPO}/tree/main" in client.fail("InputError", filename="x.pt")


def test_refused_body(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    hub.body_status = 500
    assert "answered 500" in client.fail("StorageError")
    assert client.blobs() == []


def test_offline_and_not_cached(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    assert "is not in the cache and HF_HUB_OFFLINE is set" in client.fail("InputError", {"HF_HUB_OFFLINE": "1"})
    assert hub.log == []


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_nobody_listens(client: Client) -> None:
    client.endpoint = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    message = client.fail("StorageError")
    assert "cannot reach http://127.0.0.1" in message
    assert "run again to resume" in message
    assert time.monotonic() - start < 20


def test_silent_server_is_given_up(hub: FakeHub, client: Client) -> None:
    hub.hangs = True
    start = time.monotonic()
    assert "cannot reach" in client.fail("StorageError", {"HF_HUB_ETAG_TIMEOUT": "1"})
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("endpoint", ["http://host:port", "huggingface.co", "http://[1", "file:///x"])
def test_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(InputError, match="is not an address"):
        hub_module.pull(REPO, NAME)


def test_write_error_keeps_what_was_written(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, BIG)
    message = client.fail("StorageError", limit_bytes=15 << 20)
    assert "cannot be used (file too large)" in message
    assert "free some space or set HF_HOME" in message
    assert client.blobs() == []
    assert client.pull().read_bytes() == BIG
    assert hub.bodies()[1].range is not None


def test_disk_without_room_is_refused_before_the_download(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, "big.json", b"{}", lfs=False)
    hub.headers = {"X-Linked-Size": str(10**18)}
    assert "1000000000000 MB are needed" in client.fail("StorageError", filename="big.json")
    assert hub.bodies() == []


def test_home_that_is_a_file(hub: FakeHub, client: Client) -> None:
    hub.add(REPO, NAME, SMALL)
    client.home.write_bytes(b"")
    assert "cannot be used (not a directory)" in client.fail("StorageError")


# --- names and terms


@pytest.mark.parametrize(
    "request_",
    [
        {"filename": "../x.pt"},
        {"filename": "a/../../x.pt"},
        {"filename": "/etc/passwd"},
        {"filename": "a\\..\\x.pt"},
        {"filename": "a\0b"},
        {"filename": ""},
        {"repo_id": "../x"},
        {"repo_id": "a/b/c"},
        {"repo_id": ""},
        {"revision": "../../x"},
        {"revision": "a/./b"},
        {"revision": ""},
        {"sha256": "ABC"},
    ],
)
def test_unusable_names_are_refused(request_: dict[str, str]) -> None:
    request: dict[str, Any] = {"repo_id": REPO, "filename": NAME} | request_
    with pytest.raises(InputError, match="is not a"):
        hub_module.pull(**request)


def test_licence_is_remembered_by_repository_in_hf_home(tmp_path: Path) -> None:
    code = (
        "from mobileclip.hub import licence_shown as shown, mark_licence_shown as mark\n"
        f"print(shown({REPO!r})); mark({REPO!r}); mark({REPO!r}); print(shown({REPO!r}), shown('apple/MobileCLIP-S1'))"
    )
    env = os.environ | {"HF_HOME": str(tmp_path / "home")}
    outputs = [subprocess.check_output([sys.executable, "-c", code], env=env, text=True) for _ in range(2)]
    assert outputs == ["False\nTrue False\n", "True\nTrue False\n"]


def test_every_published_licence_has_a_summary_of_three_lines() -> None:
    licences = {m.weights.licence for m in specs.REGISTRY.values() if m.weights is not None}
    assert licences <= hub_module.LICENCE_TERMS.keys()
    for terms in hub_module.LICENCE_TERMS.values():
        assert len(terms.splitlines()) == 3
        assert "https://" in terms


def test_command_shows_the_licence_once_and_prints_where_the_file_is(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, NAME, SMALL)
    code = "import sys; sys.argv = ['mobileclip', 'pull', 'MobileCLIP-S0', '--json']; from mobileclip.cli.main import main; main()"
    others = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env = others | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
    first, second = (subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert "research" in first.stderr
    assert "research" not in second.stderr
    path = Path(json.loads(second.stdout)["mobileclip_s0"])
    assert path.read_bytes() == SMALL
