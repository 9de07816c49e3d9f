"""One interface to embed, whatever runs the model."""

from __future__ import annotations

import copy
import json
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from mobileclip.errors import BundleError, InputError, StorageError
from mobileclip.export.bundle import Bundle
from mobileclip.export.encoder import check_format, embed, embed_query, from_bundle, from_model, open_encoder, printable, save_embeddings
from mobileclip.export.verify.dataset import captions, photograph, photograph_names
from mobileclip.sources import load_model

NANO = "untrained:mobileclip_nano"
TEXTS = captions()[:6]


@pytest.fixture(scope="module")
def model():
    return load_model(NANO)


@pytest.fixture(scope="module")
def torch_encoder(model):
    return from_model(model)


@pytest.fixture(scope="module")
def images_only(bundle_of):
    """Image tower alone, uint8 input, four at once, not normalised inside."""
    return bundle_of(NANO, ("onnx",), towers=("image",), batch=4, normalize=False, bake_preprocessing=True)


@pytest.fixture(scope="module")
def texts_only(bundle_of):
    """Text tower alone for two runtimes, four at once, not normalised inside."""
    return bundle_of(NANO, ("onnx", "executorch"), towers=("text",), batch=4, normalize=False)


@pytest.fixture(scope="module")
def pictures():
    return [photograph(name) for name in photograph_names()[:6]]


def agree(a, b):
    assert a.dtype == b.dtype == np.float32
    assert a.shape == b.shape
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_bundle_and_model_give_the_same_embeddings(torch_encoder, nano_bundle, pictures):
    bundled = open_encoder(str(nano_bundle))
    for name in ("name", "embedding_space", "embed_dim", "logit_scale", "trained", "preprocess"):
        assert getattr(bundled, name) == getattr(torch_encoder, name)
    assert torch_encoder.engine.startswith("torch ")
    assert not bundled.trained
    agree(bundled.encode_images(pictures), torch_encoder.encode_images(pictures))
    agree(bundled.encode_texts(TEXTS), torch_encoder.encode_texts(TEXTS))
    assert bundled.engine.startswith("onnxruntime ")
    assert "untrained weights: predictions mean nothing" in bundled.title


def test_image_tower_alone_with_baked_preprocessing(torch_encoder, images_only, pictures):
    encoder = open_encoder(str(images_only), "onnx")
    agree(encoder.encode_images(pictures), torch_encoder.encode_images(pictures))
    agree(encoder.encode_images(p.convert("L") for p in pictures[:1]), torch_encoder.encode_images([pictures[0].convert("L")]))
    with pytest.raises(InputError, match="has no onnx text tower; it holds: onnx image"):
        encoder.encode_texts(["a cat"])


@pytest.mark.parametrize("runtime", ["onnx", "executorch"])
def test_text_tower_alone_in_each_runtime(torch_encoder, texts_only, runtime, pictures):
    encoder = open_encoder(str(texts_only), runtime)
    agree(encoder.encode_texts(TEXTS), torch_encoder.encode_texts(TEXTS))
    assert encoder.engine.startswith(runtime)
    with pytest.raises(InputError, match=f"has no {runtime} image tower"):
        encoder.encode_images(pictures[:1])


def test_nothing_to_embed_loads_nothing(nano_bundle):
    encoder = open_encoder(str(nano_bundle))
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, 128)
    assert encoder.engine == "onnx"


def test_more_inputs_than_one_call_takes(torch_encoder):
    texts = [f"number {i}" for i in range(70)]
    agree(torch_encoder.encode_texts(texts), np.concatenate([torch_encoder.encode_texts([t]) for t in texts]))


def test_unreadable_files_leave_the_others_in_place(torch_encoder, tmp_path, pictures):
    paths = []
    for i, picture in enumerate(pictures * 7):
        paths.append(tmp_path / f"{i}.png")
        if i in (0, 5, 33):
            paths[-1].write_bytes(b"no picture")
        else:
            picture.resize((40, 30 + i)).save(paths[-1])
    results = list(torch_encoder.encode_files(paths))
    assert [path for path, _ in results] == paths
    assert [i for i, (_, r) in enumerate(results) if isinstance(r, InputError)] == [0, 5, 33]
    good = [i for i in range(len(paths)) if i not in (0, 5, 33)]
    agree(np.stack([results[i][1] for i in good]), torch_encoder.encode_images(Image.open(paths[i]) for i in good))


