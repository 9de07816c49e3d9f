"""Android over the real adb, with a phone that is a folder."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from mobileclip.benchmark import devices
from mobileclip.benchmark.bench import bench
from mobileclip.benchmark.devices import adb, rounds, setup
from mobileclip.benchmark.devices.rounds import Link
from mobileclip.errors import DeviceError, InputError, MissingToolError, StorageError
from tests.benchmark.conftest import write_bundle
from tests.devices import phone as fake

QUICK = {"seconds": 0.05, "samples": 40}
ANSWERS = """#!/system/bin/sh
while read -r line; do
    case "$line" in
    *'"do": "load"'*) %s ;;
    *'"do": "warm_up"'*) %s ;;
    *'"do": "block"'*) %s ;;
    *) echo '{"peak_memory_bytes": null, "warm_load_ms": 1}' ;;
    esac
done
"""
LOADED = """echo '{"engine": "e", "provider": "cpu", "load_ms": 1, "first_run_ms": 1, "baseline_memory_bytes": null}'"""
WARM = """echo '{"warmup_ms": [1]}'"""
BLOCK = """echo '{"latency_ms": [20, 20, 20, 20], "start_ms": [0, 0, 0, 0], "wait_ms": [], "kept": []}'"""


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny", batch=2)


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A function that makes a shell script the runner."""

    def build(load: str = LOADED, warm_up: str = WARM, block: str = BLOCK, whole: str | None = None) -> None:
        folder = tmp_path / "runner"
        folder.mkdir()
        (folder / "runner").write_text(ANSWERS % (load, warm_up, block) if whole is None else whole)
        monkeypatch.setattr(setup, "android_runner", lambda progress: folder)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return build


def left(phone: fake.Phone) -> list[Path]:
    return list((phone.root / "data/local/tmp").iterdir())


def check_nothing_is_left(phone: fake.Phone) -> None:
    assert left(phone) == []
    until = time.monotonic() + 30  # a busy machine takes its time
    while phone.running() and time.monotonic() < until:
        time.sleep(0.1)
    assert phone.running() == {}


def test_a_bundle_is_timed_by_the_runner(plug_in, arm64, bundle):
    """The real adb, the real runner, arm64 code."""
    phone = plug_in()
    found = bench([bundle], device=devices.find("Pixel 8"), per_op=True, **QUICK)
    assert found.failures == ()
    assert [r.label for r in found.results] == ["tiny onnx image", "tiny onnx text"]
    for r in found.results:
        assert r.parity is not None
        assert r.parity.passed
        assert r.samples.engine.startswith("onnxruntime 1.")
        assert r.samples.warm_load_ms > 0
        assert {len(o.ms) for o in r.samples.operators} == {10}
        assert r.samples.placement == {"cpu": len(r.samples.operators)}
        assert (r.device.name, r.device.soc, r.device.os) == ("Google Pixel 8", "Google Tensor G3", "Android 15 (API 35)")
        assert (r.device.logical_cores, r.device.memory_bytes, r.device.architecture) == (2, 7654321 * 1024, "arm64-v8a")
        assert {(s.thermal, s.battery_percent, s.charging, s.low_power) for s in r.samples.states} == {("nominal", 83.0, True, False)}
        assert "emulated: the numbers say nothing about a device" in r.reasons
    check_nothing_is_left(phone)


def test_what_the_runner_refuses(plug_in, arm64, bundle):
    plug_in()
    found = bench([bundle], device=devices.find("android"), provider="xnnpack", towers=["image"], **QUICK)
    assert re.search("XNNPACK", found.failures[0].message)


@pytest.mark.parametrize("name", ["serial", "pixel8", "Pixel 8", "google pixel-8", "shiba", "android"])
def test_it_is_found_by(plug_in, name):
    phone = plug_in()
    found = devices.find(phone.address if name == "serial" else name)
    assert (found.key, found.kind) == (phone.address, "android-shell")
    assert devices.find(found.key, via="web").kind == "android-web"


def test_two_phones(plug_in):
    first, second = plug_in(), plug_in({"ro.product.model": "SM-S921B", "ro.product.manufacturer": "samsung", "ro.product.device": "e1s"})
    with pytest.raises(DeviceError, match=r"'android' means several devices: .*name one by its number") as told:
        devices.find("android")
    assert first.address in str(told.value)
    assert devices.find("galaxys24").key == second.address
    with pytest.raises(DeviceError, match=r"^no device 'pixel7' is connected; did you mean 'pixel8'\? connected: host .*Galaxy S24"):
        devices.find("pixel7")


