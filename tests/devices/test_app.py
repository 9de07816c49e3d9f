"""Phones whose own app measures; the app is a program of this machine, behind the real adb and a stand-in for devicectl."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobileclip.benchmark import devices
from mobileclip.benchmark.bench import bench
from mobileclip.benchmark.devices import ios
from mobileclip.benchmark.devices.app import APP
from mobileclip.errors import DeviceError, StorageError
from tests.devices.iphone import IPhone
from tests.devices.phone import Phone

QUICK = {"seconds": 0.02, "samples": 40}
SIMULATOR, XCRUN = (Path(__file__).with_name(name) for name in ("app.py", "xcrun.py"))
PYMOBILEDEVICE3 = Path(__file__).parents[2] / "build/tools/bin/pymobiledevice3"
UDID = "00008101-000A1B2C3D4E5F60"


def check(found) -> None:
    """Both towers were measured, rightly, and are marked."""
    assert found.failures == ()
    assert [r.label for r in found.results] == ["tiny onnx image", "tiny onnx text"]
    for r in found.results:
        assert r.parity is not None
        assert r.parity.passed
        assert r.device.name == "Fake phone"
        assert "emulated: the numbers say nothing about a device" in r.reasons


# --- Android -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(plug_in):
    """A function that makes a phone with the app on it; the app runs outside of it, when `am instrument` is asked for."""

    def build(fault: str = "", listed: bool = True) -> Phone:
        phone = plug_in()
        home = phone.root / f"data/data/{APP}"
        home.mkdir(parents=True)
        (phone.root / "system/bin/cp").symlink_to("busybox")
        phone.script("run-as", f'cd /data/data/{APP} && shift && exec "$@"')
        phone.script("pm", f"echo 'instrumentation:{APP}/.BenchInstrumentation (target={APP})'" if listed else "true")
        phone.script("am", 'if [ "$1" = instrument ]; then cat /system/said; fi')
        phone.tell(activity="")

        def before(service: str) -> None:
            if found := re.search(r"-e plan files/(\S+)/plan\.json", service):
                if fault == "hang":
                    (phone.root / "system/said").write_text("")
                    phone.script("am", 'if [ "$1" = instrument ]; then sleep 30; fi')
                    return
                command = [sys.executable, SIMULATOR, home / "files" / found[1], fault]
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
                lines = [f"INSTRUMENTATION_STATUS: line={line}\nINSTRUMENTATION_STATUS_CODE: 0\n" for line in ran.stdout.splitlines()]
                end = "INSTRUMENTATION_RESULT: shortMsg=Process crashed.\nINSTRUMENTATION_CODE: 0\n" if ran.returncode else ""
                (phone.root / "system/said").write_text("".join(lines) + end)

        phone.before = before
        return phone

    return build


def test_android(installed, bundle):
    phone, told = installed(), list[str]()
    found = bench([bundle], device=devices.find("pixel8", via="app"), progress=told.append, per_op=True, **QUICK)
    check(found)
    assert {len(o.ms) for r in found.results for o in r.samples.operators} == {10}
    assert {r.device.unit for r in found.results} == {devices.find("pixel8", via="shell").info().unit}, "one phone by whatever way"
    assert "timing tiny onnx image" in told
    assert list((phone.root / f"data/data/{APP}/files").iterdir()) == []
    assert list((phone.root / "data/local/tmp").iterdir()) == []
    assert any(f"am force-stop {APP}" in service for service in phone.asked)


def test_the_app_is_installed_first(installed, bundle, tmp_path):
    phone = installed()
    phone.script("cmd", 'if [ "$1 $2" = "package install" ]; then head -c 9 > /system/installed; echo Success; fi')
    (tmp_path / "bench.apk").write_bytes(b"not a zip")
    device = devices.find("pixel8", via="app")
    device.package = tmp_path / "bench.apk"
    check(bench([bundle], device=device, **QUICK))
    assert (phone.root / "system/installed").read_bytes() == b"not a zip"


@pytest.mark.parametrize(
    ("fault", "message", "results"),
    [
        ("crash", "the app crashed (Process crashed.)", 1), ("refused", "the model needs iOS 18", 0),
        ("nonsense", "of the app is unusable", 0), ("silent", "", 2),
    ],
)  # fmt: skip
def test_an_android_app_that_fails(installed, bundle, fault, message, results):
    installed(fault)
    found = bench([bundle], device=devices.find("android", via="app"), **QUICK)
    assert len(found.results) == results
    assert all(message in f.message and f.exit_code == 4 for f in found.failures), found.failures
    assert len(found.failures) == 2 - results


@pytest.mark.parametrize("step", ["pm list", "sync", "cp -r", "am instrument", "head -c"])
def test_an_android_phone_with_the_app_unplugged_at(installed, bundle, step):
    phone = installed()
    device = devices.find("android", via="app")
    before = phone.before
    phone.before = lambda service: phone.unplug() if step in service else before(service)
    begin = time.monotonic()
    try:
        message = bench([bundle], device=device, **QUICK).failures[0].message
    except DeviceError as e:
        message = str(e)
    assert re.search("is not connected any more|is offline; reconnect", message), message
    assert "\n" not in message
    assert time.monotonic() - begin < 60


def test_what_the_app_refuses_is_told_in_its_words(installed, bundle):
    phone = installed("crash")
    before = phone.before

    def then(service: str) -> None:
        before(service)
        if "plan files/" in service:
            (phone.root / "system/said").write_text(
                "INSTRUMENTATION_RESULT: refused=there is no plan x; start it with: y\nINSTRUMENTATION_CODE: 0\n"
            )

    phone.before = then
    found = bench([bundle], device=devices.find("android", via="app"), **QUICK)
    assert found.failures[-1].message == f"{phone.address}: there is no plan x; start it with: y"


def test_an_android_app_that_hangs(installed, bundle):
    installed("hang")
    begin = time.monotonic()
    found = bench([bundle], device=devices.find("android", via="app"), timeout_s=1, **QUICK)
    assert all("the app has not been heard of for 1 s; it was stopped" in f.message for f in found.failures)
    assert time.monotonic() - begin < 25


def test_an_android_app_killed_for_memory(installed, bundle):
    phone = installed("crash")
    before = phone.before

    def then(service: str) -> None:
        before(service)
        if "plan files/" in service:
            phone.tell(activity="ApplicationExitInfo #0: timestamp=2026 pid=1 reason=3 (LOW_MEMORY) status=0\n")

    phone.before = then
    found = bench([bundle], device=devices.find("android", via="app"), **QUICK)
    assert {f.message for f in found.failures} == {f"{phone.address}: the app was killed, out of memory; give fewer or smaller models"}


def test_how_the_app_ended_an_earlier_time_is_not_told(installed, bundle):
    phone = installed("crash")
    earlier = "ApplicationExitInfo #%d: timestamp=2026-11-%d 10:00 pid=1 realUid=2\n process=x reason=%d (%s) status=0\n"
    phone.tell(activity=earlier % (0, 20, 3, "LOW_MEMORY"))
    before = phone.before

    def then(service: str) -> None:
        before(service)
        if "plan files/" in service:
            phone.tell(activity=earlier % (0, 21, 5, "APP CRASH(NATIVE)") + earlier % (1, 20, 3, "LOW_MEMORY"))

    phone.before = then
    found = bench([bundle], device=devices.find("android", via="app"), **QUICK)
    assert {f.message for f in found.failures} == {f"{phone.address}: the app crashed (Process crashed.)"}


def test_an_android_app_that_cannot_be_installed(installed, bundle, tmp_path):
    phone = installed()
    refused = "Failure [INSTALL_FAILED_UPDATE_INCOMPATIBLE: signatures do not match]"
    phone.script("cmd", f'if [ "$1 $2" = "package install" ]; then head -c 9 > /dev/null; echo "{refused}"; exit 1; fi')
    (tmp_path / "bench.apk").write_bytes(b"not a zip")
    device = devices.find("pixel8", via="app")
    device.package = tmp_path / "bench.apk"
    with pytest.raises(DeviceError, match="signatures do not match") as error:
        bench([bundle], device=device, **QUICK)
    assert "\n" not in str(error.value)


def test_no_android_app(installed, bundle):
    installed(listed=False)
    with pytest.raises(DeviceError, match=rf"has no app {APP}; install the benchmark app, see android_app/, or give it with --app"):
        bench([bundle], device=devices.find("android", via="app"), **QUICK)


# --- devicectl ---------------------------------------------------------------------------------------------------------------------


def listed(connection: object = (), device: object = (), hardware: object = ()) -> dict[str, object]:
    """A device as devicectl lists it, with changes."""
    return {
        "identifier": "6C1A2B3C-0000-4000-8000-123456789ABC",
        "connectionProperties": {"pairingState": "paired", "transportType": "wired", "tunnelState": "disconnected"} | dict(connection),
        "deviceProperties": {"name": "Anna's phone", "osVersionNumber": "18.6", "developerModeStatus": "enabled"} | dict(device),
        "hardwareProperties": {"marketingName": "iPhone 12 Pro Max", "productType": "iPhone13,4", "platform": "iOS", "udid": UDID}
        | dict(hardware),
    }


@pytest.fixture
def mac(tmp_path, monkeypatch):
    """A function that makes a Mac of this machine, with an iPhone connected; the phone's state may be given."""
    tools, phone = tmp_path / "tools", tmp_path / "iphone"
    tools.mkdir()
    phone.mkdir()

    def build(**state: object) -> Path:
        (phone / "state.json").write_text(json.dumps({"devices": [listed()], "apps": [APP], "app": APP, "udid": UDID} | state))
        (tools / "xcrun").write_text(f'#!/bin/sh\nexec {sys.executable} {XCRUN} {phone} "$@"\n')
        (tools / "xcrun").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        # the stand-in bundle has no CoreML artifact
        monkeypatch.setattr(ios.Devicectl, "providers", lambda self, artifact: ("cpu",))
        return phone

    return build


