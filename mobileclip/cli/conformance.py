"""`mobileclip conformance`."""

from __future__ import annotations

from pathlib import Path

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption


def conformance(
    out: Path = typer.Option(Path("conformance"), "--out", "-o", help="Folder for the files."),
    json_output: JsonOption = False,
) -> None:
    """Write what an app in any language must reproduce: token ids, pixels, embeddings, rankings, manifests, answers. Example:
    mobileclip conformance -o conformance
    """
    from mobileclip.benchmark import kit

    with output.progress(json_output=json_output) as step:
        step("making captions, pictures, rankings and examples")
        paths = kit.write(out)
    if json_output:
        output.print_json([{"path": str(path), "size_bytes": path.stat().st_size} for path in paths])
    else:
        for path in paths:
            output.print_line(f"wrote {path} ({path.stat().st_size / 1e3:.0f} kB)")
