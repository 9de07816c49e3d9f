"""The page in a real browser: a person tries the model when all is measured."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mobileclip.benchmark.bench import tower_inputs
from mobileclip.benchmark.devices import setup, web
from mobileclip.benchmark.devices.web_server import Page, serving
from mobileclip.export import bundle as b
from mobileclip.export.encoder import from_bundle
from mobileclip.export.verify import dataset
from mobileclip.zeroshot import class_embeddings, predict
from tests.benchmark.conftest import embed_images, embed_texts, write_bundle
from tests.devices.page import SIZES, Call

KIT = Path(__file__).parents[2] / "conformance"


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A bundle with golden inputs, in batches of two."""
    folder = write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", batch=2)
    manifest, golden = b.read_manifest(folder), {}
    for tower, embed in (("image", embed_images), ("text", embed_texts)):
        inputs = tower_inputs(b.Bundle(folder, manifest), tower)[:3]
        golden |= {f"{tower}.input": inputs, f"{tower}.embedding": embed(inputs).astype(np.float32)}
    return with_golden(folder, golden)


def with_golden(folder: Path, golden: dict[str, np.ndarray]) -> Path:
    save_file(golden, folder / b.GOLDEN)
    b.write_manifest(folder, b.read_manifest(folder).model_copy(update={"golden": b.file_entry(folder, folder / b.GOLDEN)}))
    return folder


def ready(page, call: Call):
    """The page when the benchmark is over and the model is there."""
    page.goto(call.address())
    page.get_by_role("heading", name="Try it here").wait_for(timeout=60_000)
    call.result()
    return page


def ranked(page, labels: int) -> list[tuple[str, float, float]]:
    """Label, percentage and cosine of each row."""
    page.get_by_text(f"Best of {labels}: ").wait_for(timeout=20_000)
    rows = [row.inner_text().splitlines() for row in page.get_by_role("list", name="Best labels").get_by_role("listitem").all()]
    return [(label, float(percent.removesuffix(" %")), float(cosine.removeprefix("cosine "))) for label, cosine, percent in rows]


def expected(bundle: Path, picture: Image.Image, labels: list[str]) -> list[tuple[str, float, float]]:
    encoder = from_bundle(b.Bundle.open(bundle), "onnx")
    found = predict(encoder.encode_images([picture])[0], class_embeddings(encoder, labels, ("{}",)), labels, encoder.logit_scale, 5)
    return [(p.label, 100 * p.probability, p.cosine) for p in found]


@pytest.mark.parametrize("size", SIZES)
def test_a_person_tries_the_model(runtime, browser, checked, tmp_path, size):
    page = browser.new_page(viewport=SIZES[size], has_touch=size == "phone", is_mobile=size == "phone", color_scheme="dark")
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    ready(page, Call(checked))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_text("reproduces the exported model").wait_for()
    shown = page.get_by_role("region", name="Try it here")
    assert "image 1.000000, text 1.000000; 0.99999 is enough" in shown.inner_text()
    assert "mobileclip_nano, fp32; onnxruntime-web 1.30.0, wasm" in shown.inner_text()
    assert page.get_by_text("Untrained weights: predictions mean nothing").is_visible()
    assert page.get_by_label("Use the camera").is_visible() == (size == "phone")
    assert not page.get_by_text("alters the pixels").is_visible()

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8))
    picture.save(tmp_path / "noise.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Choose a picture").press("Enter")
    chooser.value.set_files(tmp_path / "noise.png")
    labels = page.get_by_label("Labels, one a line").input_value().split("\n")
    for got, wanted in zip(ranked(page, 7), expected(checked, picture, labels), strict=True):
        assert got[0] == wanted[0]
        assert got[1:] == pytest.approx(wanted[1:], abs=0.0501), "percentages have one digit"
        assert got[2] == pytest.approx(wanted[2], abs=0.00051)

    labels = ["<b>caf&eacute;</b>", "a \u732b", "x" * 300]
    page.get_by_label("Labels, one a line").fill("\n".join(["", *labels, labels[0], "  "]))
    wanted = expected(checked, picture, labels)
    assert [row[0] for row in ranked(page, 3)] == [row[0] for row in wanted]

    photograph = dataset.photograph(dataset.photograph_names()[0]).resize((300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # its right side is up
    photograph.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "turned.jpg")
    wanted = expected(checked, Image.open(tmp_path / "turned.jpg").transpose(Image.Transpose.ROTATE_270), labels)
    assert [row[2] for row in ranked(page, 3)] == pytest.approx([row[2] for row in wanted], abs=0.002)
    assert page.locator("#preview").evaluate("canvas => canvas.width < canvas.height"), "it is shown upright"

    for opacity in (0, 128, 255):  # the colour below alpha counts, as in training
        layered = np.asarray(picture.resize((90, 90)).convert("RGBA")).copy()
        layered[:, 40:, 3] = opacity
        Image.fromarray(layered).save(tmp_path / f"{opacity}.png")
        page.get_by_label("Choose a picture").set_input_files(tmp_path / f"{opacity}.png")
        wanted = expected(checked, Image.fromarray(layered), labels)
        assert [row[2] for row in ranked(page, 3)] == pytest.approx([row[2] for row in wanted], abs=0.00051)
        assert not page.get_by_text("counts as black").is_visible()

    large = picture.resize((2600, 1700), Image.Resampling.BICUBIC)  # is read in parts
    large.save(tmp_path / "large.png", compress_level=1)
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "large.png")
    wanted = expected(checked, large, labels)
    assert [row[2] for row in ranked(page, 3)] == pytest.approx([row[2] for row in wanted], abs=0.00051)

    if folder := os.environ.get("MOBILECLIP_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/web-try-{size}.png", full_page=True)
    (tmp_path / "no.png").write_bytes(b"no picture")
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "no.png")
    page.get_by_text("This browser cannot read that file as a picture; choose another one").wait_for()
    assert not page.locator("#pictures").is_visible()
    page.get_by_label("Labels, one a line").fill(" ")
    assert page.get_by_role("list", name="Best labels").get_by_role("listitem").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
    assert asked == [], "nothing leaves the device"
    assert problems == []
    page.close()


