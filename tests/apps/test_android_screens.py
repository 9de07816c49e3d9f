"""The Android app's state and screens, really run: with an exported model, without Android. The screens are drawn as pictures.

    python -m tests.apps.test_android_screens docs/images

draws those of the documentation again.
"""

from __future__ import annotations

import ctypes.util
import re
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from mobileclip.export.bundle import Options
from mobileclip.export.export import export_bundle
from mobileclip.sources import load_model
from tests.apps.kotlin import ANDROID, ROOT, Kotlin, shared

pytestmark = pytest.mark.slow
APP = ANDROID / "app/src"
SIZE = (640, 1376)


def class_path(kotlin: Kotlin) -> list[Path]:
    """The app without what is Android's, its tests and what draws its screens."""
    libraries = [*kotlin.onnx(), *kotlin.libraries("compose")]
    state_and_screens = [APP / "main/kotlin/org/mobileclip/app" / part for part in ("state", "ui")]
    return [kotlin.built("screens", [*state_and_screens, APP / "test", APP / "screenshots"], libraries, compose=True), *libraries]


def files(folder: Path) -> dict[str, Path]:
    """A bundle of the model that ships, and the drawings that ship as a photo library."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for drawing in (ROOT / "mobileclip/assets/drawings").glob("*.webp"):
        Image.open(drawing).convert("RGB").save(pictures / f"{drawing.stem}.ppm")
    bundle = export_bundle(load_model("mobileclip_nano"), Options(targets=("onnx",)), folder / "nano", print).path
    return {"bundle": bundle, "pictures": pictures}


@pytest.fixture(scope="module")
def properties(tmp_path_factory) -> dict[str, Path]:
    return files(tmp_path_factory.mktemp("app"))


def test_the_app_works_with_a_real_model(kotlin, properties):
    said = kotlin.test(["org.mobileclip.app.AppStateTest"], class_path(kotlin), **properties)
    assert int(re.search(r"OK \((\d+) tests\)", said)[1]) >= 17


def test_the_screens_are_drawn(kotlin, properties, tmp_path):
    if lacking := [name for name in ("GL", "fontconfig") if not ctypes.util.find_library(name)]:
        pytest.skip(f"no lib{' and lib'.join(lacking)}, which draw the screens (Debian: apt install libgl1 fontconfig)")
    kotlin.run("org.mobileclip.app.ScreenshotsKt", class_path(kotlin), str(tmp_path), **properties)
    drawn = {path.name: Image.open(path).convert("RGB") for path in tmp_path.glob("*.png")}
    assert set(drawn) == {path.name for path in (ROOT / "docs/images").glob("android-*.png")}
    for name, picture in drawn.items():
        assert picture.size == (SIZE[::-1] if "landscape" in name else SIZE)
        colors = picture.getcolors(1 << 20)
        assert len(colors) > 100, f"{name} is empty"
        background = max(colors)[1]
        assert (max(background) < 60) == (name in DARK), f"{name} has the background {background}"


DARK = {"android-camera-dark.png", "android-search-indexing.png", "android-benchmark-dark.png", "android-settings-refused.png"}


def main(folder: Path) -> None:
    """Draw the documentation's pictures, in few colours for small files."""
    with tempfile.TemporaryDirectory() as scratch:
        shared().run("org.mobileclip.app.ScreenshotsKt", class_path(shared()), scratch, **files(Path(scratch)))
        for path in Path(scratch).glob("*.png"):
            Image.open(path).convert("RGB").quantize(192).save(folder / path.name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
