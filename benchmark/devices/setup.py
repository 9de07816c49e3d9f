"""What devices need and the toolkit does not contain: got once by name, version and sha256, kept in the user's cache.

For phones the runner is compiled here, with the Android NDK where there is one (ANDROID_NDK_HOME), else with Debian's cross compiler:
the C library then goes along, and only the CPU can be used.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from mobileclip.benchmark.devices.rounds import Progress
from mobileclip.data.packages import Package, members, obtain
from mobileclip.errors import MissingToolError, one_line
from mobileclip.files import STAGING_PREFIX, cache_folder, locked, remove_stale, remove_tree, writing

WEB = Package(
    "npm", "onnxruntime-web", "1.30.0", "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71", "MIT", "Microsoft Corporation"
)
_WEB_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm", "ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
_LINUX = Package(
    "npm", "onnxruntime-node", "1.30.0", "6e3390d6b783e7be946fad629292799da28d0b42f84856e50d2c1b0383291e75", "MIT", "Microsoft Corporation"
)
_MOBILE = Package(
    "npm", "com.github.asus4.onnxruntime", "0.4.9", "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d", "MIT",
    "Koki Ibukuro, with ONNX Runtime 1.29 of Microsoft Corporation",
)  # fmt: skip
"""Has ONNX Runtime for Android and iOS, with its headers."""
_HEADERS = "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers/"
_AAR, _AAR_LIBRARY = "package/Plugins/Android/onnxruntime.aar", "jni/arm64-v8a/libonnxruntime.so"
_LINUX_LIBRARY = "package/bin/napi-v6/linux/arm64/libonnxruntime.so.1"
CROSS = "aarch64-linux-gnu"
LOADER = "ld-linux-aarch64.so.1"
_C_LIBRARIES = (
    LOADER, "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libgcc_s.so.1",
)  # fmt: skip
_SOURCES = ("runner.c", "json.c", "json.h")
_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wl,--allow-shlib-undefined")
_MADE = "made.sha256"
COMPILE_SECONDS = 300.0


def web(progress: Progress) -> dict[str, bytes]:
    """The files of onnxruntime-web that the page needs.

    Raises:
        MissingToolError: npm is not installed and the package not in the cache.
        StorageError: It cannot be had.
    """
    path = obtain(WEB, cache_folder() / "packages", None, progress)
    wanted = {f"package/dist/{name}": name for name in _WEB_FILES}
    return {wanted[name]: content for name, content in members(path, wanted.__contains__)}


def android_runner(progress: Progress) -> Path:
    """The folder with the runner for arm64 phones and all that it needs there; made if it is not there or out of date.

    Raises:
        MissingToolError: No compiler, or no npm.
        InputError: The compiler refuses the sources.
        StorageError: A package cannot be had, or the cache not be written.
    """
    sources = {name: (files("mobileclip.benchmark.devices") / "runner" / name).read_bytes() for name in _SOURCES}
    compiler, clang = _compiler()
    about = " ".join((compiler, _version(compiler), *_FLAGS, _LINUX.sha256, _MOBILE.sha256))
    made = hashlib.sha256(b"\0".join((*sources.values(), about.encode()))).hexdigest()
    folder = cache_folder() / "android-runner"
    if _is_made(folder, made):  # without the lock: a cache that is read-only has none
        return folder
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if _is_made(folder, made):
                return folder
            progress(f"compiling the runner with {Path(compiler).name}")
            remove_stale(folder.parent)
            with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=folder.parent) as staging:
                new = Path(staging) / folder.name
                _make(compiler, sources, new, bionic=clang, progress=progress)
                (new / _MADE).write_text(made)
                remove_tree(folder)
                new.rename(folder)
    return folder


def _is_made(folder: Path, made: str) -> bool:
    return (folder / _MADE).is_file() and (folder / _MADE).read_text() == made


def _compiler() -> tuple[str, bool]:
    """A compiler for arm64 phones, and whether it is the NDK's."""
    if ndk := os.environ.get("ANDROID_NDK_HOME"):
        clangs = sorted(Path(ndk).glob("toolchains/llvm/prebuilt/*/bin/aarch64-linux-android26-clang"))
        if not clangs:
            raise MissingToolError(f"ANDROID_NDK_HOME={ndk} holds no aarch64-linux-android26-clang; install a current NDK, or unset it")
        return str(clangs[0]), True
    if found := shutil.which(f"{CROSS}-gcc"):
        return found, False
    raise MissingToolError(
        "the runner for Android needs a compiler: set ANDROID_NDK_HOME to an NDK, or, on Debian, apt install gcc-aarch64-linux-gnu"
    )


def _version(compiler: str) -> str:
    return _asked(compiler, "--version").partition("\n")[0]


def _asked(compiler: str, *words: str) -> str:
    """What a compiler answers.

    Raises:
        MissingToolError: It does not work.
    """
    try:
        done = subprocess.run(
            [compiler, *words],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=COMPILE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise MissingToolError(f"{compiler}: does not work ({one_line(e)}); install it again") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        raise MissingToolError(f"{compiler}: does not compile the runner ({said}); install a current one")
    return done.stdout


def _make(compiler: str, sources: Mapping[str, bytes], folder: Path, *, bionic: bool, progress: Progress) -> None:
    packages = cache_folder() / "packages"
    build = folder / "build"
    build.mkdir(parents=True)
    for name, content in sources.items():
        (build / name).write_bytes(content)
    wanted = (lambda name: name.startswith(_HEADERS) or name == _AAR) if bionic else (lambda name: name.startswith(_HEADERS))
    aar = b""
    for name, content in members(obtain(_MOBILE, packages, None, progress), wanted):
        if name == _AAR:
            aar = content
        else:
            (build / Path(name).name).write_bytes(content)
    if bionic:
        library = folder / "libonnxruntime.so"
        with zipfile.ZipFile(io.BytesIO(aar)) as archive:
            library.write_bytes(archive.read(_AAR_LIBRARY))
    else:
        library = folder / "libonnxruntime.so.1"
        library.write_bytes(next(members(obtain(_LINUX, packages, None, progress), _LINUX_LIBRARY.__eq__))[1])
        for name in _C_LIBRARIES:
            shutil.copy(_c_library(compiler, name), folder / name)
    parts = [str(build / name) for name in sources if name.endswith(".c")]
    _asked(compiler, *_FLAGS, *parts, "-o", str(folder / "runner"), str(library), "-lm")
    shutil.rmtree(build)


def _c_library(compiler: str, name: str) -> Path:
    found = Path(_asked(compiler, f"-print-file-name={name}").strip())
    if not found.is_file():
        raise MissingToolError(f"{compiler}: has no {name} for arm64; install libc6-dev-arm64-cross and libstdc++6-arm64-cross")
    return found
