"""Results files: JSON lines, one for each data set, in the form that Apple publishes: `key`, `dataset`, `metrics` with `main_metric`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobileclip.errors import InputError
from mobileclip.evaluation.datacomp import MAIN_METRIC
from mobileclip.evaluation.tasks import Score
from mobileclip.files import canonical_json, json_lines, locked, write_bytes

Row = dict[str, Any]


def row(key: str, dataset: str, score: Score, encoder: Mapping[str, object]) -> Row:
    """The line of a measurement; for the 38 sets of DataComp the main metric is theirs, and null where a `Score` does not have that.

    Args:
        key: Identity of the data set.
        dataset: Its name for people.
        encoder: What measured, see `mobileclip.export.encoder.Encoder.about`.
    """
    main = score.metrics.get(MAIN_METRIC.get(key, "main_metric"))
    skipped = dict(sorted(score.tally.skipped.items()))
    measured = {"metrics": {**score.metrics, "main_metric": main}, "task": score.kind, "details": score.details, "skipped": skipped}
    return {"key": key, "dataset": dataset, **measured, **encoder}


def read(path: Path) -> list[Row]:
    """The lines of a results file. A bare `NaN` is taken, as published files have it; blank lines are passed over.

    Raises:
        InputError: No such file, or a line is not an object with `key` and `metrics`.
        StorageError: The file cannot be read.
    """
    return [row for row, _ in _lines(path)]


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add lines to a results file, atomically. A line of the same key is replaced where it stands; the others keep their bytes.

    Raises:
        InputError: The file is damaged, or holds results of another model (by `embedding_space`, where both lines have one).
        StorageError: The file cannot be written; it is then as it was.
    """
    with locked(path):
        lines: dict[str, bytes] = {}
        for row, line in _lines(path) if path.exists() else ():
            lines[row["key"]] = line
            for new in rows:
                if row.get("embedding_space", new.get("embedding_space")) != new.get("embedding_space"):
                    raise InputError(
                        f"{path}: holds results of another model ({row.get('model')}, key {row['key']}); give another file with -o"
                    )
        lines.update({row["key"]: canonical_json(row) for row in rows})
        write_bytes(path, b"".join(line + b"\n" for line in lines.values()))


def _lines(path: Path) -> Iterator[tuple[Row, bytes]]:
    for found, line, number in json_lines(path):
        if not isinstance(found.get("key"), str) or not isinstance(found.get("metrics"), dict):
            raise InputError(f"{path}:{number}: has no text `key` and object `metrics`; a results file has them in every line")
        yield found, line