@pytest.mark.parametrize("name", [UDID, "Anna's phone", "iPhone13,4", "iphone12promax", "iphone"])
def test_an_iphone_on_a_mac(mac, bundle, name):
    phone = mac()
    device = devices.find(name)
    assert (device.kind, device.name, device.targets) == ("ios-devicectl", "Anna's phone (iPhone 12 Pro Max)", ("coreml",))
    if name == UDID:
        check(bench([bundle], device=device, **QUICK))
        assert list((phone / "container/Documents").iterdir()) == []
        assert f"--terminate-existing --console {APP} -- --mobileclip-bench Documents/mobileclip-" in (phone / "asked").read_text()


def test_an_iphone_that_is_younger_than_the_table(mac):
    mac(devices=[listed(hardware={"productType": "iPhone99,1", "marketingName": "iPhone 40 Pro"})])
    assert devices.find("iphone40pro").name == "Anna's phone (iPhone 40 Pro)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"connection": {"pairingState": "unpaired"}}, "is not paired: unlock it and trust this computer"),
        ({"connection": {"tunnelState": "unavailable"}}, "is not connected: plug it in"),
        ({"device": {"developerModeStatus": "disabled"}}, "is not in Developer Mode: switch it on"),
        ({"hardware": {"platform": "watchOS"}}, None),
    ],
)
def test_an_iphone_that_cannot_be_used(mac, change, reason):
    mac(devices=[listed(**change), "odd", {}])
    found, reasons = devices.connected()
    assert [d.key for d in found if d.kind.startswith("ios")] == []
    assert any(reason in r for r in reasons) if reason else not any(UDID in r for r in reasons)
    with pytest.raises(DeviceError, match="no device 'iphone12' is connected"):
        devices.find("iphone12")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"apps": []}, rf"has no app {APP}; install the benchmark app, see ios_app/"),
        (
            {"fail": {"copy to": ("The copy failed.", "There is no space left on the device")}},
            "no space left on the device; free some storage",
        ),
        (
            {"fail": {"info apps": ("The device is locked.", "Unable to use it because the device was not, or could not be, unlocked")}},
            "unlock it",
        ),
        ({"fail": {"info apps": ("Developer Mode is off", None)}}, "switch on Developer Mode"),
        ({"fail": {"info apps": ("x" * 5000, None)}}, "x{200}$"),
    ],
)
def test_faults_of_an_iphone_before_the_app_runs(mac, bundle, state, message):
    mac(**state)
    with pytest.raises((DeviceError, StorageError), match=message) as error:
        bench([bundle], device=devices.find("iphone12promax"), **QUICK)
    assert str(error.value).startswith(UDID)
    assert isinstance(error.value, StorageError) == ("space" in message)


