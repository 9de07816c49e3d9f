"""Files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileclip.errors import InputError
from mobileclip.files import reading

_LINE_BYTES = 1 << 24


def json_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes, int]]:
    """The objects of a file with one a line, each with its bytes and number. Blank lines are passed over, a bare `NaN` is taken.

    Raises:
        InputError: No such file, or a line is no JSON object.
        StorageError: The file cannot be read.
    """
    with reading(path), path.open("rb") as file:
        number = 0
        while line := file.readline(_LINE_BYTES):
            number += 1
            if not (line := line.strip()):
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: is not a JSON object; one a line is needed")
            yield row, line, number
