"""Published weights from the Hugging Face Hub: fetched once, checked, and used without a network from then on.

Requests, log-in, redirects and the cache's layout are `huggingface_hub`'s, so its environment variables (HF_ENDPOINT,
HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT) work as everywhere. Its own download
starts again from zero in a new process and never looks at the bytes; so the bytes are collected in a partial file that
outlives the process, checked, and only then put into the cache. Plain HTTP is used, Xet is not: a Hub that offers Xet
serves the same file over HTTP, where a range can be resumed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from mobileclip.errors import InputError, MobileClipError, StorageError
from mobileclip.files import fsync, locked, reading, sha256_file, write_bytes, writing

Progress = Callable[[int, int], None]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")

_APPLE_MODEL_TERMS = (
    "Apple's terms for its machine learning research models: non-commercial research only, not for any product.\n"
    "Models made from the weights (fine-tuned, converted, compressed) fall under the same terms; when passed on, they\n"
    "carry the agreement and its notice. Full text: https://github.com/apple/ml-mobileclip/blob/main/LICENSE_MODELS"
)

# Short name as the Hub tags it -> summary. Apple's repositories carry either tag; the model terms are the same.
LICENCE_TERMS: dict[str, str] = {"apple-amlr": _APPLE_MODEL_TERMS, "apple-ascl": _APPLE_MODEL_TERMS}


@dataclass(frozen=True)
class _Remote:
    """What the Hub says about one file: `checksum` is a sha256 (large files) or a git blob sha1 (small ones)."""

    url: str
    commit: str
    checksum: str
    size_bytes: int | None


def pull(
    repo_id: str,
    filename: str,
    *,
    revision: str = "main",
    sha256: str | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Get one file of a model repository on the Hub; its size and checksum hold when the path is returned.

    A file that is in the cache and has the pinned `sha256` is returned without a request. Otherwise the Hub is asked
    what the file is, and a cached copy that still fits is used; when the Hub cannot be reached any cached copy of the
    revision is. An interrupted download goes on where it stopped, also in another process.

    Args:
        repo_id: `owner/name`.
        filename: Path inside the repository, with `/`.
        revision: Branch, tag or commit.
        sha256: 64 hex digits that the file must have whatever the Hub says.
        on_progress: Called with (bytes so far, bytes in all) while bytes arrive; 0 in all means unknown.

    Returns:
        The file in the Hub cache (below HF_HOME). Read it, do not change it.

    Raises:
        InputError: A name is unusable or not on the Hub, access is refused, or it is not cached in offline mode.
        StorageError: No network and no cached copy, an interrupted download, wrong bytes, a full or read-only disk.
    """
    have = cached(repo_id, filename, revision=revision)
    from huggingface_hub import is_offline_mode

    what = f"{repo_id}/{filename}"
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise InputError(f"{sha256!r} is not a sha256; it has 64 lower-case hex digits")
    if have is not None and (is_offline_mode() or (sha256 is not None and _announced(have) == sha256)):
        return _checked(what, have, sha256)
    if is_offline_mode():
        raise InputError(f"{what} is not in the cache and HF_HUB_OFFLINE is set; unset it and run again to fetch it")
    try:
        try:
            remote = _ask(repo_id, filename, revision)
        except StorageError:
            if have is None:
                raise
            return _checked(what, have, sha256)
        if _SHA256.fullmatch(remote.checksum):
            _check_pin(what, remote.checksum, sha256)
        _fetch(what, _repo_folder(repo_id) / "blobs" / remote.checksum, remote, on_progress)
        path = _linked(repo_id, filename, revision, remote, have)
    except OSError as e:
        raise _disk_error(what, e) from e
    _check_pin(what, sha256_file(path) if sha256 else None, sha256)
    return path


def cached(repo_id: str, filename: str, *, revision: str = "main") -> Path | None:
    """The file in the Hub cache, or None. Nothing is requested and the bytes are not checked; `pull` does that.

    Raises:
        InputError: A name is not usable.
    """
    parts = filename.split("/")
    if "\\" in filename or not filename.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"{filename!r} is not a file name inside a repository; give a relative path without '..'")
    if not _REVISION.fullmatch(revision) or any(part in (".", "..") for part in revision.split("/")):
        raise InputError(f"{revision!r} is not a revision; give a branch, a tag or a commit")
    _check_endpoint()
    _repo_folder(repo_id)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _check_endpoint() -> None:
    """Say what is wrong with HF_ENDPOINT before the library trips over it while it is imported."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        address = urlsplit(endpoint)
        usable = address.scheme in ("http", "https") and address.hostname is not None and address.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"HF_ENDPOINT={endpoint} is not an address; it has the form https://host, correct or unset it")


def licence_shown(repo_id: str) -> bool:
    """Whether `mark_licence_shown` was called for the repository on this machine."""
    return _licence_marker(repo_id).exists()


def mark_licence_shown(repo_id: str) -> None:
    """Remember, next to the weights, that the repository's licence terms were shown.

    Raises:
        StorageError: HF_HOME cannot be written.
    """
    write_bytes(_licence_marker(repo_id), b"shown\n")


def _licence_marker(repo_id: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "mobileclip" / "licence-shown" / _repo_folder(repo_id).name


def _repo_folder(repo_id: str) -> Path:
    """The folder of a repository in the Hub cache."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    except HFValidationError:
        raise InputError(f"{repo_id!r} is not a repository id; it has the form owner/name") from None


