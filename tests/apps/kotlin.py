"""The Kotlin compiler and the libraries of the Android app's platform-neutral modules, pinned, from npm and Maven Central."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from mobileclip.data.packages import Package, obtain
from mobileclip.files import cache_folder, locked, sha256_file

COMPILER = Package(
    "npm", "kotlin-compiler", "2.4.20", "c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f", "Apache-2.0", "JetBrains"
)
LIBRARIES = {
    "org.jetbrains.kotlinx:kotlinx-serialization-core-jvm:1.11.0": "f4a801c647d4351327cd9e1ac4113e2be9ea37a64ab0abae269c25a52e28f35d",
    "org.jetbrains.kotlinx:kotlinx-serialization-json-jvm:1.11.0": "563a25b4eb5c9128ae9c2479f3d1a5c44dcd176112b91cf03682e906eba5c935",
    "com.microsoft.onnxruntime:onnxruntime:1.29.0": "5933bbc0c6c4d89afc04bf7c11011de23a947509c1352e5bf5936e62a84e4d10",
    "junit:junit:4.13.2": "8e495b634469d64fb8acfa3495a065cbacc8a0fff55ce1e31007be4c16dc57d3",
    "org.hamcrest:hamcrest-core:1.3": "66fdef91e9739348df7a096aa384a5685f4e875584cce89386a7a47251c4d8e9",
}
_OF_THE_COMPILER = ("kotlin-stdlib", "kotlin-test", "kotlin-test-junit")
_ONNX = "onnxruntime"


def missing() -> str:
    """What this machine lacks; empty if nothing."""
    return " and ".join(tool for tool in ("java", "npm", "mvn") if not shutil.which(tool))


class Kotlin:
    """Compiles and runs."""

    def __init__(self) -> None:
        self._folder = cache_folder() / "kotlin"
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder / "kotlin"):
            self._compiler = self._unpacked() / "package" / "lib"
            libraries = [self._library(name, sha256) for name, sha256 in LIBRARIES.items()]
        self.onnx = [path for path in libraries if path.name.startswith(_ONNX)]
        self.classpath = [path for path in libraries if path not in self.onnx]
        self.classpath += [self._compiler / f"{name}.jar" for name in _OF_THE_COMPILER]

    def _unpacked(self) -> Path:
        target = self._folder / f"{COMPILER.name}-{COMPILER.version}"
        if not target.exists():
            package = obtain(COMPILER, cache_folder() / "packages", None, lambda _: None)
            half = target.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            with tarfile.open(package) as tar:
                tar.extractall(half, filter="data")
            half.rename(target)
        return target

    def _library(self, coordinates: str, sha256: str) -> Path:
        _, name, version = coordinates.split(":")
        path = self._folder / f"{name}-{version}.jar"
        if not path.exists() or sha256_file(path) != sha256:
            command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={coordinates}", f"-DoutputDirectory={self._folder}"]
            subprocess.run(command, check=True, capture_output=True, timeout=600)
        assert sha256_file(path) == sha256, f"{path} is not {coordinates}"
        return path

    def compile(self, sources: Sequence[Path], jar: Path, classpath: Sequence[Path]) -> None:
        """Compile folders of sources into a jar; warnings are errors."""
        lib = self._compiler
        files = sorted(str(p) for folder in sources for p in folder.rglob("*.kt"))
        done = subprocess.run(
            [
                "java", "-Xmx1500m", "-cp", _joined(lib.glob("*.jar")), "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib",
                "-no-reflect", "-Werror", "-jvm-target", "11", f"-Xplugin={lib / 'kotlinx-serialization-compiler-plugin.jar'}",
                "-cp", _joined([*self.classpath, *classpath]), "-d", str(jar), *files,
            ],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]

    def command(self, main: str, classpath: Sequence[Path], *words: str, **properties: object) -> list[str]:
        """What runs a class."""
        given = [f"-D{name}={value}" for name, value in properties.items()]
        return ["java", *given, "-cp", _joined([*self.classpath, *classpath]), main, *words]

    def test(self, classes: Sequence[str], classpath: Sequence[Path], **properties: object) -> str:
        """Run JUnit's tests; what it prints."""
        command = self.command("org.junit.runner.JUnitCore", classpath, *classes, **properties)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout


def _joined(paths) -> str:
    return os.pathsep.join(map(str, paths))
