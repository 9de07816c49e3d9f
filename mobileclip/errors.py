"""The one error family. Every error a user can cause or meet carries the exit code that the command line returns."""

from __future__ import annotations


class MobileClipError(Exception):
    """Base of all errors raised on purpose. The message is one line: what is wrong, then what to do about it."""

    exit_code = 2


class InputError(MobileClipError):
    """A file, option or value given by the user is not usable."""


class CheckpointError(InputError):
    """A checkpoint is unsafe, damaged, of another family, or does not fit the model."""


class BundleError(InputError):
    """A bundle or its manifest is damaged, edited by hand, or of an unknown schema."""


class GateError(MobileClipError):
    """A numerical check failed; nothing was published."""

    exit_code = 3


class MissingToolError(MobileClipError):
    """A package or tool that the request needs is absent."""

    exit_code = 4


class DeviceError(MobileClipError):
    """A device is absent, or it or what runs on it crashed, hung or answered nonsense."""

    exit_code = 4


class StorageError(MobileClipError):
    """Reading or writing failed: disk full, read-only, interrupted download."""

    exit_code = 5


class Interrupted(MobileClipError):
    """The user has ended it; what came of it before is kept."""

    exit_code = 130


def one_line(error: Exception) -> str:
    """What another library's error says, in at most 200 characters of one line."""
    return " ".join(printable(str(error)).split())[:200] or type(error).__name__


def printable(text: str) -> str:
    """A text from elsewhere as it may go to a terminal: whatever is no letter, sign or blank becomes a blank."""
    return "".join(c if c.isprintable() else " " for c in text)
