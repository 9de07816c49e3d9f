"""`mobileclip app install`: the app is built by programs that stand in for Gradle and Xcode, and goes to simulated phones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobileclip.benchmark import devices
from mobileclip.benchmark.devices import build, ios
from mobileclip.benchmark.devices.app import APP
from mobileclip.errors import InputError, MissingToolError
from tests.devices.test_app import UDID, installed, mac  # noqa: F401 (fixtures)

CLI = [sys.executable, "-c", "from mobileclip.cli import main as m; m.COMMANDS = (); m.main()"]


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A function that puts programs of a few lines of shell first on the path."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def build_tools(**programs: str) -> Path:
        for name, body in programs.items():
            (folder / name).write_text(f'#!/bin/sh\necho "$0 $@" >> {folder}/asked\n{body}\n')
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder

    return build_tools


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The apps' folders; what is built lies in `app.apk` and below the cache."""
    (tmp_path / "android_app").mkdir()
    (tmp_path / "android_app/settings.gradle.kts").touch()
    (tmp_path / "ios_app/MobileCLIP.xcodeproj").mkdir(parents=True)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "cache")
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


APKS = "\n".join(f'mkdir -p $(dirname "$2/{apk}") && echo {i} > "$2/{apk}"' for i, apk in enumerate(build._APKS))


def silent(step):
    pass


def test_an_android_phone_gets_the_app(installed, tools, sources, monkeypatch):  # noqa: F811
    phone = installed()
    phone.script("cmd", 'if [ "$1 $2" = "package install" ]; then head -c 2 >> /system/installed; echo Success; fi')
    asked = tools(gradle=APKS, java="") / "asked"
    monkeypatch.setenv("ANDROID_HOME", "/sdk")
    told: list[str] = []
    packages = build.install(devices.find("android", "app"), None, None, told.append)
    assert (phone.root / "system/installed").read_bytes() == b"0\n1\n"
    assert packages == [sources / "android_app" / apk for apk in build._APKS]
    assert asked.read_text().endswith(":app:assembleDebug :bench:assembleRelease\n")
    installing = [f"installing {name} on {devices.find('android').name}" for name in ("app-debug.apk", "bench-release.apk")]
    assert told == ["building the Android apps; the first time takes minutes", *installing]


def test_all_that_is_missing_is_told_at_once(installed, sources, monkeypatch):  # noqa: F811
    installed()
    device = devices.find("android", "app")
    monkeypatch.setattr(build, "shutil", SimpleNamespace(which=lambda name: None))
    with pytest.raises(MissingToolError, match=r"Gradle \(.*\), a JDK, 17 or later, an Android SDK \(.*\); or open android_app in"):
        build.install(device, None, None, silent)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "printf '* What went wrong:\\nSDK location not found.\\n'; exit 1",
            "gradle cannot build the app: SDK location not found.$",
        ),
        ("exit 1", "gradle cannot build the app: no message$"),
        ("exit 0", "the build has left no app-debug.apk; build the app in its own studio to see why$"),
    ],
)
def test_a_build_that_fails(installed, tools, sources, monkeypatch, body, message):  # noqa: F811
    installed()
    tools(gradle=body, java="")
    monkeypatch.setenv("ANDROID_HOME", "/sdk")
    with pytest.raises(InputError, match=message):
        build.install(devices.find("android", "app"), None, None, silent)


@pytest.mark.parametrize(
    ("words", "message"),
    [({"source": Path("nowhere")}, "nowhere: no settings.gradle.kts there"), ({"team": "ABCDE12345"}, "are for an iPhone only")],
)
def test_what_is_refused_for_android(installed, sources, words, message):  # noqa: F811
    installed()
    with pytest.raises(InputError, match=message):
        build.install(devices.find("android", "app"), **{"source": None, "team": None, "progress": silent} | words)


def test_an_iphone_gets_the_app(mac, tools, sources):  # noqa: F811
    phone = mac(apps=[])
    made = sources / "cache/ios-app/Build/Products/Release-iphoneos/MobileCLIP.app"
    asked = tools(xcodebuild=f"mkdir -p {made}") / "asked"
    device = devices.find(UDID)
    assert isinstance(device, ios.Devicectl)
    assert build.install(device, None, "ABCDE12345", silent) == [made]
    words = asked.read_text()
    assert f"-destination id={UDID}" in words
    assert f"MOBILECLIP_APP_ID={APP} DEVELOPMENT_TEAM=ABCDE12345 build" in words
    assert f"device install app --device {UDID} {made}" in (phone / "asked").read_text()


@pytest.mark.parametrize("team", ["me", "abcde12345", "ABCDE12345 X=1"])
def test_a_team_that_is_none(mac, sources, team):  # noqa: F811
    mac()
    with pytest.raises(InputError, match="is no id of a team"):
        build.install(devices.find(UDID), None, team, silent)


def test_without_xcode(mac, sources, monkeypatch):  # noqa: F811
    mac()
    device = devices.find(UDID)
    monkeypatch.setattr(build, "shutil", SimpleNamespace(which=lambda name: None))
    with pytest.raises(MissingToolError, match="Xcode 16 or later"):
        build.install(device, None, None, silent)


def test_the_command_line():
    done = subprocess.run([*CLI, "app", "install", "--device", "host"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: this machine runs no app; name a phone\n")
