"""The phones' apps from their sources, by Gradle or Xcode: the sample and the benchmark app, for an iPhone both in one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mobileclip.benchmark.devices.android_app import AndroidApp
from mobileclip.benchmark.devices.app import APP, AppDevice
from mobileclip.benchmark.devices.rounds import Progress
from mobileclip.errors import InputError, MissingToolError, one_line
from mobileclip.files import cache_folder

ROOT = Path(__file__).parents[2]
"""The repository, where the toolkit runs from it."""
BUILD_SECONDS = 3600.0
_APKS = ("app/build/outputs/apk/debug/app-debug.apk", "bench/build/outputs/apk/release/bench-release.apk")
_PROJECT, _SCHEME = "MobileCLIP.xcodeproj", "MobileCLIP"


def install(device: AppDevice, source: Path | None, team: str | None, progress: Progress) -> list[Path]:
    """Build the apps for a device and install them there.

    Args:
        device: A phone with `device.app` as the app's name.
        source: `android_app` or `ios_app`; default: the repository's, where the toolkit runs from it.
        team: For an iPhone: the id of the Apple developer team that signs, ten letters and digits; default: the project's.
        progress: Told what is being done.

    Returns:
        The apps as files, or for an iPhone as a folder.

    Raises:
        InputError: No sources there, or they cannot be built.
        MissingToolError: What is needed to build; all of it.
        DeviceError: The device refuses the app.
    """
    android = isinstance(device, AndroidApp)
    if android and (team or device.app != APP):
        raise InputError("--team and --app-id are for an iPhone only: Android needs no other name to sign the app")
    source = source or ROOT / ("android_app" if android else "ios_app")
    wanted = "settings.gradle.kts" if android else _PROJECT
    if not (source / wanted).exists():
        raise InputError(f"{source}: no {wanted} there; clone the toolkit's repository and give --source {source.name} of it")
    packages = _android(source, progress) if android else _iphone(source, device, team, progress)
    if lost := next((package for package in packages if not package.exists()), None):
        raise InputError(f"the build has left no {lost.name}; build the app in its own studio to see why")
    for package in packages:
        progress(f"installing {package.name} on {device.name}")
        device.install(package)
    return packages


def _android(source: Path, progress: Progress) -> list[Path]:
    wrapper = source / "gradlew"
    gradle = str(wrapper) if wrapper.is_file() else shutil.which("gradle")
    lacking = [] if gradle else ["Gradle (https://gradle.org/install)"]
    if not shutil.which("java"):
        lacking.append("a JDK, 17 or later")
    if not (os.environ.get("ANDROID_HOME") or os.environ.get("ANDROID_SDK_ROOT") or (source / "local.properties").is_file()):
        lacking.append("an Android SDK (install Android Studio and set ANDROID_HOME)")
    if lacking or gradle is None:
        raise MissingToolError(f"the Android app cannot be built here; install {', '.join(lacking)}; or open android_app in Android Studio")
    progress("building the Android apps; the first time takes minutes")
    tasks = (":app:assembleDebug", ":bench:assembleRelease")
    _run([gradle, "--project-dir", str(source), "--console=plain", "--quiet", *tasks], r"^\* What went wrong:\s*\n(.+)")
    return [source / apk for apk in _APKS]


def _iphone(source: Path, device: AppDevice, team: str | None, progress: Progress) -> list[Path]:
    if team is not None and not re.fullmatch(r"[A-Z0-9]{10}", team):
        raise InputError(f"--team {team!r} is no id of a team; it has ten capitals and digits, see developer.apple.com, Membership")
    if not shutil.which("xcodebuild"):
        where = "" if sys.platform == "darwin" else "on a Mac "
        raise MissingToolError(
            f"the iPhone app is built {where}with Xcode 16 or later; install it, or give a finished app to bench with --app"
        )
    products = cache_folder() / "ios-app"
    # not PRODUCT_BUNDLE_IDENTIFIER: from here it would be every target's, the package's too
    settings = [f"MOBILECLIP_APP_ID={device.app}", *([f"DEVELOPMENT_TEAM={team}"] if team else [])]
    progress("building the iPhone app; the first time takes minutes")
    _run(
        [
            "xcodebuild", "-project", str(source / _PROJECT), "-scheme", _SCHEME, "-configuration", "Release", "-destination",
            f"id={device.key}", "-derivedDataPath", str(products), "-allowProvisioningUpdates", "-quiet", *settings, "build",
        ],
        r"error: (.+)",
    )  # fmt: skip
    return [products / f"Build/Products/Release-iphoneos/{_SCHEME}.app"]


def _run(command: Sequence[str], mistake: str) -> None:
    """Run a build to its end; `mistake` finds what went wrong in what it prints."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
            timeout=BUILD_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(f"{name} has not ended within {BUILD_SECONDS:g} s; build the app in its own studio to see why") from None
    except OSError as e:
        raise MissingToolError(f"{name} does not start ({one_line(e)}); install it again") from None
    if done.returncode:
        found = re.search(mistake, done.stdout, re.MULTILINE)
        said = found[1] if found else (done.stdout.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{name} cannot build the app: {one_line(Exception(said))[:300]}")
