"""The Kotlin compiler and the libraries of the Android app, pinned, from npm and Maven Central.

What only Google's own registry has (the Android Gradle plugin, CameraX, androidx.activity) is not among them; `declarations/` stands in
for the few of its functions that the app calls.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mobileclip.data.packages import Package, obtain
from mobileclip.files import cache_folder, locked, sha256_file

ROOT = Path(__file__).parents[2]
ANDROID = ROOT / "android_app"
RESOURCES = ANDROID / "core/src/main/resources"
DECLARATIONS = Path(__file__).with_name("declarations")
COMPILER = Package(
    "npm", "kotlin-compiler", "2.4.20", "c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f", "Apache-2.0", "JetBrains"
)
EXECUTORCH = Package(
    "npm", "react-native-executorch", "0.8.5", "4a1f84df51d75000dd5c28ad11fedd5ec0487f8b8189e8adcb001b9ca485c4b8", "MIT",
    "Software Mansion; ExecuTorch itself is Meta's, BSD-3-Clause",
)  # fmt: skip
"""It holds ExecuTorch's own `classes.jar` for Android and its libraries; nothing else of it is used."""
LIBRARIES = {
    "base": {
        "org.jetbrains.kotlinx:kotlinx-serialization-core-jvm:1.11.0": "f4a801c647d4351327cd9e1ac4113e2be9ea37a64ab0abae269c25a52e28f35d",
        "org.jetbrains.kotlinx:kotlinx-serialization-json-jvm:1.11.0": "563a25b4eb5c9128ae9c2479f3d1a5c44dcd176112b91cf03682e906eba5c935",
        "junit:junit:4.13.2": "8e495b634469d64fb8acfa3495a065cbacc8a0fff55ce1e31007be4c16dc57d3",
        "org.hamcrest:hamcrest-core:1.3": "66fdef91e9739348df7a096aa384a5685f4e875584cce89386a7a47251c4d8e9",
    },
    "onnx": {"com.microsoft.onnxruntime:onnxruntime:1.29.0": "5933bbc0c6c4d89afc04bf7c11011de23a947509c1352e5bf5936e62a84e4d10"},
    # Compose with the same packages as Android's, for computers, and what draws it
    "compose": {
        "org.jetbrains.kotlinx:kotlinx-coroutines-core-jvm:1.10.2": "5ca175b38df331fd64155b35cd8cae1251fa9ee369709b36d42e0a288ccce3fd",
        "org.jetbrains.kotlinx:atomicfu-jvm:0.23.2": "101ff43ff563fca167af5ade98c3b69bf569010eab745013b84d8955034d3b3c",
        "androidx.annotation:annotation-jvm:1.8.0": "9aab326d9492800991854360ac248f493ce7f7c3183519309b78ace9e240f6f6",
        "androidx.arch.core:core-common:2.2.0": "65308a06b1c00ee186cb9e19321383f043b993813f1522c47f4a3e3303bdba41",
        "androidx.collection:collection-jvm:1.4.0": "d5cf7b72647c7995071588fe870450ff9c8f127f253d2d4851e161b800f67ae0",
        "androidx.lifecycle:lifecycle-common-jvm:2.8.5": "61c873a7327c946ec033c310bb98f3f92eeabcede0e1a5200ab8a1896483c7bf",
        "androidx.lifecycle:lifecycle-runtime-desktop:2.8.5": "10bfe53bb2752f967751a5102cdb785eeea54e1d4df6bde88fb0f50b0a49156c",
        "androidx.lifecycle:lifecycle-viewmodel-desktop:2.8.5": "21ec0e77dc02ed0d6bfe6f3cba7f43e25400446d89ded8568ee165437e0c1922",
        "org.jetbrains.androidx.lifecycle:lifecycle-runtime-compose-desktop:2.8.4": "c1e51a246e69e237e87d289be08bebd8d406ffe9ff60a125e8f2072db6119966",  # noqa: E501
        "org.jetbrains.compose.animation:animation-core-desktop:1.7.3": "2b347abf6c48626153a02b70eef6bbe1d3c9527515d6f9f7eceaea3c398533bb",
        "org.jetbrains.compose.animation:animation-desktop:1.7.3": "474e6bd2a6ac2362e5dabd780f93b852768640aa16403b0fc505da88177f97b3",
        "org.jetbrains.compose.foundation:foundation-desktop:1.7.3": "e1dc2e97eca6acf5bb16fc587b7d92b09c89e3b7cec0589ea169a970d1c9fe48",
        "org.jetbrains.compose.foundation:foundation-layout-desktop:1.7.3": "d2c867c13ff6632f9880e67dabab2e930007b008b9b22950fc2cc075008eceb6",  # noqa: E501
        "org.jetbrains.compose.material:material-ripple-desktop:1.7.3": "c5f6bdfb229a1794a838ed1f31f7299a3b516004beffe1a8bcca753aa268be09",
        "org.jetbrains.compose.material3:material3-desktop:1.7.3": "7642434d7d79bf14886f2f0d1739e0a2e4428effa8a69e57c82b1540c19ace12",
        "org.jetbrains.compose.runtime:runtime-desktop:1.7.3": "76e3250547b9ca3cb1a49c272933b25cb3bccbc9ba12775dd6161a63d9aa7cf1",
        "org.jetbrains.compose.runtime:runtime-saveable-desktop:1.7.3": "4306363be90eaabe74b900db4c32ed1f15c7548e5b30a7093c4ee40c436b9b8c",
        "org.jetbrains.compose.ui:ui-desktop:1.7.3": "d8a43d211a85104da5a82459307825454b4038095700bc240057666d70f1aac6",
        "org.jetbrains.compose.ui:ui-geometry-desktop:1.7.3": "4b86c961c0b4bce7995329fd57d4339ede11cb75d7ec90bc1b9913396addb30f",
        "org.jetbrains.compose.ui:ui-graphics-desktop:1.7.3": "9109d77cc262f90408169b1ca0ba2d15135b6034e377a80bbf3ec0234954e852",
        "org.jetbrains.compose.ui:ui-text-desktop:1.7.3": "80e07e4ca739f7b6122f63e9a17e6853b947220ecb1180f8dcaf419d0e468996",
        "org.jetbrains.compose.ui:ui-unit-desktop:1.7.3": "598b52e257ed674145694b9790a7383a90fed2ec7154ba09ace4aa983c65b1a2",
        "org.jetbrains.compose.ui:ui-util-desktop:1.7.3": "161dcc73b929da61cee50045e96fb02f1633c36f18a2ef38b5c2c44c38606b52",
        "org.jetbrains.skiko:skiko-awt:0.8.18": "637f5de1a208f1368ac51b5a286a4827cec828cd62dda332dc3400b8543e243d",
        "org.jetbrains.skiko:skiko-awt-runtime-linux-x64:0.8.18": "8d63d92c66cf94fb6a8b1528090039d7341fa28a506f1df1132b5b4bb4adfdd2",
    },
    # all classes of the framework, as phones with Android 15 have them
    "android": {
        "org.robolectric:android-all:15-robolectric-13954326": "e17105f6c432357e6bb278a527f8e848d01fc56ccee01be77725bea23d871990",
        "com.facebook.fbjni:fbjni:0.7.0@aar": "7e319ae110ac5e5ef18904170aea5c3e753e915d196699d7fd39d36c8e1dfe36",
        "com.facebook.soloader:nativeloader:0.12.1": "971ded86009c0ac56fb2275e128f852e7dcbc41a40cd799688f8a1aebde5195d",
    },
}
_OF_THE_COMPILER = ("kotlin-stdlib", "kotlin-test", "kotlin-test-junit")


