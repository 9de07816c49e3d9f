"""`mobileclip train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption, SetOption


def train(
    config: Annotated[Path, typer.Argument(help="YAML file that describes the run.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run; default: runs/NAME_OF_CONFIG.")] = None,
    changes: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print model, data, schedule, memory and cost; train nothing.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="For --dry-run: processes of the run, for the memory of one of them.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Train a model, or go on where a run stopped: the same command does both. Under torchrun, one process a device.

    Example: mobileclip train configs/nano.yaml -o runs/nano --set seed=1
    """
    from mobileclip.training.config import load_config

    settings = load_config(config, changes or ())
    with output.progress(json_output=json_output) as progress:
        if dry_run:
            from mobileclip.training.plan import plan

            progress("trying one step")
            result = plan(settings, device, processes)
        else:
            from mobileclip.training.scoring import evaluator
            from mobileclip.training.trainer import train as run

            evaluate = evaluator(settings)
            result = run(settings, out or Path("runs") / config.stem, progress=progress, evaluate=evaluate, device=device)
    if not result:  # a process beside the main one
        return
    if json_output:
        output.print_json(result)
    elif dry_run:
        for title, section in result.items():
            output.print_table(title, ("what", "value"), [(k.replace("_", " "), _shown(k, v)) for k, v in section.items()])
    else:
        output.print_line(f"done: step {result['step']:,}; weights in {result['model']}")


def _shown(name: str, value: object) -> object:
    if isinstance(value, int | float) and name.endswith("bytes"):
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else value
