"""`mobileclip eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption, share
from mobileclip.specs import DEFAULT_MODEL

if TYPE_CHECKING:
    from mobileclip.evaluation.datacomp import Summary
    from mobileclip.evaluation.results import Row


def eval(
    model: Annotated[
        str, typer.Argument(help="Bundle, variant, checkpoint file or open_clip:NAME/TAG.", metavar="[MODEL]")
    ] = DEFAULT_MODEL,
    data: Annotated[str | None, typer.Option(help="Data set: folder per class, shards, .csv, .jsonl, or clip_benchmark's layout.")] = None,
    task: Annotated[str | None, typer.Option(help="classification or retrieval; default: what the data set has.")] = None,
    label_field: Annotated[str | None, typer.Option(help="Field of the label; for retrieval, labels are then the texts.")] = None,
    labels_file: Annotated[Path | None, typer.Option(help="All labels, one a line (NAME<tab>TEXT for another text), or .jsonl.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of the labels' texts in a .jsonl labels file.")] = None,
    templates: Annotated[str | None, typer.Option(help="none, photo, ensemble, openai, a text with {}, or a file of such lines.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only examples with FIELD=VALUE or FIELD!=VALUE.")] = None,
    clip_benchmark: Annotated[list[str] | None, typer.Option(help="A data set of clip_benchmark, like wds/cifar10; --data: where.")] = None,
    results: Annotated[Path | None, typer.Option(help="Only average a results file over DataComp's 38 data sets.")] = None,
    runtime: Annotated[str | None, typer.Option(help="For a bundle: onnx, executorch or coreml; the first that runs here.")] = None,
    max_bad: Annotated[str, typer.Option(help="Largest share of unusable examples.")] = "1%",
    key: Annotated[str | None, typer.Option(help="Key in the results file; default: the data set's name.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Results file; a line of the same key is replaced.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Score a model, checkpoint or bundle: zero-shot classification, retrieval, the average over DataComp's 38 data sets.

    Example: mobileclip eval mobileclip_s0 --data flowers --templates "a photo of a {}, a type of flower." -o results.jsonl
    """
    from mobileclip.evaluation import datacomp, tasks
    from mobileclip.evaluation import results as files
    from mobileclip.evaluation.clip_benchmark import open_all
    from mobileclip.export.encoder import open_encoder

    if results:
        _show_average(str(results), datacomp.summarize(files.read(results)), json_output=json_output)
        return
    wanted, allowed = tasks.task(task, label_field, labels_file, templates, where or (), text_field), share("--max-bad", max_bad)
    with output.progress(json_output=json_output) as progress:
        sets = open_all(data, clip_benchmark or (), key)
        encoder, rows = open_encoder(model, runtime), []
        for name, dataset in sets.items():
            rows.append(files.row(name, dataset.name, tasks.run(encoder, dataset, wanted, allowed, progress), encoder.about()))
            if out:
                files.append(out, rows[-1:])
    _show(encoder.title, rows, json_output=json_output)


def _show(title: str, rows: Sequence[Row], *, json_output: bool) -> None:
    if json_output:
        output.print_json(rows)
        return
    for row in rows:
        numbers = {**row["details"], **{k: v for k, v in row["metrics"].items() if v is not None and k != "main_metric"}}
        shown = [(name, f"{value:,}" if isinstance(value, int) else _number(name, value)) for name, value in numbers.items()]
        output.print_table(f"{title}; {row['task']} on {row['key']}", ("measure", "value"), shown)
        if row["skipped"]:
            output.print_line("left out: " + ", ".join(f"{reason} {n:,}" for reason, n in row["skipped"].items()))


def _number(name: str, value: float) -> str:
    return f"{value:,.1f}" if name.endswith("_rank") else f"{value:.2%}"


def _show_average(source: str, summary: Summary, *, json_output: bool) -> None:
    if json_output:
        output.print_json(asdict(summary))
        return
    averages = {"all 38": summary.average, **summary.groups}
    rows = [(name, "-" if a.mean is None else f"{a.mean:.2%}", f"{a.sets} of {a.sets + len(a.missing)}") for name, a in averages.items()]
    output.print_table(f"{source}: mean of main metrics", ("data sets", "mean", "there"), rows)
    if summary.average.missing:
        output.print_line("missing: " + ", ".join(summary.average.missing))
