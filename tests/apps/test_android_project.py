"""The Android app: what can be known without Google's registry. docs/android_app.md says which checks are made, and which are not."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tomllib
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest

from mobileclip.benchmark.devices.app import APP
from tests.apps import kotlin as pinned
from tests.apps.kotlin import ANDROID, DECLARATIONS, ROOT

FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
NS = "{http://schemas.android.com/apk/res/android}"
TOOLS = "{http://schemas.android.com/tools}"
PAGE_BYTES = 16384


def manifest(module: str) -> ET.Element:
    return ET.parse(ANDROID / module / "src/main/AndroidManifest.xml").getroot()


def permissions(module: str) -> set[str]:
    """Those that are asked for; one with `tools:node="remove"` is taken away from the libraries too."""
    return {
        e.get(f"{NS}name").removeprefix("android.permission.")
        for e in manifest(module).iter("uses-permission")
        if e.get(f"{TOOLS}node") != "remove"
    }


@pytest.mark.parametrize("module", ["app", "bench"])
def test_the_network_is_not_asked_for_and_taken_from_libraries(module):
    removed = {e.get(f"{NS}name") for e in manifest(module).iter("uses-permission") if e.get(f"{TOOLS}node") == "remove"}
    assert removed == {"android.permission.INTERNET", "android.permission.ACCESS_NETWORK_STATE"}
    asked = {"CAMERA", "READ_MEDIA_IMAGES", "READ_MEDIA_VISUAL_USER_SELECTED", "READ_EXTERNAL_STORAGE"}
    assert permissions(module) == (asked if module == "app" else set())


def test_the_camera_is_not_required():
    features = {e.get(f"{NS}name"): e.get(f"{NS}required") for e in manifest("app").iter("uses-feature")}
    assert features == {"android.hardware.camera": "false", "android.hardware.camera.any": "false"}


def test_the_benchmark_app_is_the_one_that_the_toolkit_drives():
    build = (ANDROID / "bench/build.gradle.kts").read_text()
    assert f'applicationId = "{APP}"' in build
    assert f'namespace = "{APP}"' in build
    (entry,) = manifest("bench").iter("instrumentation")
    assert (entry.get(f"{NS}name"), entry.get(f"{NS}targetPackage")) == (".BenchInstrumentation", APP)


def test_the_catalog_has_the_versions_that_are_checked_here():
    catalog = tomllib.loads((ANDROID / "gradle/libs.versions.toml").read_text())["versions"]
    found = {c.split(":")[1]: c.split(":")[2].split("@")[0] for group in pinned.LIBRARIES.values() for c in group}
    assert catalog["kotlin"] == pinned.COMPILER.version
    assert catalog["serialization"] == found["kotlinx-serialization-json-jvm"]
    assert catalog["coroutines"] == found["kotlinx-coroutines-core-jvm"]
    assert catalog["onnxruntime"] == found["onnxruntime"]
    assert catalog["junit"] == found["junit"]


def test_every_module_is_there():
    modules = re.findall(r'":([a-z-]+)"', (ANDROID / "settings.gradle.kts").read_text())
    assert modules == ["core", "runtime-onnx", "runtime-executorch", "phone", "app", "bench"]
    for module in modules:
        assert (ANDROID / module / "build.gradle.kts").is_file()
        used = re.findall(r'project\(":([a-z-]+)"\)', (ANDROID / module / "build.gradle.kts").read_text())
        assert set(used) <= set(modules[: modules.index(module)]), "dependencies point one way"


def test_named_libraries_are_in_the_catalog():
    catalog = tomllib.loads((ANDROID / "gradle/libs.versions.toml").read_text())
    known = {name.replace("-", ".") for name in catalog["libraries"]} | {f"plugins.{name.replace('-', '.')}" for name in catalog["plugins"]}
    used = {name for file in ANDROID.rglob("*.gradle.kts") for name in re.findall(r"libs\.([a-z0-9.]+)\)", file.read_text())}
    assert used == known


def test_telemetry_is_switched_off_before_the_library_is_loaded():
    runtimes = (ANDROID / "phone/src/main/kotlin/org/mobileclip/phone/Runtimes.kt").read_text()
    assert runtimes.index('Os.setenv("ORT_DISABLE_TELEMETRY", "1", true)') < runtimes.index("OnnxSession.load")
    for file in (f for module in ("app", "bench", "phone") for f in (ANDROID / module / "src/main").rglob("*.kt")):
        if file.name != "Runtimes.kt":
            assert "org.mobileclip.onnx" not in file.read_text(), f"{file.name} goes around it"


def test_what_decides_knows_nothing_of_android():
    app = "app/src/main/kotlin/org/mobileclip/app"
    for folder in ("core/src", "runtime-onnx/src", f"{app}/state", f"{app}/ui"):
        for file in (ANDROID / folder).rglob("*.kt"):
            assert not re.search(r"^import (android|androidx\.(activity|camera|lifecycle))\.", file.read_text(), re.MULTILINE), file


def test_patterns_do_not_ignore_case():
    """With that, U+0345 is a letter for Android's regular expressions (ICU), and none for Java's, which the tests here run."""
    for file in (ANDROID / "core/src/main").rglob("*.kt"):
        assert not re.search(r"\(\?\w*i|IGNORE_CASE", file.read_text()), file


@pytest.mark.parametrize("file", sorted(ANDROID.rglob("*.kt")), ids=lambda file: file.name)
def test_files_are_short(file):
    assert len(file.read_text().splitlines()) < 400


@pytest.mark.parametrize("module", ["app", "bench"])
def test_manifest_and_resources_link(module, tmp_path):
    if not shutil.which("aapt2") or not FRAMEWORK.exists():
        pytest.skip("aapt2 or the framework's resources are not installed (Debian: apt install aapt android-framework-res)")
    root = manifest(module)
    root.set("package", f"org.mobileclip.{module}")  # Gradle takes it from `namespace`
    for parent in list(root.iter()):
        for child in list(parent):
            if child.get(f"{TOOLS}node") == "remove" or child.tag == "uses-native-library":  # Debian's aapt2 is older than the latter
                parent.remove(child)
    file = tmp_path / "AndroidManifest.xml"
    ET.ElementTree(root).write(file)
    subprocess.run(["aapt2", "compile", "--dir", str(ANDROID / module / "src/main/res"), "-o", str(tmp_path / "res.zip")], check=True)
    command = ["aapt2", "link", "-I", str(FRAMEWORK), "--manifest", str(file), "--min-sdk-version", "26", "-o", str(tmp_path / "out.apk")]
    done = subprocess.run([*command, str(tmp_path / "res.zip")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = subprocess.run(["aapt2", "dump", "badging", str(tmp_path / "out.apk")], capture_output=True, text=True, check=True).stdout
    assert f"package: name='org.mobileclip.{module}'" in told
    assert "INTERNET" not in told
    assert "uses-feature: name='android.hardware.camera'" not in told


@pytest.mark.slow
def test_what_is_android_s_compiles_against_the_framework(kotlin):
    """Everything but the screens' own tests, against the real framework and runtimes; CameraX and androidx.activity are declarations."""
    sources = [ANDROID / f"{module}/src/main" for module in ("runtime-executorch", "phone", "bench", "app")]
    executorch = kotlin.executorch() / "package/android/libs/classes.jar"
    classpath = [*kotlin.onnx(), executorch, *kotlin.libraries("compose"), *kotlin.libraries("android")]
    jar = kotlin.built("android", [*sources, DECLARATIONS], classpath, compose=True)
    with zipfile.ZipFile(jar) as classes:
        names = set(classes.namelist())
    for wanted in ("bench/BenchInstrumentation", "app/MainActivity", "app/MobileClipApplication", "executorch/ExecuTorchSession"):
        assert f"org/mobileclip/{wanted}.class" in names


