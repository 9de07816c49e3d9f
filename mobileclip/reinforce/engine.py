"""A data set in, a reinforced data set out: one shard for each shard, by workers that may die."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mobileclip import __version__, errors
from mobileclip.data import vocabulary
from mobileclip.data.embeddings import ABOUT
from mobileclip.data.samples import Tally
from mobileclip.data.source import Shard, is_local
from mobileclip.errors import InputError, MobileClipError, StorageError, one_line
from mobileclip.files import canonical_json, locked, remove_stale, require, write_bytes, writing
from mobileclip.reinforce.captioners import load_captioner
from mobileclip.reinforce.config import BackboneConfig, EnsembleConfig
from mobileclip.reinforce.fit import fit
from mobileclip.reinforce.shard import Done, Job, Plan, Worker, finished
from mobileclip.reinforce.teachers import Device, fitted_path, read_heads
from mobileclip.reinforce.words import resolved

MANIFEST, TEACHERS = "manifest.jsonl", "teachers"
_RETRIES = 5
"""How often a shard is tried whose worker died."""
_PATIENCE = {"RAY_health_check_timeout_ms": "60000", "RAY_health_check_failure_threshold": "20"}
"""Ray takes a machine that is busy for half a minute for dead."""
_VERSIONS = ("torch", "pillow", "numpy", "open_clip_torch", "onnxruntime")


@dataclass
class Summary:
    """What a run did.

    Attributes:
        out: The folder of the data set.
        tally: Over all shards: present = written + skipped, exactly.
        shards: All of them.
        made: Those that this run made, the others were there.
        teachers: In the order of the stored embeddings.
        stages: Name to (items, worker seconds), of this run.
    """

    out: Path
    tally: Tally = field(default_factory=Tally)
    shards: int = 0
    made: int = 0
    teachers: list[dict[str, Any]] = field(default_factory=list)
    stages: dict[str, tuple[int, float]] = field(default_factory=dict)

    def throughput(self) -> list[tuple[str, int, float, float]]:
        """Stage, items, worker seconds and items a second of one worker."""
        return [(name, items, seconds, items / max(seconds, 1e-9)) for name, (items, seconds) in self.stages.items()]

    def about(self) -> dict[str, Any]:
        """For `--json`."""
        rates = [{"stage": name, "items": n, "seconds": s, "items_per_second": rate} for name, n, s, rate in self.throughput()]
        counts = {"present": self.tally.present, "written": self.tally.seen, "skipped": dict(self.tally.skipped)}
        return {"out": str(self.out), "shards": self.shards, "made": self.made, **counts, "teachers": self.teachers, "throughput": rates}


def reinforce(
    shards: Sequence[Shard],
    out: Path,
    ensemble: EnsembleConfig,
    progress: Callable[[str], None],
    *,
    views: int = 5,
    captions: int = 5,
    dtype: Literal["bf16", "fp32"] = "bf16",
    seed: int = 0,
    images: bool = True,
    engine: Literal["local", "ray"] = "local",
    workers: int = 1,
    gpus: float = 0,
    address: str | None = None,
    max_bad: float = 0.01,
) -> Summary:
    """Make a reinforced data set in Apple's layout.

    Finished shards are not made again, and on one kind of device the bytes do not depend on the engine, the number of workers or what
    was interrupted.

    Args:
        shards: From `mobileclip.data.source.find_shards`.
        out: Folder for shards, `manifest.jsonl`, `reinforcement.json` and fitted heads. On a cluster all nodes must see it.
        ensemble: Teachers, augmentations, captioner, words.
        progress: Told what is being done.
        views: N augmentations a picture.
        captions: M captions a picture of the captioner's; 0 for none.
        dtype: `bf16` (`pth.gz`) or `fp32` (`npz`).
        seed: Of everything drawn.
        images: Also write the pictures and captions, so that no join is needed.
        engine: `local`: in this process. `ray`: Ray Data with `workers` processes.
        workers: Processes, one core each; at most so many on a cluster.
        gpus: Of each worker, for Ray; open_clip's models then run there. The local engine takes a GPU where there is one.
        address: Of a Ray cluster; default: one is started on this machine.
        max_bad: Largest share of bad samples.

    Raises:
        InputError: The folder holds a set made in another way, too many samples are bad, or a teacher is unusable.
        MissingToolError: A package is not installed.
        StorageError: A shard cannot be read, or the folder not be written.
    """
    if engine == "ray":
        require("ray", "reinforce", "reinforcing with several workers")
    elif workers > 1 or gpus or address:
        raise InputError("the local engine is one process here; leave out --workers, --gpus and --address, or use --engine ray")
    if any(is_local(p) and Path(p).resolve().parent == out.resolve() for shard in shards for p in shard.places):
        raise InputError(f"{out}: holds shards that are to be read; choose another folder with -o")
    place: Literal["cpu", "cuda"] = "cuda" if gpus or (engine == "local" and _has_gpu()) else "cpu"
    with _alone(out, progress), writing(out):
        (out / TEACHERS).mkdir(parents=True, exist_ok=True)
        remove_stale(out, out / TEACHERS)
        folder = (out / TEACHERS).resolve()
        plan = Plan(_resolved(ensemble), views, captions, dtype, seed, images, folder, Device(place, place == "cuda" and dtype == "bf16"))
        deciding = _deciding(plan)
        config = deciding | {"inputs": _inputs_sha256(shards)}
        _check_same(out, config)
        _fit_missing(plan, shards, progress)
        jobs = _jobs(plan, deciding, shards, out)
        summary = Summary(out, shards=len(jobs))
        names: dict[str, int] = {}
        there = [finished(job) for job in jobs]
        models = next((done.models for done in there if done), None)
        if models and all(there) and ensemble.words and not (out / vocabulary.NAME).is_file():
            there[0] = None  # made again: who makes a shard keeps the words
        for done in filter(None, there):
            _add(summary, names, models, done)
        todo = [replace(job, models=models) for job, done in zip(jobs, there, strict=True) if done is None]
        run = _run_ray(plan, todo, workers, gpus, address) if engine == "ray" and todo else _run_local(plan, todo)
        with contextlib.closing(run):  # workers end before the folder is free for others
            for done in run:
                models = _add(summary, names, models, done)
                summary.made += 1
                summary.tally.check(max_bad)
                progress(f"{len(names):,} of {len(jobs):,} shards, {summary.tally.seen:,} samples")
        remove_stale(out, out / TEACHERS)
        summary.tally.check(max_bad, at_least=1)
        summary.teachers = (models or {}).get("teachers", [])
        _publish(out, config, models or {}, summary.tally, names)
    return summary


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@contextlib.contextmanager
def _alone(out: Path, progress: Callable[[str], None]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out, wait=False))
        except InputError:
            progress(f"waiting for another process that works in {out}")
            stack.enter_context(locked(out))
        yield


def _resolved(ensemble: EnsembleConfig) -> EnsembleConfig:
    """With absolute paths, for workers elsewhere."""
    teachers = [
        t.model_copy(update={n: _absolute(v) if isinstance(v, str) else v.resolve() for n in _FILES if (v := getattr(t, n, None))})
        for t in ensemble.teachers
    ]
    return ensemble.model_copy(update={"teachers": tuple(teachers)})


_FILES = ("heads", "source", "model", "pretrained")
"""Fields of teachers that may name a file or folder."""


def _absolute(place: str) -> str:
    """With its whole path, if it is a local file or folder; `local-dir:` may stand in front."""
    before, schema, path = place.rpartition("local-dir:")
    return f"{before}{schema}{Path(path).resolve()}" if is_local(place) and Path(path).exists() else place


def _deciding(plan: Plan) -> dict[str, Any]:
    """What decides the result, besides the input; heads count by their content."""
    teachers = []
    for t in plan.ensemble.teachers:
        about = t.model_dump(mode="json")
        if isinstance(t, BackboneConfig):
            about["heads"] = read_heads(t, t.heads).sha256 if t.heads else "fitted"
        teachers.append(about)
    return {
        "teachers": teachers,
        "augmentation": plan.ensemble.augmentation.model_dump(mode="json"),
        "captioner": plan.ensemble.captioner.model_dump(mode="json"),
        "words": (words := plan.ensemble.words) and {"count": words.count, "sha256": _sha256(resolved(words))},
        "views": plan.views,
        "captions": plan.captions,
        "dtype": plan.dtype,
        "seed": plan.seed,
        "images": plan.images,
        "device": vars(plan.device),
    }


def _inputs_sha256(shards: Sequence[Shard]) -> str:
    """Over names and sizes: a data set may be moved."""
    inputs = [[(_name(place), _size(place)) for place in shard.places] for shard in shards]
    return _sha256(inputs)


def _sha256(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _name(place: str) -> str:
    name = place if place.startswith("pipe:") else Path(place.rpartition("/")[2]).name
    return name.encode(errors="backslashreplace").decode()  # a file's name need not be UTF-8


def _size(place: str) -> int | None:
    return Path(place).stat().st_size if is_local(place) else None


def _check_same(out: Path, config: dict[str, Any]) -> None:
    path = out / ABOUT
    try:
        before = json.loads(path.read_bytes())["config"]
    except FileNotFoundError:
        write_bytes(path, _json({"schema": 1, "config": config}))
        return
    except (ValueError, TypeError, LookupError, RecursionError):
        raise InputError(f"{path}: is damaged; remove the folder or choose another one with -o") from None
    if before != config and not any(out.glob("*_stats.json")):  # nothing was made yet: a mended config may take the place
        for made in (out / vocabulary.NAME, *(out / TEACHERS).glob("*.safetensors")):
            made.unlink(missing_ok=True)
        write_bytes(path, _json({"schema": 1, "config": config}))
    elif before != config:
        names = [k for k in config if not isinstance(before, dict) or before.get(k) != config[k]] or ["config"]
        shown = ", ".join(f"{k} {_short(before.get(k))} there, {_short(config[k])} now" for k in names if isinstance(before, dict))
        raise InputError(f"{out}: holds a set that was made in another way ({shown}); choose another folder with -o")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def _fit_missing(plan: Plan, shards: Sequence[Shard], progress: Callable[[str], None]) -> None:
    fitted = [t for t in plan.ensemble.teachers if isinstance(t, BackboneConfig) and t.heads is None]
    missing = [t for t in fitted if not fitted_path(t, plan.folder).exists()]
    if missing:
        paths = [fitted_path(t, plan.folder) for t in missing]
        captioner, policy = load_captioner(plan.ensemble.captioner, plan.device.name), plan.ensemble.augmentation.policy()
        fit(missing, paths, shards, policy, captioner, plan.folder, plan.seed, progress)


def _jobs(plan: Plan, deciding: dict[str, Any], shards: Sequence[Shard], out: Path) -> list[Job]:
    """Named as the inputs where these are distinct and can be names of shards, else by numbers."""
    names = [re.sub(r"\.tar$", "", _name(shard.places[0])) for shard in shards]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[\w-]{1,100}", name) for name in names):
        names = [f"{i:08d}" for i in range(len(shards))]
    on_backbones = [t for t in plan.ensemble.teachers if isinstance(t, BackboneConfig)]
    heads = [read_heads(t, t.heads or fitted_path(t, plan.folder)).sha256 for t in on_backbones]
    jobs = []
    for name, shard in zip(names, shards, strict=True):
        identity = deciding | {"fitted": heads, "inputs": _inputs_sha256([shard])}
        jobs.append(Job(shard, out / f"{name}.tar", _sha256(identity)))
    return jobs


def _add(summary: Summary, names: dict[str, int], models: dict[str, Any] | None, done: Done) -> dict[str, Any]:
    if models is not None and models != done.models:
        raise InputError(f"{summary.out}: {done.name} was made by teachers with other weights; choose another folder with -o")
    summary.tally = summary.tally + done.tally
    names[done.name] = done.tally.seen
    for stage, (items, seconds) in done.stages.items():
        before = summary.stages.get(stage, (0, 0.0))
        summary.stages[stage] = before[0] + items, before[1] + seconds
    return done.models


def _publish(out: Path, config: dict[str, Any], models: dict[str, Any], tally: Tally, names: dict[str, int]) -> None:
    lines = [json.dumps({"shard": name, "num_uids": count}) for name, count in sorted(names.items())]
    write_bytes(out / MANIFEST, "".join(f"{line}\n" for line in lines).encode())
    versions = {"mobileclip": __version__, "python": platform.python_version()}
    for package in _VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    counts = {"present": tally.present, "written": tally.seen, "skipped": dict(sorted(tally.skipped.items()))}
    write_bytes(out / ABOUT, _json({"schema": 1, "config": config, **models, "counts": counts, "versions": versions}))


def _run_local(plan: Plan, jobs: Sequence[Job]) -> Generator[Done]:
    worker = Worker(plan) if jobs else None
    for job in jobs:
        assert worker is not None
        yield worker.make(job)


class _RayWorker:
    """What Ray Data runs: rows in, rows out; an error of ours travels as a row, for Ray would try again.

    The plan is in each row: what Ray hands to constructors may be gone when it starts a worker again.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        job = json.loads(row["job"])
        try:
            self._worker = self._worker or Worker(Plan.from_json(job["plan"]))
            done = self._worker.make(Job(Shard(tuple(job["places"])), Path(job["out"]), job["fingerprint"], job["models"]))
        except MobileClipError as e:
            return {"error": type(e).__name__, "value": str(e)}
        except Exception as e:  # a bug; trying again would not help
            return {"error": "StorageError", "value": f"{job['places'][0]}: this is a bug: {type(e).__name__}: {one_line(e)}"}
        return {"error": "", "value": json.dumps([done.name, done.tally.seen, done.tally.skipped, done.models, done.stages])}


