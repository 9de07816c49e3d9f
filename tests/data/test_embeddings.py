from __future__ import annotations

import dataclasses
import gzip
import io
import json
import zipfile

import numpy as np
import pytest
import torch

from mobileclip.data.augment import Policy, draw
from mobileclip.data.embeddings import Reinforcement, read, write
from mobileclip.data.samples import BadSample

CAPTIONS = ["a cat on a sofa", "une photo d’un chat", "猫", "a cat", "the cat"]


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def make(n: int = 10, width: int = 48, n_real: int = 1, keys: tuple[str, ...] = ("syn_text",)) -> Reinforcement:
    rng = np.random.default_rng(0)
    return Reinforcement(
        [draw(300, 200, rng, Policy()) for _ in range(n)],
        {key: [f"{c} {key}" for c in CAPTIONS] for key in keys},
        unit(n, width, 1),
        unit(n_real, width, 2),
        {key: unit(len(CAPTIONS), width, 3 + i) for i, key in enumerate(keys)},
    )


def same(a: Reinforcement, b: Reinforcement, tolerance: float = 0.0) -> bool:
    arrays = [(a.image, b.image), (a.real, b.real), *((a.synthetic[k], b.synthetic[k]) for k in a.synthetic)]
    return (
        (a.param_aug, a.captions) == (b.param_aug, b.captions)
        and list(a.synthetic) == list(b.synthetic)
        and all(x.shape == y.shape and y.dtype == np.float32 and np.abs(x - y).max() <= tolerance for x, y in arrays)
    )