def test_a_browser_that_is_wrong_is_told(runtime, browser, checked, tmp_path):
    folder = write_bundle(tmp_path / "tiny", batch=2)
    golden = load_file(checked / b.GOLDEN)
    call = Call(with_golden(folder, golden | {"text.embedding": np.ascontiguousarray(golden["text.embedding"][::-1])}))
    page = ready(browser.new_page(), call)
    page.get_by_text("differs from the exported model").wait_for()
    page.close()


def test_a_browser_that_alters_pixels_is_told(runtime, browser, checked):
    page = browser.new_page()
    altering = """{
      const of = OffscreenCanvasRenderingContext2D.prototype, truly = of.getImageData;
      of.getImageData = function (...place) { const got = truly.apply(this, place); got.data[0] ^= 1; return got; };
    }"""
    page.route("**/picture.mjs", lambda route: route.fulfill(response=(got := route.fetch()), body=altering + got.text()))
    ready(page, Call(checked))
    page.get_by_text("This browser alters the pixels that pages read").wait_for()
    page.close()


def test_a_bundle_without_golden_inputs_can_be_tried(runtime, browser, bundle):
    page = ready(browser.new_page(), Call(bundle))
    page.get_by_text("golden.safetensors is damaged").wait_for()
    assert page.get_by_text("not checked").is_visible()
    page.close()


def test_a_bundle_without_text_tower_cannot_be_tried(runtime, browser, bundle, tmp_path):
    folder = write_bundle(tmp_path / "tiny")
    manifest = b.read_manifest(folder)
    b.write_manifest(folder, manifest.model_copy(update={"artifacts": manifest.artifacts[:1]}))
    assert web.bundle_files(folder) == {}
    assert set(web.bundle_files(bundle)) == {
        "bundle/manifest.json", "bundle/tokenizer.json", "bundle/golden.safetensors", "bundle/image.onnx", "bundle/text.onnx"
    }  # fmt: skip
    call = Call(folder)
    page = browser.new_page()
    page.goto(call.address())
    page.get_by_text("The results were sent. You may close this page.").wait_for(timeout=60_000)
    assert [r.label for r in call.result().results] == ["tiny onnx image"]
    assert not page.get_by_role("heading", name="Try it here").is_visible()
    page.close()


def test_a_bundle_that_changed_meanwhile_cannot_be_tried(runtime, browser, bundle, tmp_path, monkeypatch):
    served = web.bundle_files(bundle)
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr(web, "bundle_files", lambda path: served | {"bundle/tokenizer.json": tmp_path / "other.json"})
    call = Call(bundle)
    page = browser.new_page()
    page.goto(call.address())
    page.get_by_text("cannot be tried here: tokenizer.json is not what was exported").wait_for(timeout=60_000)
    assert len(call.result().results) == 2, "the results are there all the same"
    assert not page.get_by_role("heading", name="Try it here").is_visible()
    page.close()


_EMBED_THE_KIT = """async ([pictures, captions]) => {
  const { SafeTensors } = await import("./core/safetensors.mjs"), { Picture } = await import("./core/preprocess.mjs");
  const kit = new SafeTensors(new Uint8Array(await (await fetch("kit")).arrayBuffer()));
  const worker = new Worker("try_worker.mjs", { type: "module" });
  const ask = (command) => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data));
    worker.postMessage(command);
  });
  await ask({ do: "open", provider: "wasm", threads: 1 });
  const image = [], text = [];
  for (let i = 0; i < pictures; i++) {
    const { shape, values } = kit.get(`picture_${i}`, "U8");
    image.push([...(await ask({ do: "look", picture: new Picture(shape[1], shape[0], values) })).embedding]);
  }
  for (const caption of captions) text.push([...(await ask({ do: "embed", caption })).embedding]);
  return [image, text, await ask({ do: "check" })];
}"""


@pytest.mark.slow
def test_a_browser_gives_python_s_embeddings(runtime, browser, bundle_of):
    """The kit's pictures and captions, by the page's own preprocessing, tokenizer and runtime."""
    from safetensors import safe_open

    file = KIT / "embeddings.safetensors"
    wanted = load_file(file)
    with safe_open(file, "np") as opened:
        captions = json.loads(opened.metadata()["captions"])
    page_files = web.page_files() | setup.web(print)
    bundle = bundle_of("mobileclip_nano", ("onnx",))
    served = Page(page_files, {**web.bundle_files(bundle), "kit": file})
    with serving(served) as port, contextlib.closing(browser.new_page()) as page:
        page.goto(f"http://127.0.0.1:{port}/{served.token}/")
        image, text, check = page.evaluate(_EMBED_THE_KIT, [sum(name.startswith("picture_") for name in wanted), captions])
    assert np.abs(np.array(image) - wanted["image"]).max() < 1e-5, "its pixels are Python's to the bit"
    assert np.abs(np.array(text) - wanted["text"]).max() < 1e-5
    assert len(image) == 8
    assert len(text) == len(captions) == 16
    assert check["passed"], check
