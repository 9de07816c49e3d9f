"""The data sets of the package clip_benchmark, scored by our own functions, so that bundles are scored as models are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from mobileclip.data.samples import BadSample
from mobileclip.data.source import LABEL
from mobileclip.errors import InputError, StorageError
from mobileclip.evaluation.datasets import Dataset, Example, open_dataset
from mobileclip.files import require

WDS, WDS_ROOT = "wds/", "https://huggingface.co/datasets/clip-benchmark/wds_{dataset_cleaned}/tree/main"
ROOT = "clip-benchmark-data"


def open_all(data: str | None, benchmarks: Sequence[str], key: str | None) -> dict[str, Dataset]:
    """The data sets that a user names, by their keys in a results file.

    Args:
        data: See `mobileclip.evaluation.datasets.open_dataset`; with benchmarks the `root` of `open_benchmark`.
        benchmarks: Names, see `open_benchmark`.
        key: Another key, for a single data set.

    Raises:
        InputError: No data set, or a key for several.
    """
    if not data and not benchmarks:
        raise InputError("no data set; give --data FOLDER_OR_TABLE, or --clip-benchmark NAME")
    if key and len(benchmarks) > 1:
        raise InputError("--key is for one data set; leave it out for several")
    if not benchmarks:
        dataset = open_dataset(data or "")
        return {key or dataset.name: dataset}
    return {key or name.removeprefix(WDS): open_benchmark(name, data) for name in benchmarks}


def open_benchmark(name: str, root: str | None = None, split: str = "test") -> Dataset:
    """Open one of clip_benchmark's data sets; the package downloads what is not there.

    Args:
        name: As the package has it, `cifar10`, or `wds/vtab/dtd` for one in shards.
        root: Folder, or address of shards; `{dataset}` and `{dataset_cleaned}` (slashes as dashes) stand for the name without `wds/`.
            Default: for `wds/` the package's own on the Hub, else the folder `ROOT`.

    Raises:
        InputError: The package does not know the name, or the data cannot be scored.
        MissingToolError: The package is not installed.
        StorageError: The data cannot be had.
    """
    require("clip_benchmark", "clip-benchmark", "a data set of clip_benchmark")
    import webdataset.utils
    from clip_benchmark.datasets import builder

    # Its shards are decoded by their members' names, which may ask for pickle: refuse these, and local shards, which we read ourselves.
    webdataset.utils.enforce_security = True
    short = name.removeprefix(WDS)
    place = root or (WDS_ROOT if name.startswith(WDS) else ROOT)
    place = place.replace("{dataset}", short).replace("{dataset_cleaned}", short.replace("/", "-"))
    if "'" in place:
        raise InputError(f"{place}: an apostrophe in a place is not supported; rename the folder")
    if name.startswith(WDS) and "://" not in place:
        return open_dataset(place)
    task = builder.get_dataset_default_task(short)
    if task == "image_caption_selection":
        raise InputError(f"{name}: choosing between captions cannot be scored; classification and retrieval can")
    if name.startswith(WDS):
        task = "zeroshot_retrieval"  # the package would insist on class names otherwise; what is in the shards decides
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the package prints
            data = builder.build_dataset(name, root=place, transform=_same, split=split, task=task)
    except (ValueError, AssertionError) as e:
        raise InputError(f"{name}: clip_benchmark cannot open it ({_line(e)})") from None
    except (OSError, RuntimeError) as e:
        raise StorageError(f"{name}: clip_benchmark cannot get it ({_line(e)})") from None
    classes, templates = getattr(data, "classes", None) or (), getattr(data, "templates", None) or ()
    if isinstance(templates, dict):
        raise InputError(f"{name}: captions that differ from class to class are not supported")
    return Dataset(short, lambda: _examples(short, data), tuple(classes), tuple(t.replace("{c}", "{}") for t in templates))


def _same(image: Image.Image) -> Image.Image:
    """The transform that leaves pictures to us."""
    return image


def _examples(name: str, data: Any) -> Iterator[Example | BadSample]:
    for number, (image, target) in enumerate(_items(name, data)):
        key = f"{name}/{number}"
        if isinstance(target, list | tuple) and all(isinstance(text, str) for text in target):
            yield Example(key, image, tuple(target))
        elif getattr(target, "shape", ()) == ():
            yield Example(key, image, fields={LABEL: int(target)})
        else:
            raise InputError(f"{name}: pictures with several right classes cannot be scored")


def _items(name: str, data: Any) -> Iterator[tuple[Image.Image, Any]]:
    iterator = iter(data[i] for i in range(len(data))) if hasattr(data, "__len__") else iter(data)
    try:
        yield from iterator
    except Exception as e:  # the package's readers and decoders have error types of their own
        raise InputError(f"{name}: clip_benchmark cannot read it ({_line(e)})") from e


def _line(e: Exception) -> str:
    cause = e.__cause__ or e
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