def _run_ray(plan: Plan, jobs: Sequence[Job], workers: int, gpus: float, address: str | None) -> Generator[Done]:
    """Ray Data over one row for each shard; it starts, grows and replaces the workers."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    import ray

    local = {} if address else {"num_cpus": workers}
    try:
        if address and (at := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address)):
            socket.create_connection((at[1], int(at[2])), timeout=10).close()  # Ray itself tries for minutes
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", **local)
    except Exception as e:  # Ray raises plain exceptions here
        failed = "be reached" if address else "start"
        raise StorageError(f"Ray cannot {failed} ({one_line(e)}); run again, or with --engine local") from None
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        todo = [
            {
                "places": [_absolute(p) for p in j.shard.places],
                "out": str(j.out.absolute()),
                "fingerprint": j.fingerprint,
                "models": j.models,
            }
            for j in jobs
        ]
        rows = [{"job": json.dumps(job | {"plan": plan.to_json()})} for job in todo]
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _RayWorker,
            compute=ray.data.ActorPoolStrategy(min_size=1 if address else min(workers, len(jobs)), max_size=workers),
            num_cpus=1,
            num_gpus=gpus,
            ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": _RETRIES},
        )
        for row in made.iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"], StorageError)(row["value"])
            name, seen, skipped, models, stages = json.loads(row["value"])
            yield Done(name, Tally(seen, Counter(skipped)), models, stages)
    except ray.exceptions.RayError as e:
        raise StorageError(f"Ray gave up ({one_line(e)}); run again to go on from the shards that are finished") from None
    finally:
        ray.shutdown()