def _ask(repo_id: str, filename: str, revision: str) -> _Remote:
    """One HEAD request, no retries: a cached copy should not wait for a Hub that is down."""
    import httpx2
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    what = f"{repo_id}/{filename}"
    try:
        metadata = get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=revision))
    except HfHubHTTPError as e:
        raise _refusal(repo_id, filename, revision, e) from e
    except (httpx2.HTTPError, httpx2.InvalidURL) as e:
        raise StorageError(f"{what}: cannot reach {constants.ENDPOINT} ({_brief(e)}); check the network and run again to resume") from e
    commit, checksum = metadata.commit_hash or "", metadata.etag or ""
    if not _GIT_SHA1.fullmatch(commit) or not (_SHA256.fullmatch(checksum) or _GIT_SHA1.fullmatch(checksum)):
        raise StorageError(
            f"{what}: {constants.ENDPOINT} names no commit or no checksum, so the file could not be checked; "
            "check HF_ENDPOINT and your proxy"
        )
    # The address by commit cannot change between the question and the last resumed range.
    return _Remote(hf_hub_url(repo_id, filename, revision=commit), commit, checksum, metadata.size)


def _refusal(repo_id: str, filename: str, revision: str, error: Any) -> MobileClipError:
    """The one line for an HTTP error status."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    page = f"{constants.ENDPOINT}/{repo_id}"
    status: int = error.response.status_code
    if isinstance(error, hub.RemoteEntryNotFoundError):
        return InputError(f"{repo_id} has no file {filename!r} at revision {revision!r}; see {page}/tree/{revision}")
    if isinstance(error, hub.RevisionNotFoundError):
        return InputError(f"{repo_id} has no revision {revision!r}; see {page}")
    if isinstance(error, hub.GatedRepoError):
        return InputError(f"{repo_id} is gated; accept its terms at {page}, then log in with: hf auth login")
    if isinstance(error, hub.RepositoryNotFoundError) or status in (401, 404):
        return InputError(f"{repo_id} is not at {constants.ENDPOINT}, or private; check the name or run: hf auth login")
    if status == 403:
        return InputError(f"{page} refuses access (403); accept its terms there, then log in with: hf auth login")
    return StorageError(f"{repo_id}/{filename}: {constants.ENDPOINT} answered {status}; run again later to resume")


def _fetch(what: str, blob: Path, remote: _Remote, on_progress: Progress | None) -> None:
    """Download into `CHECKSUM.incomplete`, check, and rename to `blob`; a second process waits for the first."""
    if _is_intact(what, blob, remote):
        return
    partial = blob.with_name(f"{blob.name}.incomplete")
    lock = blob.parents[2] / ".locks" / blob.parents[1].name / blob.name
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(lock):
        if _is_intact(what, blob, remote):
            return
        _download(what, partial, remote, on_progress)
        try:
            _check_bytes(what, partial, remote.checksum, remote.size_bytes)
        except StorageError:
            partial.unlink()
            raise
        fsync(partial)
        partial.replace(blob)


def _download(what: str, partial: Path, remote: _Remote, on_progress: Progress | None) -> None:
    """Append the missing bytes to `partial`; after a cut connection they stay there for the next call."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    with partial.open("ab") as f:
        if remote.size_bytes is not None:
            if f.tell() > remote.size_bytes:
                f.truncate(0)
                f.seek(0)
            _check_space(what, partial.parent, remote.size_bytes - f.tell())
        try:
            http_get(
                remote.url,
                f,
                resume_size=f.tell(),
                headers=build_hf_headers(),
                expected_size=remote.size_bytes,
                tqdm_class=cast(Any, _progress_bar(on_progress)),
            )
        except HfHubHTTPError as e:
            if e.response.status_code == 416:
                f.truncate(0)  # the server has fewer bytes than we do: what we have cannot be right
            raise StorageError(f"{what}: the Hub answered {e.response.status_code}; run again later to resume") from e
        except httpx2.HTTPError as e:
            raise StorageError(
                f"{what}: the download stopped after {f.tell()} of {remote.size_bytes} bytes ({_brief(e)}); run again to resume"
            ) from e
        except (OSError, ValueError) as e:
            if getattr(e, "errno", None) is not None:
                raise
            f.truncate(0)
            raise StorageError(f"{what}: the Hub sent another size than it announced; run again") from e