@pytest.mark.parametrize(
    ("battery", "thermal", "saver", "state"),
    [
        ("level: 50\n  scale: 200\n  AC powered: false\n  USB powered: false", "Thermal Status: 2", "1", ("fair", 25.0, False, True)),
        ("level: 100\n  Wireless powered: true", "Thermal Status: 3", "0", ("serious", 100.0, True, False)),
        ("", "", "null", ("unknown", None, None, None)),
        ("level: 7", "Thermal Status: 9", "", ("critical", 7.0, None, None)),
    ],
)
def test_its_state(plug_in, battery, thermal, saver, state):
    phone = plug_in()
    phone.tell(battery=battery, thermalservice=thermal)
    phone.script("settings", f"echo {saver}")
    found = devices.find("android").state("during")
    assert (found.moment, found.thermal, found.battery_percent, found.charging, found.low_power) == ("during", *state)


def test_a_warm_phone_cools_down_first(plug_in, runner, bundle, monkeypatch):
    phone = plug_in()
    runner()
    phone.tell(thermalservice="Thermal Status: 1")
    monkeypatch.setattr(rounds, "COOL_STEP_SECONDS", 0.2)
    told: list[str] = []

    def progress(step: str) -> None:
        told.append(step)
        if "warm" in step and len(told) > 5:
            phone.tell(thermalservice="Thermal Status: 0")

    bench([bundle], device=devices.find("android"), towers=["text"], progress=progress, **QUICK)
    assert any(step.startswith("the device is warm (thermal state fair); it may cool down for") for step in told)


def test_a_phone_that_stays_warm_is_measured_and_not_valid(plug_in, arm64, bundle, monkeypatch):
    phone = plug_in()
    phone.tell(thermalservice="Thermal Status: 1")
    monkeypatch.setattr(rounds, "COOL_SECONDS", 0.1)
    monkeypatch.setattr(rounds, "COOL_STEP_SECONDS", 0.05)
    phone.script("settings", "echo 1")
    found = bench([bundle], device=devices.find("android"), towers=["text"], **QUICK)
    (result,) = found.results
    assert "the device was warm at the start (thermal state fair); let it cool down" in result.reasons
    assert "low-power mode was on; switch it off" in result.reasons


# --- faults ------------------------------------------------------------------------------------------------------------------------


def test_no_adb(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    monkeypatch.delenv("ANDROID_SDK_ROOT", raising=False)
    monkeypatch.setattr(adb.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError))
    with pytest.raises(MissingToolError, match=r"no adb; install the platform tools, or pip install 'mobileclip-toolkit\[android\]'"):
        adb.find()
    with pytest.raises(DeviceError, match=r"no device 'pixel8' is connected; connected: host .*no adb"):
        devices.find("pixel8")
    assert devices.find("host").key == "host"


def other_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    tools = tmp_path / "sdk/platform-tools"
    tools.mkdir(parents=True)
    (tools / "adb").write_text(f"#!/bin/sh\n{body}\n")
    (tools / "adb").chmod(0o755)
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))


VERSION = 'if [ "$1" = version ]; then echo "Android Debug Bridge version 1.0.41"; exit; fi;'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo Android Debug Bridge version 1.0.31", r"is too old \(version 1\.0\.31\); install newer platform tools"),
        ("echo nonsense", r"is too old \(version unknown\)"),
        ("echo cannot execute >&2; exit 126", "adb version failed: cannot execute"),
        (f"{VERSION} sleep 60", r"no answer to adb devices -l within 0\.5 s"),
        (f"{VERSION} echo 'A1 unauthorized usb:1'", "Android A1 is unauthorized: unlock it and allow this computer in the dialog"),
        (f"{VERSION} echo 'A1 offline transport_id:1'", "Android A1 is offline: reconnect its cable"),
        (f"{VERSION} echo 'A1 no permissions (user in plugdev group); see'", "Android A1 is no permissions: add a udev rule"),
    ],
)
def test_adb_that_does_not_help(tmp_path, monkeypatch, body, message):
    other_adb(tmp_path, monkeypatch, body)
    monkeypatch.setattr(adb.run, "__defaults__", (0.5,))
    with pytest.raises(DeviceError, match=f"no device 'pixel8' is connected; .*{message}"):
        devices.find("pixel8")


def test_a_phone_that_is_not_allowed(plug_in):
    phone = plug_in()
    subprocess.run(["adb", "disconnect", phone.address], check=True, capture_output=True)
    phone.unauthorized = True
    subprocess.run(["adb", "connect", phone.address], check=False, capture_output=True)
    usable, reasons = adb.connected()
    assert phone.address not in usable
    assert any("allow this computer" in r or "offline" in r for r in reasons)