def missing() -> str:
    """What this machine lacks; empty if nothing."""
    return " and ".join(tool for tool in ("java", "npm", "mvn") if not shutil.which(tool))


@functools.cache
def shared() -> Kotlin:
    """One for all tests of a run, so that a module is compiled once."""
    return Kotlin()


class Kotlin:
    """Compiles and runs."""

    def __init__(self) -> None:
        self._folder = cache_folder() / "kotlin"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._built = tempfile.TemporaryDirectory(prefix="mobileclip-kotlin-")
        self._jars: dict[str, list[Path]] = {}
        self._compiler = self._unpacked(COMPILER, ("package/lib/",)) / "package/lib"

    # the libraries

    def libraries(self, group: str) -> list[Path]:
        """The files of a group of `LIBRARIES`; of an AAR its classes."""
        if group not in self._jars:
            with locked(self._folder / "kotlin"):
                self._jars[group] = [_classes(path) for path in self._obtained(LIBRARIES[group])]
        return self._jars[group]

    def executorch(self) -> Path:
        """A folder with ExecuTorch's `package/android/libs/classes.jar` and its native libraries for phones."""
        return self._unpacked(EXECUTORCH, ("package/android/libs/", "package/third-party/android/libs/executorch/"))

    def archive(self, name: str) -> Path:
        """The AAR itself, of a group that was asked for before."""
        return next(self._folder.glob(f"{name}-*.aar"))

    def _unpacked(self, package: Package, wanted: tuple[str, ...]) -> Path:
        target = self._folder / f"{package.name}-{package.version}"
        with locked(self._folder / "kotlin"):
            if not target.exists():
                file = obtain(package, cache_folder() / "packages", None, lambda _: None)
                half = target.with_suffix(".half")
                shutil.rmtree(half, ignore_errors=True)
                with tarfile.open(file) as tar:
                    tar.extractall(half, [m for m in tar.getmembers() if m.name.startswith(wanted)], filter="data")
                half.rename(target)
        return target

    def _obtained(self, pins: dict[str, str]) -> list[Path]:
        places = {self._folder / _filename(coordinates): (coordinates, sha256) for coordinates, sha256 in pins.items()}
        lacking = [coordinates for path, (coordinates, sha256) in places.items() if not path.exists() or sha256_file(path) != sha256]
        if lacking:
            with tempfile.TemporaryDirectory() as scratch:
                project = Path(scratch) / "pom.xml"
                project.write_text(_project(lacking))
                command = ["mvn", "-q", "-B", "-f", str(project), "dependency:copy-dependencies", "-DexcludeTransitive=true"]
                subprocess.run([*command, f"-DoutputDirectory={self._folder}"], check=True, capture_output=True, timeout=1200)
        for path, (coordinates, sha256) in places.items():
            assert sha256_file(path) == sha256, f"{path} is not {coordinates}"
        return list(places)

    # compiling and running

    @property
    def _base(self) -> list[Path]:
        return [*self.libraries("base"), *(self._compiler / f"{name}.jar" for name in _OF_THE_COMPILER)]

    def core(self) -> Path:
        """The module `core` with its tests; nothing else is on its path."""
        return self.built("core", [ANDROID / "core/src"], [])

    def onnx(self) -> list[Path]:
        """The class path of `runtime-onnx` with its tests."""
        libraries = self.libraries("onnx")
        return [self.built("onnx", [ANDROID / "runtime-onnx/src"], [self.core(), *libraries]), self.core(), *libraries, RESOURCES]

    def built(self, name: str, sources: Sequence[Path], classpath: Sequence[Path], compose: bool = False) -> Path:
        """A jar of folders of sources, compiled once; warnings are errors."""
        jar = Path(self._built.name) / f"{name}.jar"
        if jar.exists():
            return jar
        plugins = ["kotlinx-serialization-compiler-plugin", *(["compose-compiler-plugin"] if compose else [])]
        switches = [
            "-no-stdlib",
            "-no-reflect",
            "-Werror",
            "-jvm-target",
            "11",
            *(f"-Xplugin={self._compiler / name}.jar" for name in plugins),
        ]
        files = sorted(str(p) for folder in sources for p in folder.rglob("*.kt"))
        done = subprocess.run(
            [
                "java", "-Xmx1500m", "-cp", _joined(self._compiler.glob("*.jar")), "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", *switches,
                "-cp", _joined([*self._base, *classpath]), "-d", str(jar), *files,
            ],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return jar

    def command(self, main: str, classpath: Sequence[Path], *words: str, **properties: object) -> list[str]:
        """What runs a class."""
        given = [f"-D{name}={value}" for name, value in properties.items()]
        return ["java", "-Djava.awt.headless=true", *given, "-cp", _joined([*self._base, *classpath]), main, *words]

    def run(self, main: str, classpath: Sequence[Path], *words: str, **properties: object) -> str:
        """Run a class to its end; what it prints."""
        command = self.command(main, classpath, *words, **properties)
        environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    def test(self, classes: Sequence[str], classpath: Sequence[Path], **properties: object) -> str:
        """Run JUnit's tests; what it prints."""
        return self.run("org.junit.runner.JUnitCore", classpath, *classes, **properties)


def _filename(coordinates: str) -> str:
    name, kind = (*coordinates.split("@"), "jar")[:2]
    return "-".join(name.split(":")[1:]) + f".{kind}"


def _project(pins: Sequence[str]) -> str:
    """A Maven project that depends on them."""
    entries = ""
    for coordinates in pins:
        name, kind = (*coordinates.split("@"), "jar")[:2]
        group, artifact, version = name.split(":")
        place = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        entries += f"<dependency>{place}<version>{version}</version><type>{kind}</type></dependency>"
    head = "<modelVersion>4.0.0</modelVersion><groupId>none</groupId><artifactId>none</artifactId><version>0</version>"
    return f'<project xmlns="http://maven.apache.org/POM/4.0.0">{head}<dependencies>{entries}</dependencies></project>'


def _classes(path: Path) -> Path:
    """The jar; what an AAR has inside is put beside it."""
    if path.suffix != ".aar":
        return path
    jar = path.with_suffix(".classes.jar")
    with zipfile.ZipFile(path) as aar:
        jar.write_bytes(aar.read("classes.jar"))
    return jar


def _joined(paths) -> str:
    return os.pathsep.join(map(str, paths))