def alignment(library: bytes) -> int:
    """The least alignment of the segments that are loaded, of a 64-bit ELF file."""
    (offset,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    headers = [library[offset + i * size : offset + (i + 1) * size] for i in range(count)]
    return min(struct.unpack_from("<Q", header, 48)[0] for header in headers if struct.unpack_from("<I", header)[0] == 1)


@pytest.mark.slow
def test_the_runtimes_libraries_fit_pages_of_16_kb(kotlin):
    kotlin.libraries("android")
    found = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in kotlin.executorch().rglob("*/executorch/*/*.so")}
    with zipfile.ZipFile(kotlin.archive("fbjni")) as aar:
        found |= {name: aar.read(name) for name in aar.namelist() if re.fullmatch(r"jni/(arm64-v8a|x86_64)/.*\.so", name)}
    assert len(found) == 6
    for name, library in found.items():
        assert alignment(library) % PAGE_BYTES == 0, name


def test_the_docs_show_every_picture():
    page = (ROOT / "docs/android_app.md").read_text()
    pictures = {p.name for p in (ROOT / "docs/images").glob("android-*.png")}
    assert pictures == set(re.findall(r"images/(android-[a-z-]+\.png)", page))
    for name in pictures:
        assert (ROOT / "docs/images" / name).stat().st_size < 150_000