@pytest.mark.parametrize("step", ["mkdir", "sync", "chmod", "runner", "dumpsys"])
def test_a_phone_unplugged_at(plug_in, runner, bundle, step):
    phone = plug_in()
    runner()
    device = devices.find("android")
    phone.before = lambda service: phone.unplug() if step in service else None
    begin = time.monotonic()
    try:
        found = bench([bundle], device=device, towers=["text"], **QUICK)
        message = found.failures[0].message
    except DeviceError as e:
        message = str(e)
    assert re.search("is not connected any more|is offline; reconnect", message), message
    assert "\n" not in message
    assert time.monotonic() - begin < 60


def test_what_was_measured_before_it_was_unplugged_is_kept(plug_in, arm64, bundle):
    phone = plug_in()
    device = devices.find("android")
    looked = device.state
    device.state = lambda moment: looked(moment) if moment == "before" else phone.unplug() or looked(moment)  # type: ignore[method-assign]
    found = bench([bundle], device=device, towers=["text"], seconds=0.05, samples=3)
    (result,), (failure,) = found.results, found.failures
    assert len(result.samples.latency_ms) >= 3
    assert result.reasons[0].startswith("ended early: ")
    assert failure.exit_code == 4


def test_a_phone_unplugged_after_the_last_timed_run(plug_in, arm64, bundle, monkeypatch):
    phone = plug_in()
    device = devices.find("android")
    ask = Link.ask

    def asked(link, form, do, **values):
        if do == "finish":
            phone.unplug()
        return ask(link, form, do, **values)

    monkeypatch.setattr(Link, "ask", asked)
    found = bench([bundle], device=device, towers=["text"], seconds=0.05, samples=3)
    (result,), (failure,) = found.results, found.failures
    assert len(result.samples.latency_ms) >= 3
    assert [s.moment for s in result.samples.states] == ["before", "after"]
    assert result.reasons[0].startswith("ended early: ")
    assert failure.exit_code == 4


def test_no_room(plug_in, runner, bundle):
    phone = plug_in()
    runner()
    place = phone.root / "data/local/tmp"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(StorageError, match="its storage is full; free some and run again"):
            bench([bundle], device=devices.find("android"), **QUICK)
        assert left(phone) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"load": "kill -9 $$"}, "killed, out of memory perhaps"),
        ({"load": "exit 7"}, r"ended during 'load' \(exit code 7"),
        ({"load": "echo broken >&2; exit 3"}, r"exit code 3: broken"),
        ({"load": "sleep 60"}, r"no answer within 1 s of 'load'; it was stopped"),
        ({"load": "echo hello"}, "not valid JSON: 'hello"),
        ({"warm_up": """echo '{"warmup_ms": [1, 2'; exit 0"""}, "the answer to 'warm_up' is not valid JSON"),
        ({"block": """echo '{"error": "DeviceError", "message": "the model needs more memory"}'"""}, "the model needs more memory"),
        ({"whole": "no program"}, "exit code"),
    ],
)
def test_a_runner_that_fails(plug_in, runner, bundle, parts, message):
    phone = plug_in()
    runner(**parts)
    found = bench([bundle], device=devices.find("android"), towers=["text"], timeout_s=1, **QUICK)
    assert found.results == ()
    assert re.search(message, found.failures[0].message), found.failures[0].message
    check_nothing_is_left(phone)


def test_two_at_once_on_one_phone(plug_in, runner, bundle):
    plug_in()
    runner()
    first, second = devices.find("android"), devices.find("android")
    with first.prepared([], print):
        with pytest.raises(DeviceError, match="another process measures on it; wait for it"):
            bench([bundle], device=second, **QUICK)


def test_what_a_killed_process_left_is_taken_away(plug_in, runner):
    phone = plug_in()
    runner()
    for name, hours in (("mobileclip-dead", 25), ("mobileclip-elsewhere", 1), ("photo", 25)):
        place = phone.root / "data/local/tmp" / name
        place.mkdir()
        os.utime(place, (time.time() - 3600 * hours,) * 2)
    with devices.find("android").prepared([], print):
        pass
    assert sorted(p.name for p in left(phone)) == ["mobileclip-elsewhere", "photo"]


def test_a_phone_without_64_bits(plug_in, bundle):
    plug_in({"ro.product.cpu.abilist": "armeabi-v7a,armeabi"})
    with pytest.raises(MissingToolError, match="the runner needs a 64-bit ARM phone, this one is armeabi-v7a,armeabi"):
        bench([bundle], device=devices.find("android"), **QUICK)


def test_unknown_ways(plug_in):
    plug_in()
    with pytest.raises(InputError, match="cannot be reached via 'bluetooth'"):
        devices.find("android", via="bluetooth")
