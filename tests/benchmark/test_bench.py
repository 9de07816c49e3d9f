from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mobileclip.benchmark import statistics
from mobileclip.benchmark.bench import bench, default_bundles, find_bundles
from mobileclip.benchmark.compare import compare
from mobileclip.benchmark.devices import host, rounds
from mobileclip.benchmark.devices.host import Host
from mobileclip.benchmark.devices.rounds import Ended, Job, ProcessLink, Rounds
from mobileclip.benchmark.protocol import BenchRun, Loaded, WarmedUp
from mobileclip.benchmark.results import course, read_results, save, table
from mobileclip.errors import BundleError, DeviceError, InputError, MissingToolError
from mobileclip.export.bundle import ArtifactInfo, Bundle, FileEntry, Options, TensorInfo
from tests.benchmark.conftest import request

QUICK = {"seconds": 0.02, "samples": 40, "warmup_runs": 10}
CLI = [sys.executable, "-c", "from mobileclip.cli import main as m; m.COMMANDS = ('bench', 'compare', 'report', 'ratios'); m.main()"]


@pytest.fixture(scope="module")
def run(tiny_bundle: Path) -> BenchRun:
    return bench([tiny_bundle], **QUICK)


def test_both_towers_are_measured_and_checked(run: BenchRun) -> None:
    assert [r.label for r in run.results] == ["tiny onnx image", "tiny onnx text"]
    assert run.failures == run.skipped == ()
    for r in run.results:
        got = r.samples
        assert len(got.warmup_ms) == 10
        assert r.summary.n == len(got.latency_ms) == len(got.start_ms) == sum(got.block_samples) >= 40
        assert all(start + ms <= after + 1e-3 for start, ms, after in zip(got.start_ms, got.latency_ms, got.start_ms[1:], strict=False))
        assert len(got.wait_ms) == (len(got.latency_ms) if sys.platform == "linux" else 0)
        assert got.kept == ()
        assert r.parity is not None
        assert r.parity.passed
        assert 0.04 <= r.parity.n / r.summary.n <= 0.08
        assert got.load_ms > 0
        assert got.first_run_ms > 0
        assert 10e6 < got.baseline_memory_bytes <= got.peak_memory_bytes < 1e9
        assert not r.valid
        assert any(re.fullmatch(r"0\.\d+ s of timed runs, 10 s are needed", reason) for reason in r.reasons)
        assert got.engine.startswith("onnxruntime ")
        assert (r.device.name, r.device.emulated, got.provider) == ("host", False, "cpu")
        assert r.device.model
        assert [s.moment for s in got.states] == ["before", "after"]
        assert r.interleaved == 2


def test_real_samples_equal_themselves_and_not_themselves_slowed_down(run: BenchRun) -> None:
    a = run.results[0]
    assert compare(a, a).verdict == "no difference"
    slow = {name: tuple(3 * v for v in getattr(a.samples, name)) for name in ("latency_ms", "wait_ms")}  # far above a busy machine's noise
    assert compare(a, a.model_copy(update={"samples": a.samples.model_copy(update=slow)})).verdict == "slower"


def test_a_sustained_measurement_is_one_turn_of_windows(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "LONG_BLOCK_SECONDS", 0.02)  # the worker answers more often than the turn ends
    found = bench([tiny_bundle], towers=["text"], mode="sustained", seconds=0.2, samples=5).results[0]
    assert len(found.samples.block_samples) == found.interleaved == 1
    gaps = np.diff(found.samples.start_ms) - found.samples.latency_ms[:-1]
    assert np.median(gaps) < 1, "without a pause"
    assert found.mlperf is None
    assert found.sustained is not None
    assert sum(w.n for w in found.sustained.windows) == found.summary.n
    assert any("60 s are needed" in reason for reason in found.reasons)
    assert re.fullmatch(r"tiny onnx text: p50 \d\.\d{3} ms in the first 5 s, .* \(from 0 s on\), \+0\.0 % a minute", course(found) or "")


