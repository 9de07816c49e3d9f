"""The one sink of the command line: tables and progress for people, JSON for programs, one line for an error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mobileclip.errors import printable

if TYPE_CHECKING:
    from mobileclip.export.bundle import Bundle, ParityInfo

Progress = Callable[[str], None]
"""Tell what is being done now; the functions behind the commands take one and never print."""


def quiet(step: str) -> None:
    """A `Progress` that says nothing."""


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output; numbers are right-aligned, and nothing is cut off when the output is not a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(r[i], int | float) or str(r[i])[:1].isdigit() for r in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else printable(str(v)) for v in row))
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=200, markup=False, emoji=False)
    console.print(printable(title))
    console.print(table)


def print_parity(title: str, bundle: Bundle, parity: Sequence[ParityInfo] | None = None) -> None:
    """The artifacts of a bundle with their verification."""
    manifest = bundle.manifest
    rows = []
    for p in manifest.parity if parity is None else parity:
        artifact = bundle.artifact(p.target, p.tower)
        rows.append(
            (
                p.target, p.tower, manifest.options.precision, f"{artifact.size_bytes / 1e6:.1f}", p.engine, p.inputs,
                f"{p.cosine_min:.6f}", f"{p.max_abs:.1e}", f"{p.top1_agreement:.1%}", f"{p.recall10_overlap:.4f}",
                len(artifact.fp32_operators), sum(artifact.not_delegated.values()), "pass" if p.passed else "FAIL",
            )
        )  # fmt: skip
    columns = (
        "target", "tower", "precision", "MB", "checked on", "inputs", "min cosine", "max abs", "top-1", "recall@10",
        "fp32 layers", "undelegated", "gate",
    )  # fmt: skip
    print_table(f"{title}: {manifest.model.name}, {manifest.model.source}", columns, rows)
    for artifact in manifest.artifacts:
        if artifact.not_delegated:
            operators = ", ".join(f"{count} {name}" for name, count in artifact.not_delegated.items())
            print_line(f"{artifact.target} {artifact.tower}, not delegated to {artifact.backend}: {operators}")
    if not manifest.model.trained:
        print_line("untrained weights: the numbers are right, predictions mean nothing")


def print_line(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write("\n".join(map(printable, text.split("\n"))) + "\n")


@contextlib.contextmanager
def progress(*, json_output: bool = False) -> Iterator[Progress]:
    """A spinner with the elapsed time on standard error; plain lines where that is not a terminal."""
    if json_output:
        yield quiet
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: print(printable(step), file=sys.stderr, flush=True)  # noqa: T201
        return
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with Bar(SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("starting")
        yield lambda step: bar.update(task, description=printable(step))


def print_error(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"error: {' '.join(printable(message).split())}\n")


def print_address(address: str, code: bool) -> None:
    """Where to open a page, on standard error, with a QR code for a phone's camera if wanted and possible."""
    sys.stderr.write(f"open {address}\n")
    if code:
        try:
            import segno
        except ImportError:
            sys.stderr.write("pip install 'mobileclip-toolkit[web]' shows a QR code here\n")
            return
        segno.make(address, error="l").terminal(out=sys.stderr, compact=True)