def torch_gz(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return gzip.compress(file.getvalue())


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


TXT = {"txt": b"a cat"}


@pytest.mark.parametrize("keys", [("syn_text",), (), ("syn_text_a",), ("syn_text", "syn_text_b")])
def test_what_is_written_is_read(keys):
    stored = make(keys=keys)
    assert same(stored, read(TXT | write(stored, "fp32")))
    rounded = read(TXT | write(stored, "bf16"))
    assert same(stored, rounded, 2**-9)
    assert np.array_equal(rounded.image, torch.tensor(stored.image).bfloat16().float().numpy())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_equal_input_gives_equal_bytes(dtype):
    first = write(make(), dtype)
    assert first == write(make(), dtype)
    if dtype == "fp32":
        with zipfile.ZipFile(io.BytesIO(first["npz"])) as archive:
            assert {m.date_time for m in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    else:
        assert first["pth.gz"][4:8] == bytes(4)


def test_published_layout():
    """Two arrays with the real caption's row first, as in DataCompDR; Apple's readers decode it with numpy and torch alone."""
    stored = make(n_real=1)
    members = write(stored, "fp32")
    assert sorted(members) == ["npz", "paug.json", "syn.json"]
    with np.load(io.BytesIO(members["npz"])) as arrays:
        assert {k: (v.shape, v.dtype) for k, v in arrays.items()} == {"image_emb": ((10, 48), "<f4"), "text_emb": ((6, 48), "<f4")}
        assert np.array_equal(arrays["text_emb"], np.concatenate([stored.real, stored.synthetic["syn_text"]]))
    members = write(stored, "bf16")
    loaded = torch.load(io.BytesIO(gzip.decompress(members["pth.gz"])), weights_only=True)
    assert {k: (tuple(v.shape), v.dtype) for k, v in loaded.items()} == {
        "image_emb": ((10, 48), torch.bfloat16),
        "text_emb": ((6, 48), torch.bfloat16),
    }
    assert json.loads(members["syn.json"]) == stored.captions
    assert json.loads(members["paug.json"]) == {"param_aug": stored.param_aug}


def test_float32_is_preferred():
    stored = make()
    both = TXT | write(stored, "bf16") | write(stored, "fp32")
    assert same(stored, read(both))


@pytest.mark.parametrize("tag", ["", "_dfn", "{self.tag_suffix}"])
def test_raygen_layout(tag):
    """One array for each key of captions, with a tag behind all of them; the last tag is what the released generator writes."""
    stored = make(n_real=2, keys=("syn_text", "syn_text_coca"))
    arrays = {
        f"image_emb{tag}": stored.image,
        "texts_emb" if tag == "_dfn" else f"text_emb{tag}": stored.real,
        "syn_text_emb": stored.synthetic["syn_text"],
        f"syn_text_coca_emb{tag}": stored.synthetic["syn_text_coca"],
    }
    members = write(stored) | {"json": json.dumps({"uid": "0", "texts": ["a cat", "a dog"]}).encode()}
    for packed in ({"npz": npz(**arrays)}, {"pth.gz": torch_gz({k: torch.tensor(v) for k, v in arrays.items()})}):
        assert same(stored, read({k: v for k, v in members.items() if k != "pth.gz"} | packed))


def test_lists_of_tensors():
    stored = make()
    text = np.concatenate([stored.real, stored.synthetic["syn_text"]])
    lists = {
        name: [row.clone() for row in torch.tensor(rows).bfloat16()] for name, rows in (("image_emb", stored.image), ("text_emb", text))
    }
    members = TXT | write(stored)
    assert same(read(members), read(members | {"pth.gz": torch_gz(lists)}))
    views = {name: list(torch.tensor(rows).bfloat16()) for name, rows in (("image_emb", stored.image), ("text_emb", text))}
    assert same(read(members), read(members | {"pth.gz": torch_gz(views)}))


@pytest.mark.parametrize("dtype", ["<f2", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_floats_and_orders(dtype, order):
    stored = make(keys=())
    arrays = {"image_emb": np.asarray(stored.image, dtype, order=order), "text_emb": np.asarray(stored.real, dtype)}
    members = TXT | write(stored) | {"npz": npz(**arrays)}
    assert same(stored, read(members), 1e-3 if dtype == "<f2" else 0)


def test_param_aug_as_a_string():
    stored = make()
    members = TXT | write(stored) | {"paug.json": json.dumps({"param_aug": json.dumps(stored.param_aug)}).encode()}
    assert read(members).param_aug == stored.param_aug


def test_captions_regex():
    stored = make(keys=("syn_text", "syn_text_coca"))
    members = TXT | write(stored, "fp32")
    assert list(read(members, "^syn_text_coca$").captions) == ["syn_text_coca"]
    assert list(read(members, "^syn_text").synthetic) == ["syn_text", "syn_text_coca"]
    with pytest.raises(BadSample, match=r"^no_reinforcement: syn.json has no key that matches \^other"):
        read(members, "^other")


def test_without_synthetic_captions():
    stored = make(keys=())
    members = write(stored)
    assert "syn.json" not in members
    assert read(TXT | members).captions == {}


def without(members: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {k: v for k, v in members.items() if k not in names}


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("paug.json", "no_reinforcement"), ("npz", "no_reinforcement"), ("txt", "no_caption"), ("syn.json", "bad_reinforcement")],
)
def test_missing_members(missing, reason):
    with pytest.raises(BadSample) as e:
        read(without(TXT | write(make(), "fp32"), missing))
    assert e.value.reason == reason


@pytest.mark.parametrize(
    ("arrays", "detail"),
    [
        ({"image_emb": unit(9, 48, 0)}, "image: 9 embeddings for 10"),
        ({"image_emb": unit(11, 48, 0)}, "image: 11 embeddings for 10"),
        ({"image_emb": unit(10, 47, 0)}, "real: embeddings of shape"),
        ({"text_emb": unit(5, 48, 0)}, "syn_text: 4 embeddings for 5"),
        ({"text_emb": unit(7, 48, 0)}, "syn_text: 6 embeddings for 5"),
        ({"text_emb": unit(1, 48, 0)}, "no arrays are named syn_text_emb"),
        ({"text_emb": np.zeros((0, 48), np.float32)}, "text_emb has 0 rows for 1 real captions"),
        ({"image_emb": np.zeros((10, 0), np.float32)}, "image: embeddings of shape"),
        ({"image_emb": unit(10, 48, 0)[0]}, "is not a plain table of floats"),
        ({"image_emb": np.zeros((10, 48), np.int32)}, "is not a plain table of floats"),
        ({"image_emb": unit(10, 48, 0).astype(">f4")}, "is not a plain table of floats"),
        ({"image_emb": unit(10, 48, 0) * np.float32(1e7)}, "image: NaN, infinite or huge numbers"),
    ],
)
def test_embeddings_that_do_not_fit(arrays, detail):
    stored = make()
    text = np.concatenate([stored.real, stored.synthetic["syn_text"]])
    members = TXT | write(stored, "fp32") | {"npz": npz(**({"image_emb": stored.image, "text_emb": text} | arrays))}
    with pytest.raises(BadSample, match=detail) as e:
        read(members)
    assert e.value.reason == "bad_reinforcement"


def test_names_that_do_not_tell():
    stored = make(keys=("syn_text", "syn_text_b"))
    arrays = {"image_emb_a": stored.image, "image_emb_b": stored.image, "text_emb": stored.real}
    members = TXT | write(stored, "fp32")
    with pytest.raises(BadSample, match="2 arrays are named image_emb"):
        read(without(members, "syn.json") | {"npz": npz(**arrays)})
    old = {"image_emb": stored.image, "text_emb": unit(6, 48, 0)}
    with pytest.raises(BadSample, match="text_emb has 6 rows for 1 real captions and 2 keys of synthetic ones"):
        read(members | {"npz": npz(**old)})


@pytest.mark.parametrize(
    "change",
    [
        {"captions": {}},
        {"synthetic": {}},
        {"param_aug": []},
        {"image": np.zeros((10, 48))},
        {"real": np.full((1, 48), np.nan, np.float32)},
    ],
)
def test_only_consistent_reinforcements_can_be_made(change):
    with pytest.raises(BadSample, match=r"^bad_reinforcement"):
        dataclasses.replace(make(), **change)