def _check_space(what: str, folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise StorageError(
            f"{what}: {needed_bytes / 1e6:.0f} MB are needed and {free_bytes / 1e6:.0f} MB free in {folder}; "
            "free some space or set HF_HOME to another disk"
        )


def _progress_bar(on_progress: Progress | None) -> type:
    """A stand-in for tqdm that hands on the numbers and prints nothing."""

    class Bar:
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: object) -> None:
            self.total_bytes, self.done_bytes = total or 0, initial

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int) -> None:
            self.done_bytes += count
            if on_progress is not None:
                on_progress(self.done_bytes, self.total_bytes)

    return Bar


def _linked(repo_id: str, filename: str, revision: str, remote: _Remote, have: Path | None) -> Path:
    """The path under `snapshots/` that stands for the blob; the library makes it and notes the revision."""
    import httpx2
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    what = f"{repo_id}/{filename}"
    if have is not None and remote.commit in have.parts:
        path = have
    else:
        try:
            path = Path(hf_hub_download(repo_id, filename, revision=revision))
        except (httpx2.HTTPError, LocalEntryNotFoundError) as e:
            raise StorageError(f"{what}: the Hub went away after the download; run again to finish") from e
    if _announced(path) != remote.checksum:
        _discard(path)
        raise StorageError(f"{what}: changed on the Hub or on the disk meanwhile; run again")
    return path


def _announced(path: Path) -> str | None:
    """The checksum that the Hub announced for a cached file: the name of its blob. None if there is no such blob.

    The link is read, not followed to its end: a blob may itself be a link into a store shared between repositories.
    """
    if path.is_symlink():
        return os.path.basename(os.readlink(path))
    snapshots = next(parent for parent in path.parents if parent.name == "snapshots")
    with reading(path):
        names = (sha256_file(path), _git_sha1(path))
    return next((name for name in names if (snapshots.parent / "blobs" / name).exists()), None)


def _checked(what: str, path: Path, sha256: str | None) -> Path:
    """Check a cached file against the checksum in its blob's name, and the pin; damaged bytes leave the cache."""
    checksum = _announced(path) or ""
    try:
        _check_bytes(what, path, checksum, None)
    except StorageError:
        _discard(path)
        raise
    _check_pin(what, checksum if _SHA256.fullmatch(checksum) else sha256_file(path), sha256)
    return path


def _is_intact(what: str, blob: Path, remote: _Remote) -> bool:
    """Whether the blob is there with the announced bytes."""
    if not blob.exists():
        return False
    try:
        _check_bytes(what, blob, remote.checksum, remote.size_bytes)
    except StorageError:
        return False
    return True


def _check_bytes(what: str, path: Path, checksum: str, size_bytes: int | None) -> None:
    with reading(path):
        got_bytes = path.stat().st_size
        got = sha256_file(path) if _SHA256.fullmatch(checksum) else _git_sha1(path)
    if size_bytes is not None and got_bytes != size_bytes:
        raise StorageError(f"{what}: has {got_bytes} bytes, expected {size_bytes}; it was removed, run again")
    if got != checksum:
        raise StorageError(f"{what}: the bytes are damaged, their checksum is wrong; the file was removed, run again")


def _check_pin(what: str, got_sha256: str | None, pinned_sha256: str | None) -> None:
    if pinned_sha256 is not None and got_sha256 != pinned_sha256:
        raise StorageError(f"{what}: has sha256 {got_sha256}, expected {pinned_sha256}; it is not the file asked for")


def _git_sha1(path: Path) -> str:
    """Hex id of a file as a git blob, which is what the Hub announces for files outside LFS."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _discard(path: Path) -> None:
    """Remove a snapshot entry and its blob from the cache."""
    with writing(path):
        if path.is_symlink():
            (path.parent / os.readlink(path)).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _disk_error(what: str, error: OSError) -> StorageError:
    from huggingface_hub import constants

    reason = os.strerror(error.errno).lower() if error.errno else _brief(error)
    return StorageError(
        f"{what}: {constants.HF_HUB_CACHE} cannot be used ({reason}); "
        "free some space or set HF_HOME to another folder, then run again to resume"
    )


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