@pytest.mark.parametrize(
    ("state", "message", "results"),
    [
        ({"fault": "crash"}, "the app crashed (App terminated due to signal 11.)", 1),
        ({"fault": "killed"}, "the app was killed, out of memory perhaps; give fewer or smaller models", 1),
        ({"fault": "nonsense"}, "of the app is unusable", 0),
        ({"fault": "hang"}, "the app has not been heard of for 3 s; it was stopped", 0),
        ({"fault": "refused"}, "the model needs iOS 18", 0),
    ],
)
def test_faults_of_an_iphone_s_app(mac, bundle, state, message, results):
    phone = mac(**state)
    found = bench([bundle], device=devices.find("iphone12promax"), timeout_s=3 if "hang" in state.values() else 60, **QUICK)
    assert len(found.results) == results
    assert message in found.failures[0].message
    assert list((phone / "container/Documents").iterdir()) == []


def test_an_iphone_s_app_that_is_not_signed(mac, bundle):
    mac(fail={"process launch": ("The application failed to launch.", "its code signature is not valid")})
    found = bench([bundle], device=devices.find("iphone12promax"), towers=["text"], **QUICK)
    assert found.failures[0].message.endswith(
        "its code signature is not valid; sign the app with your own team in Xcode and install it again"
    )


def test_the_app_is_installed_on_an_iphone(mac, bundle, tmp_path):
    mac(apps=[])
    device = devices.find("iphone12promax")
    device.package = tmp_path / "Bench.app"
    check(bench([bundle], device=device, **QUICK))