def test_mlperf_estimates_its_percentile(tiny_bundle: Path) -> None:
    found = bench([tiny_bundle], towers=["text"], mode="mlperf", seconds=0.02, samples=80).results[0]
    assert found.sustained is None
    assert found.mlperf is not None
    assert found.mlperf.p90_ms >= found.summary.p90_ms
    assert course(found) == f"tiny onnx text: p90 {found.mlperf.p90_ms:.3f} ms by MLPerf's early stopping, n {found.summary.n}"
    assert any("60 s are needed" in reason for reason in found.reasons)


def test_batches_wrap_around_and_still_match(build_bundle: Callable[..., Path], tmp_path: Path) -> None:
    found = bench([build_bundle(tmp_path / "b", batch=5)], towers=["image"], **QUICK).results[0]
    assert found.measured.batch == 5
    assert found.parity is not None
    assert found.parity.passed
    assert found.parity.n % 5 == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda got: {"kept": got.kept[1:]}, "other outputs were kept"),
        (lambda got: {"kept": (got.kept[0],) * len(got.kept)}, "other outputs were kept"),
        (lambda got: {"kept": (got.kept[0].model_copy(update={"first_input": 10**30}), *got.kept[1:])}, "input 1000"),
        (lambda got: {"start_ms": ()}, "needs its start"),
    ],
)
def test_answers_that_do_not_fit_together_are_failures(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, change, message: str) -> None:
    measure = Host.measure
    monkeypatch.setattr(Host, "measure", lambda *a: [Ended(got.samples.model_copy(update=change(got.samples))) for got in measure(*a)])
    found = bench([tiny_bundle], towers=["text"], mode="sustained", seconds=0.02, samples=40)
    assert not found.results
    assert message in found.failures[0].message
    assert found.failures[0].exit_code == 4


def test_wrong_outputs_are_not_valid(build_bundle: Callable[..., Path], tmp_path: Path) -> None:
    found = bench([build_bundle(tmp_path / "b", wrong_reference=True)], towers=["text"], **QUICK).results[0]
    assert found.parity is not None
    assert not found.parity.passed
    assert any(reason.startswith("wrong outputs") for reason in found.reasons)


def test_coreml_is_never_timed_off_a_mac(build_bundle: Callable[..., Path], tmp_path: Path) -> None:
    if sys.platform == "darwin":
        return
    tensor = TensorInfo(name="image", dtype="float32", shape=(1, 3, 64, 64))
    output = TensorInfo(name="embedding", dtype="float32", shape=(1, 16))
    shared = FileEntry(path="image.onnx", size_bytes=0, sha256="0" * 64)  # the bundle's own entry takes its place
    extra = ArtifactInfo(
        target="coreml", tower="image", backend="coreml", path=shared.path, files=(shared,), input=tensor, output=output,
        fp32_operators=(), not_delegated={},
    )  # fmt: skip
    folder = build_bundle(tmp_path / "b", extra=(extra,))
    found = bench([folder], towers=["image"], **QUICK)
    assert [r.request.target for r in found.results] == ["onnx"]
    assert found.skipped[0].startswith("b coreml image: CoreML runs on a Mac or an iPhone only")
    with pytest.raises(MissingToolError, match="CoreML runs on a Mac"):
        bench([folder], runtimes=["coreml"], **QUICK)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"runtimes": ["onx"]}, InputError, "did you mean 'onnx'"),
        ({"runtimes": ["executorch"]}, InputError, "has no executorch artifact; it holds: onnx"),
        ({"provider": "cpus"}, InputError, "unknown provider of onnx on this machine 'cpus'; did you mean 'cpu'"),
        ({"mode": "brust"}, InputError, "did you mean 'burst'"),
        ({"threads": 0}, InputError, "1 or more"),
        ({"seconds": float("nan")}, InputError, "0 or more"),
        ({"seconds": 601, "mode": "sustained"}, InputError, "600 s at most"),
    ],
)
def test_bad_options_are_named(tiny_bundle: Path, options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        bench([tiny_bundle], **(QUICK | options))


def test_bundles_are_found_below_the_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    assert find_bundles(tiny_bundle) == [tiny_bundle]
    assert find_bundles(tiny_bundle.parent) == [tiny_bundle]
    assert find_bundles(tmp_path) == []


def test_equal_folder_names_are_told_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    for parent in "xy":
        shutil.copytree(tiny_bundle, tmp_path / parent / "tiny")
    found = bench([tmp_path / "x/tiny", tmp_path / "y/tiny"], towers=["text"], **QUICK)
    assert [r.request.bundle for r in found.results] == ["x-tiny", "y-tiny"]
    assert len(save(found, tmp_path / "out")) == 2


def test_results_survive_saving(run: BenchRun, tmp_path: Path) -> None:
    paths = save(run, tmp_path / "results")
    assert all(re.fullmatch(rf"tiny-onnx-(image|text)-host-[\w.-]+-{run.results[0].device.unit}-cpu-1t\.json", p.name) for p in paths)
    assert read_results(tmp_path / "results") == list(run.results)
    assert read_results(paths[0]) == [run.results[0]]
    assert save(run, tmp_path / "all.json") == [tmp_path / "all.json"]
    assert read_results(tmp_path / "all.json") == list(run.results)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a result"),
        (b"[" * 100_000, "is not a result"),
        (b"[1]", "is not a result"),
        (b'{"latency_ms": [1], "schema_version": 1}', "schema version 1 is unknown"),
        (b'{"samples": [1], "schema_version": 3}', "field 'toolkit_version'"),
        (b"\xff\xfe", "is not a result"),
    ],
)
def test_foreign_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_results(file)


