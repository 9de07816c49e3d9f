"""Programs of the user that reach devices, run to their end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from mobileclip.errors import DeviceError


def run(command: Sequence[str], serial: str, what: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command; its exit code is the caller's to judge.

    Args:
        command: The program and its words.
        serial: The device, for messages.
        what: What is asked of it, for messages.
        timeout_s: After this it is stopped.

    Raises:
        DeviceError: It does not start, or does not end in time.
    """
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            env=os.environ | {"NO_COLOR": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{serial}: no answer to {what} within {timeout_s:g} s; unlock it and reconnect its cable") from None
    except OSError as e:
        raise DeviceError(f"{command[0]} does not start ({e.strerror}); install it again") from None