def test_devicectl_that_hangs(mac, monkeypatch):
    mac(hang="list devices")
    monkeypatch.setattr(ios, "LIST_SECONDS", 0.5)
    _, reasons = devices.connected()
    assert any("no answer to devicectl list devices" in r for r in reasons)


# --- pymobiledevice3 ---------------------------------------------------------------------------------------------------------------

LAUNCHER = """#!/bin/sh
# the real tool for all but what starts and stops apps, whose protocol the phone of the tests has not
echo "$*" >> "{phone}/asked"
case "$*" in
"developer dvt process-id-for-bundle-id {app} "*) echo 4242 ;;
"developer dvt kill 4242 "*) ;;
"developer dvt launch {app} --mobileclip-bench "*)
    plan=$(echo "$4" | sed 's/.*--mobileclip-bench //')
    exec {python} {simulator} "$(dirname "{phone}/$plan")" {fault} ;;
*) exec {tool} "$@" ;;
esac
"""


@pytest.fixture
def usb(tmp_path, monkeypatch):
    """A function that connects an iPhone to this machine by USB."""
    tool = PYMOBILEDEVICE3 if PYMOBILEDEVICE3.exists() else shutil.which("pymobiledevice3")
    if not tool:
        pytest.skip("pymobiledevice3 is not installed: make build/tools/.installed")
    phones = []

    def build(fault: str = "", apps: tuple[str, ...] = (APP,)) -> IPhone:
        phone = IPhone(tmp_path / "iphone", UDID, apps)
        phones.append(phone)
        tools = tmp_path / "tools"
        tools.mkdir()
        script = LAUNCHER.format(app=APP, python=sys.executable, simulator=SIMULATOR, phone=phone.root, fault=fault, tool=tool)
        (tools / "pymobiledevice3").write_text(script)
        (tools / "pymobiledevice3").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYMOBILEDEVICE3_USBMUX", phone.address)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(ios.PyMobileDevice, "providers", lambda self, artifact: ("cpu",))
        return phone

    yield build
    for phone in phones:
        phone.unplug()


def test_an_iphone_by_usb(usb, bundle):
    phone = usb()
    device = devices.find("iPhone 12")
    assert (device.key, device.kind, device.name) == (UDID, "ios-pymobiledevice3", "Anna's phone (iPhone 12)")
    check(bench([bundle], device=device, **QUICK))
    assert list((phone.root / "Documents").iterdir()) == []
    assert f"developer dvt kill 4242 --udid {UDID}" in (phone.root / "asked").read_text().splitlines(), "nothing is left running"


@pytest.mark.parametrize(("fault", "results"), [("crash", 1), ("refused", 0)])
def test_an_app_that_fails_on_an_iphone_by_usb(usb, bundle, fault, results):
    usb(fault)
    found = bench([bundle], device=devices.find("iphone"), **QUICK)
    assert len(found.results) == results
    assert re.search("the app|the model needs iOS 18", found.failures[0].message)


def test_no_app_on_an_iphone_by_usb(usb, bundle):
    usb(apps=())
    with pytest.raises(DeviceError, match=f"has no app {APP}; install the benchmark app"):
        bench([bundle], device=devices.find("iphone"), **QUICK)


def test_an_iphone_by_usb_that_is_gone(usb, bundle):
    phone = usb()
    device = devices.find("iphone")
    phone.unplug()
    with pytest.raises(DeviceError) as error:
        bench([bundle], device=device, **QUICK)
    assert "\n" not in str(error.value)