@pytest.mark.parametrize(
    ("source", "runtime", "message"),
    [
        ("BUNDLE", "onxx", "unknown runtime 'onxx'; did you mean 'onnx'"),
        ("BUNDLE", "coreml", "holds nothing for coreml; it holds: onnx"),
        (NANO, "onnx", "a runtime needs a bundle; make one with: mobileclip export"),
        ("mobileclip_s9", None, "unknown model 'mobileclip_s9'; did you mean"),
    ],
)
def test_what_cannot_be_opened(nano_bundle, source, runtime, message):
    with pytest.raises(InputError, match=message):
        open_encoder(source.replace("BUNDLE", str(nano_bundle)), runtime)


def test_a_folder_without_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        open_encoder(str(tmp_path))


def test_a_target_the_bundle_lacks(nano_bundle):
    with pytest.raises(InputError, match="holds nothing for executorch"):
        from_bundle(Bundle.open(nano_bundle), "executorch")


def test_numbers_that_are_not_finite_are_refused(model, pictures):
    broken = copy.deepcopy(model.image)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="the image tower gives numbers that are not finite"):
        from_model(replace(model, image=broken)).encode_images(pictures[:1])


def test_query_by_text_or_picture(torch_encoder, tmp_path, pictures):
    file = tmp_path / "a.png"
    pictures[0].save(file)
    np.testing.assert_array_equal(embed_query(torch_encoder, "a cat", None), torch_encoder.encode_texts(["a cat"])[0])
    np.testing.assert_array_equal(embed_query(torch_encoder, None, file), torch_encoder.encode_images(pictures[:1])[0])
    for text, image in ((None, None), (" ", None), ("a cat", file)):
        with pytest.raises(InputError, match="either a text or --image"):
            embed_query(torch_encoder, text, image)


def test_saved_embeddings_read_back(torch_encoder, tmp_path, pictures):
    file = tmp_path / "größe \U0001f431.png"
    pictures[0].save(file)
    names, rows, failed = embed(torch_encoder, [file, tmp_path / "absent.png"], ["a cat", ""], lambda step: None)
    assert names == [str(file), "a cat", ""]
    assert [name for name, _ in failed] == [str(tmp_path / "absent.png")]
    for suffix in ("npy", "npz", "safetensors", "jsonl"):
        save_embeddings(tmp_path / f"e.{suffix}", torch_encoder, names, rows)
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), rows)
    with np.load(tmp_path / "e.npz") as archive:
        np.testing.assert_array_equal(archive["embeddings"], rows)
        assert archive["names"].tolist() == names
        assert str(archive["embedding_space"]) == torch_encoder.embedding_space
    with safe_open(tmp_path / "e.safetensors", "np") as f:
        np.testing.assert_array_equal(f.get_tensor("embeddings"), rows)
        assert json.loads(f.metadata()["names"]) == names
        assert f.metadata()["embedding_space"] == torch_encoder.embedding_space
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [line["name"] for line in lines] == names
    np.testing.assert_array_equal(np.array([line["embedding"] for line in lines], np.float32), rows)


def test_a_failed_write_leaves_the_old_file(torch_encoder, tmp_path):
    file = tmp_path / "e.npy"
    file.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match=r"e\.npy: cannot be written \(file too large\)"):
            save_embeddings(file, torch_encoder, ["x"] * 100, np.zeros((100, 128), np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["e.npy"]
    assert file.read_bytes() == b"old"


def test_unknown_ending(tmp_path):
    with pytest.raises(InputError, match=r"unknown file ending '\.nyp'; did you mean"):
        check_format(tmp_path / "e.nyp")


def test_names_that_are_not_utf8_can_be_shown():
    assert printable("a\udcff.png") == "a\ufffd.png"
    assert printable("größe.png") == "größe.png"