LOADED = {"engine": "e", "provider": "cpu", "load_ms": 1, "first_run_ms": 1, "baseline_memory_bytes": None}
MISFORMED = LOADED | {"warmup_ms": [], "latency_ms": [], "start_ms": [0.0], "wait_ms": [], "kept": [], "peak_memory_bytes": 1}


def worker(bundle: Path, script: str, timeout_s: float = 20) -> ProcessLink:
    job = Job(request(bundle=bundle.name), bundle, bundle / "none.bin")
    return ProcessLink(job, str(job.bundle), str(job.inputs), [sys.executable, "-c", script], timeout_s)


@pytest.mark.parametrize(
    ("script", "timeout_s", "message"),
    [
        ("import os; os._exit(7)", 20, r"ended during 'load' \(exit code 7\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 20, "out of memory perhaps"),
        ("raise SystemError('deep inside')", 20, "exit code 1: SystemError: deep inside"),
        ("import time; time.sleep(60)", 0.5, "no answer within 0.5 s of 'load'"),
        ("print('hello', flush=True); input()", 20, "not valid JSON: 'hello"),
        ("print('[' * 100000, flush=True); input()", 20, "not valid JSON"),
        ("print('[1]', flush=True); input()", 20, "not valid JSON"),
        ("import json; print(json.dumps({'error': 'DeviceError', 'message': 'odd'}), flush=True); input()", 20, "odd"),
        ("[print('{}', flush=True) for _ in range(9)]; input()", 20, "wrong form"),
        (f"[print({json.dumps(MISFORMED)!r}, flush=True) for _ in range(9)]; input()", 20, "wrong form"),
        (f"[print({json.dumps(MISFORMED | {'latency_ms': [-1.0]})!r}, flush=True) for _ in range(9)]; input()", 20, "wrong form"),
        ("import json; print(json.dumps({'error': 'GateError', 'message': 'odd'}), flush=True); input()", 20, "odd"),
        (f"[print({json.dumps(MISFORMED | {'latency_ms': [10**400]})!r}, flush=True) for _ in range(9)]; input()", 20, "wrong form"),
    ],
)
def test_a_bad_worker_is_named_and_the_others_go_on(tiny_bundle: Path, inputs: Path, script: str, timeout_s: float, message: str) -> None:
    small = request(min_samples=5, min_seconds=0, warmup_runs=1)
    workers = [worker(tiny_bundle, script, timeout_s), Host().link(Job(small, tiny_bundle, inputs), 1, 60)]
    try:
        bad, good = Rounds(workers, Host().info(), Host().state, random.Random(0), lambda _: None).run()
    finally:
        for w in workers:
            w.close()
    assert bad.samples is None
    assert isinstance(bad.error, DeviceError)
    assert str(bad.error).startswith(f"{tiny_bundle}: onnx image: ")
    assert re.search(message, str(bad.error))
    assert good.error is None
    assert len(good.samples.latency_ms) >= 5


def test_a_worker_killed_half_way_leaves_the_other_results(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    warm_up = Rounds._warm_up

    def kill_image(self: Rounds, w: ProcessLink, collected: rounds._Collected) -> None:
        warm_up(self, w, collected)
        if w.job.request.tower == "image":
            os.kill(w.process.pid, signal.SIGKILL)

    monkeypatch.setattr(Rounds, "_warm_up", kill_image)
    found = bench([tiny_bundle], **QUICK)
    assert [r.request.tower for r in found.results] == ["text"]
    (failure,) = found.failures
    assert (failure.bundle, failure.tower, failure.error, failure.exit_code) == ("tiny", "image", "DeviceError", 4)
    assert len(save(found, tmp_path)) == 1


def test_what_the_worker_reports_keeps_its_class(build_bundle: Callable[..., Path], tmp_path: Path, inputs: Path) -> None:
    folder = build_bundle(tmp_path / "b")
    (folder / "image.onnx").write_bytes(b"changed")
    (ended,) = Host().measure([Job(request(), folder, inputs)], 0, 60, print)
    assert isinstance(ended.error, BundleError)
    assert "was changed after the export" in str(ended.error)


def test_library_output_on_stdout_does_not_reach_the_protocol(tiny_bundle: Path, inputs: Path) -> None:
    script = (
        "import os, sys, mobileclip.export.runtimes.onnx as o; old = o.OnnxSession.run\n"
        "def run(self, v): print('noise'); sys.stdout.flush(); os.write(1, b'raw noise\\n'); return old(self, v)\n"
        "o.OnnxSession.run = run\n"
        "from mobileclip.benchmark.devices import host_worker as w; w.main()"
    )
    job = Job(request(), tiny_bundle, inputs)
    w = ProcessLink(job, str(tiny_bundle), str(inputs), [sys.executable, "-c", script], 60)
    try:
        loaded = w.ask(Loaded, "load", request=job.request.model_dump(mode="json"), bundle=str(tiny_bundle), inputs=str(inputs))
        assert loaded.engine.startswith("onnxruntime")
        assert len(w.ask(WarmedUp, "warm_up").warmup_ms) == 10
    finally:
        w.close()


GOOD_BLOCK = {"latency_ms": [1.0] * 4, "start_ms": [0.0, 1, 2, 3], "wait_ms": [], "kept": []}


@pytest.mark.parametrize(
    "bad",
    [
        {"kept": [1]}, {"kept": [{"sample": 2, "first_input": 0, "values": ""}]}, {"start_ms": [9.0, 8, 7, 6]}, {"start_ms": [0.0] * 4},
        {"latency_ms": [float("inf")] * 4}, {"wait_ms": [0.0]},
    ],
)  # fmt: skip
def test_a_bad_block_costs_only_itself(tiny_bundle: Path, bad: dict[str, object]) -> None:
    blocks = [GOOD_BLOCK, GOOD_BLOCK | {"start_ms": [4.0, 5, 6, 7]}, GOOD_BLOCK | {"start_ms": [8.0, 9, 10, 11]} | bad]
    answers = [LOADED, {"warmup_ms": []}, *blocks]
    script = f"import json\nfor a in {answers!r}: input(); print(json.dumps(a), flush=True)\ninput()".replace("inf]", "float('inf')]")
    script = script.replace("inf,", "float('inf'),")
    job = Job(request(min_samples=100, min_seconds=0, warmup_runs=1), tiny_bundle, tiny_bundle)
    link = ProcessLink(job, "", "", [sys.executable, "-c", script], 20)
    try:
        (ended,) = Rounds([link], Host().info(), Host().state, random.Random(0), lambda _: None).run()
    finally:
        link.close()
    assert "wrong form" in str(ended.error)
    assert ended.samples is not None
    assert ended.samples.latency_ms == (1.0,) * 8


def test_what_ctrl_c_leaves_is_kept(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, turns = Rounds._turn, []

    def interrupted(self: Rounds, link: ProcessLink, collected: rounds._Collected) -> object:
        turns.append(link)
        if len(turns) == 4:
            raise KeyboardInterrupt
        return turn(self, link, collected)

    monkeypatch.setattr(Rounds, "_turn", interrupted)
    found = bench([tiny_bundle], seconds=5, samples=10**6)
    assert {f.exit_code for f in found.failures} == {130}
    assert [r.reasons[0] for r in found.results] == [f"ended early: {r.label}: interrupted" for r in found.results]
    assert len(found.results) == 2


def test_a_device_is_looked_at_during_a_long_turn(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "LONG_BLOCK_SECONDS", 0.02)
    monkeypatch.setattr(rounds, "STATE_SECONDS", 0.05)
    found = bench([tiny_bundle], towers=["text"], mode="sustained", seconds=0.3, samples=5).results[0]
    moments = [s.moment for s in found.samples.states]
    assert (moments[0], moments[-1]) == ("before", "after")
    assert moments.count("during") >= 2


def test_each_turn_of_a_long_mode_waits_for_a_cool_device(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    cool_down = Rounds._cool_down
    monkeypatch.setattr(Rounds, "_cool_down", lambda self: asked.append("") or cool_down(self))
    bench([tiny_bundle], mode="sustained", seconds=0.05, samples=5)
    assert len(asked) == 3


def test_bundles_that_hold_nothing_for_the_device_are_passed_over(build_bundle: Callable[..., Path], tmp_path: Path) -> None:
    folder = build_bundle(tmp_path / "b")
    assert default_bundles(tmp_path, [], Host(), print) == [folder]
    assert default_bundles(tmp_path, ["onnx"], Host(), print) == [folder]
    device = Host()
    device.targets = ("coreml",)
    made: list[Options] = []
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(
            "mobileclip.export.export.export_bundle", lambda model, options, path, progress: made.append(options) or Bundle(path, None)
        )
        assert default_bundles(tmp_path, [], device, print) == [tmp_path / "mobileclip_nano-fp16-coreml"]
    assert (made[0].targets, made[0].precision) == (("coreml",), "fp16")


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = cli("bench", tiny_bundle, "-o", "file", "--seconds", 1000, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (5, 1), done.stderr
    done = cli("bench", tiny_bundle, "--device", "web", "--app", "none.apk", cwd=tmp_path)
    assert done.returncode == 2


@pytest.mark.parametrize(("field", "value"), [("p50_ms", 0.5), ("cv_percent", 0.1)])
def test_an_edited_result_is_refused(run: BenchRun, tmp_path: Path, field: str, value: float) -> None:
    r = run.results[0]
    edited = r.model_copy(update={"summary": r.summary.model_copy(update={field: value})})
    save(run.model_copy(update={"results": (edited,)}), tmp_path)
    with pytest.raises(InputError, match="the summary does not follow from the samples"):
        read_results(tmp_path)
    save(run.model_copy(update={"results": (r.model_copy(update={"valid": True, "reasons": ()}),)}), tmp_path)
    with pytest.raises(InputError, match="says that it is valid, but"):
        read_results(tmp_path)


def test_times_of_emulated_devices_are_not_in_the_table(run: BenchRun) -> None:
    r = run.results[0]
    device = r.device.model_copy(update={"emulated": True})
    shown = table([r.model_copy(update={"samples": r.samples.model_copy(update={"device": device})})])[0]
    assert shown[3:10] == ("-", "-", "-", "-", r.summary.n, "-", "-")


def test_two_phones_of_a_kind_have_two_files(run: BenchRun, tmp_path: Path) -> None:
    r = run.results[0]
    for name, unit in (
        ("\u0410\u043d\u044f (iPhone 12)", ""),
        ("\u0411\u043e\u0440\u0438\u0441 (iPhone 12)", ""),
        ("web", ""),
        ("web", "abc123"),
    ):
        device = r.device.model_copy(update={"name": name, "unit": unit})
        result = r.model_copy(update={"samples": r.samples.model_copy(update={"device": device})})
        save(run.model_copy(update={"results": (result,)}), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def cli(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_commands_work_together(tiny_bundle: Path, tmp_path: Path) -> None:
    done = cli("bench", tiny_bundle, "--seconds", 0.02, "--samples", 20, "--json", "-o", "all.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["results"]) == 2
    done = cli("bench", tiny_bundle, "--mode", "mlperf", "--tower", "text", "--seconds", 0.02, "--samples", 80, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "by MLPerf's early stopping" in " ".join(done.stdout.split())
    compared = cli("compare", "all.json", "all.json", "--json", cwd=tmp_path)
    assert [c["verdict"] for c in json.loads(compared.stdout)["comparisons"]] == ["no difference"] * 2
    assert "no difference" in cli("compare", "all.json", "all.json", cwd=tmp_path).stdout
    assert cli("report", tiny_bundle, "all.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_a_report_is_a_check_against_a_baseline(run: BenchRun, tmp_path: Path) -> None:
    save(run, tmp_path / "baseline")
    done = cli("report", "baseline", "--check", "baseline", cwd=tmp_path)
    assert (done.returncode, "nothing is slower or wrong" in done.stdout) == (0, True), done.stderr
    a, b = run.results
    slow = {name: tuple(3 * v for v in getattr(a.samples, name)) for name in ("latency_ms", "wait_ms")}
    worse = a.model_copy(update={"samples": a.samples.model_copy(update=slow)})
    worse = worse.model_copy(update={"summary": statistics.summarize(worse.samples.latency_ms, worse.samples.wait_ms)})
    wrong = b.model_copy(update={"parity": b.parity.model_copy(update={"passed": False, "cosine_min": 0.5})})
    save(run.model_copy(update={"results": (worse, wrong)}), tmp_path / "now")
    done = cli("report", "now", "--check", "baseline", cwd=tmp_path)
    assert done.returncode == 3
    assert re.search(r"^error: worse than baseline: tiny onnx image: [23]\.\d\d of baseline's cost; tiny onnx text: smallest", done.stderr)
    assert (tmp_path / "report.html").exists()
    told = json.loads(cli("report", "now", "--check", "baseline", "--json", cwd=tmp_path).stdout)
    assert (len(told["slower"]), len(told["wrong"])) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bench", "--runtime", "onx"], 2, "did you mean 'onnx'"),
        (["bench", "--device", "iphone12"], 4, "no device 'iphone12' is connected; connected: host (this machine)"),
        (["bench", "--device", "hots"], 4, "no device 'hots' is connected; did you mean 'host'? connected: host"),
        (["bench", "--device", "host", "--via", "adb"], 2, "cannot be reached via 'adb'"),
        (["bench", "nowhere"], 2, "is not a bundle"),
        (["bench", "--tower", "imag"], 2, "did you mean 'image'"),
        (["bench", "--mode", "mlpref"], 2, "did you mean 'mlperf'"),
        (["ratios", "--precision", "fp23"], 2, "did you mean 'fp32'"),
        (["compare", "a.json", "b.json"], 2, "no such file"),
        (["report", "nowhere"], 2, "no such file"),
    ],
)
def test_errors_are_one_line_with_the_right_code(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_the_state_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host.psutil, "sensors_battery", lambda: SimpleNamespace(percent=100.4, power_plugged=False), raising=False)
    monkeypatch.setattr(host, "POWER_PROFILE", tmp_path / "profile")
    monkeypatch.setattr(host.sys, "platform", "linux")
    found = Host().state("before")
    assert (found.battery_percent, found.charging, found.low_power) == (100, False, None)
    (tmp_path / "profile").write_text("low-power\n")
    assert Host().state("after").low_power is True
    monkeypatch.setattr(host.psutil, "sensors_battery", lambda: None)
    assert Host().state("after").battery_percent is None
