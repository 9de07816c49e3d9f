"""A phone that is a folder, reached by the machine's own adb through a server of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mobileclip.benchmark.devices import setup
from mobileclip.errors import MobileClipError
from tests.benchmark.conftest import write_bundle
from tests.devices.phone import Phone

BINFMT = Path("/proc/sys/fs/binfmt_misc")
RULE = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both towers of an untrained stand-in, which run in a moment."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", batch=2)


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server on a port of its own, so that no real phone is met."""
    if not shutil.which("adb"):
        pytest.skip("adb is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("ANDROID_USER_HOME", str(tmp_path_factory.mktemp("adb")))
        patch.delenv("ANDROID_HOME", raising=False)
        patch.delenv("ANDROID_SDK_ROOT", raising=False)
        subprocess.run(["adb", "start-server"], check=True, capture_output=True)
        yield
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True)


@pytest.fixture
def plug_in(adb_server: None, tmp_path: Path) -> Iterator[Callable[..., Phone]]:
    """A function that makes a phone and connects it."""
    if os.geteuid():
        pytest.skip("the phone's commands run in a chroot, which needs root")
    if not Path("/bin/busybox").exists():
        pytest.skip("busybox-static is not installed")
    phones: list[Phone] = []

    def build(properties: dict[str, str] | None = None) -> Phone:
        phone = Phone(tmp_path / f"phone{len(phones)}", properties)
        phones.append(phone)
        subprocess.run(["adb", "connect", phone.address], check=True, capture_output=True)
        return phone

    yield build
    for phone in phones:
        subprocess.run(["adb", "disconnect", phone.address], check=False, capture_output=True)
        phone.unplug()


@pytest.fixture(scope="session")
def arm64() -> Iterator[None]:
    """Programs for arm64 run, by emulation."""
    if os.geteuid() or not RULE.exists():
        pytest.skip("arm64 programs need root and Debian's qemu-user-static")
    mounted = not (BINFMT / "register").exists()
    if mounted and subprocess.run(["mount", "-t", "binfmt_misc", "none", str(BINFMT)], check=False, capture_output=True).returncode:
        pytest.skip("binfmt_misc cannot be mounted here")
    entry = BINFMT / "qemu-aarch64"
    registered = not entry.exists()
    if registered:
        (BINFMT / "register").write_text(next(line for line in RULE.read_text().splitlines() if line.startswith(":")))
    yield
    if registered:
        entry.write_text("-1")
    if mounted:
        subprocess.run(["umount", str(BINFMT)], check=False)


@pytest.fixture(scope="session")
def runtime() -> None:
    """onnxruntime-web is in the user's cache."""
    try:
        setup.web(print)
    except MobileClipError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Any]]:
    """A function that starts Chromium, with WebGPU in software."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("chromium is not installed")
    gpu = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    with playwright.sync_playwright() as started:
        yield lambda *more: started.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking", *gpu, *more]
        )


@pytest.fixture(scope="module")
def browser(launch: Callable[..., Any]) -> Iterator[Any]:
    """One that is open already."""
    opened = launch()
    yield opened
    opened.close()
