"""How a bundle gets its name: whole, in one rename, or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mobileclip.errors import InputError, MobileClipError
from mobileclip.export.bundle import MANIFEST
from mobileclip.files import STAGING_PREFIX, fsync, remove_tree, writing


@contextlib.contextmanager
def publishing(final: Path) -> Iterator[Path]:
    """Yield a staging folder beside `final`; on success it takes the final name in one rename, on any error it is removed.

    The caller holds `locked(final)`. Whatever a killed process left behind is cleaned up first: a folder under the final name is always
    whole.

    Raises:
        InputError: `final` exists and is not a bundle.
        StorageError: The disk is full or read-only.
    """
    with writing(final):
        prefix = f"{STAGING_PREFIX}{final.name}-"
        previous = final.with_name(f"{prefix}previous")
        if previous.exists() and not final.exists():
            previous.rename(final)  # killed between the two renames below
        # exactly what `mkdtemp` makes: the prefix of bundle "a" also begins the staging folders of a bundle "a-b"
        ours = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")
        for leftover in [p for p in final.parent.iterdir() if ours.fullmatch(p.name)]:
            remove_tree(leftover)
        if os.path.lexists(final) and not (final / MANIFEST).is_file() and not (final.is_dir() and not any(final.iterdir())):
            raise InputError(f"{final}: exists and is not a bundle; choose another folder with -o")
        if Path.cwd().is_relative_to(os.path.abspath(final)):  # replacing it would leave the user's shell in a removed folder
            raise InputError(f"{final}: is the current folder; choose another folder with -o")
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
        try:
            staging.chmod(0o755)
            yield staging
            _sync_tree(staging)
            if final.exists():
                final.rename(previous)
            try:
                staging.rename(final)
            except BaseException:
                if previous.exists():
                    previous.rename(final)
                raise
            fsync(final.parent)
            remove_tree(previous)
        except MobileClipError as e:  # name the folder that the user knows
            raise type(e)(str(e).replace(str(staging), str(final))) from e
        finally:
            remove_tree(staging)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            fsync(Path(root, name))
        fsync(Path(root))
