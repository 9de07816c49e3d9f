"""Tensors that claim more than they hold, are of another kind, or belong to another model."""

from __future__ import annotations

import collections
import os
import struct
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hostile import refused, torch_parts, write_safetensors, write_zip

from mobileclip.checkpoints import expected_shapes
from mobileclip.specs import REGISTRY

SHAPES = expected_shapes(REGISTRY["mobileclip_nano"], "open_clip", fused=False)
EMBEDDING = "text.token_embedding.weight"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.pt"


def test_terabytes_of_one_number(path):
    torch.save({"weight": torch.zeros(1).expand(1 << 40), EMBEDDING: torch.zeros(1).expand(1 << 30, 1 << 20)}, path)
    refused(path, "share or repeat their memory")


def of_one_number(path: Path, name: str) -> None:
    """The right names and shapes, up to gigabytes of them, in a file of some kilobytes."""
    number, counter = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    shapes = expected_shapes(REGISTRY[name], "open_clip", fused=False)
    torch.save({n: counter if n.endswith("tracked") else number.expand(s) for n, s in shapes.items()}, path)


@pytest.mark.parametrize("name", ["mobileclip_nano", "mobileclip2_s4"])
def test_a_whole_model_of_one_number(path, name):
    of_one_number(path, name)
    assert path.stat().st_size < 1 << 20
    refused(path, "share or repeat their memory")


def test_many_names_for_one_memory(path):
    block = torch.zeros(1 << 20)
    torch.save({f"weight{i}": block for i in range(1000)}, path)
    refused(path, "share or repeat their memory")


def test_storage_that_claims_more_than_it_has(path):
    parts = torch_parts({"weight": torch.zeros(8)})
    numel = b"K\x08"
    assert parts["archive/data.pkl"].count(numel) == 2  # of the storage, and in the shape
    for claimed in (100, 0x7FFFFFFF):
        program = parts["archive/data.pkl"].replace(numel, b"J" + struct.pack("<i", claimed))
        write_zip(path, {**parts, "archive/data.pkl": program})
        refused(path)


@pytest.mark.parametrize("stride", [-1, 1 << 20, 0x7FFFFFFF])
def test_strides_outside_of_the_storage(path, stride):
    parts = torch_parts({"weight": torch.zeros(8)})
    program = parts["archive/data.pkl"].replace(b"K\x01\x85", b"J" + struct.pack("<i", stride) + b"\x85")
    assert program != parts["archive/data.pkl"]
    write_zip(path, {**parts, "archive/data.pkl": program})
    refused(path)


KINDS = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse csr": lambda: torch.eye(4).to_sparse_csr(),
    "huge sparse": lambda: torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (1 << 40,)),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
    "meta": lambda: torch.empty(1 << 40, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "complex": lambda: torch.zeros(4, dtype=torch.complex64),
    "float8": lambda: torch.zeros(4).to(torch.float8_e4m3fn),
    "subclass": lambda: torch.nn.parameter.Buffer(torch.zeros(4)),
    "storage": lambda: torch.zeros(4).untyped_storage(),
    "numpy": lambda: np.zeros(4),
    "layer": lambda: torch.nn.Linear(2, 2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_other_kinds_of_tensors(path, kind):
    torch.save({"logit_scale": torch.zeros(()), EMBEDDING: KINDS[kind]()}, path)
    refused(path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.uint8])
def test_integers_in_place_of_weights(path, nano, dtype):
    torch.save({**nano.state, EMBEDDING: nano.state[EMBEDDING].to(dtype)}, path)
    refused(path, f"{EMBEDDING} is {dtype}; quantized or integer weights are not supported")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["logit_scale", EMBEDDING, "visual.trunk.stem.0.conv_scale.bn.running_var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_that_are_not_finite(path, nano, value, name, dtype):
    weights = nano.state[name].clone().to(dtype)
    weights.view(-1)[-1] = value
    torch.save({**nano.state, name: weights}, path)
    refused(path, f"{name} holds NaN or infinity")


def test_double_that_overflows(path, nano):
    torch.save({**nano.state, "logit_scale": torch.tensor(1e300, dtype=torch.float64)}, path)
    refused(path, "logit_scale holds NaN or infinity")


def resnet() -> dict[str, torch.Tensor]:
    names = [f"layer{i}.{j}.conv{k}.weight" for i in range(1, 5) for j in range(2) for k in (1, 2)]
    return collections.OrderedDict({"conv1.weight": torch.zeros(64, 3, 7, 7)} | {n: torch.zeros(8, 8, 3, 3) for n in names})


def openai_clip() -> dict[str, torch.Tensor]:
    model = open_clip.CLIP(16, {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}, {"width": 16, "heads": 1, "layers": 1})
    return model.state_dict()


@pytest.mark.parametrize("family", [resnet, openai_clip])
@pytest.mark.parametrize("wrapped", [False, True])
def test_checkpoints_of_other_families(path, family, wrapped):
    state = family()
    torch.save({"state_dict": state} if wrapped else state, path)
    message = refused(path, "is not a MobileCLIP checkpoint")
    assert "open_clip:NAME" in message


@pytest.mark.parametrize(
    "tensors",
    [
        {"text_encoder.positional_embedding.pos_embed.pos_embed": torch.zeros(5, 7)},
        {"text_encoder.positional_embedding.pos_embed.pos_embed": torch.zeros(())},
        {"image_encoder.model.pos_embed.pos_embed.pos_embed": torch.zeros(2, 1, 196, 768)},
        {"image_encoder.model.head.proj": torch.zeros(3)},
        {"image_encoder.model.classifier.proj": torch.zeros(1, 2, 3)},
        {"image_encoder.model.": torch.zeros(1), "": torch.zeros(1)},
        {"module.logit_scale": torch.zeros(()), "logit_scale": torch.zeros(())},
        {"x" * 100_000: torch.zeros(1)},
        {"evil\nname\x1b[31m": torch.zeros(1)},
    ],
    ids=range(9),
)
def test_names_with_shapes_that_break_the_translation(path, tensors):
    torch.save(tensors, path)
    refused(path)


def test_two_names_for_one_tensor(path, nano):
    torch.save({**nano.state, "module.logit_scale": torch.zeros(())}, path)
    refused(path, "names the same tensor twice")
    twins = {"text.ln_final.weight": torch.zeros(64), "text_encoder.final_layer_norm.weight": torch.ones(64)}
    torch.save({**nano.state, **twins}, path)
    refused(path, "names the same tensor twice")


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "empty.pt").touch()
    refused(tmp_path / "empty.pt", "is empty; download it again")
    (tmp_path / "empty.safetensors").touch()
    refused(tmp_path / "empty.safetensors", "is empty; download it again")
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "is not a regular file")
    for device in ("/dev/zero", "/dev/random", "/dev/null"):
        (tmp_path / Path(device).name).symlink_to(device)
        refused(tmp_path / Path(device).name, "is not a regular file")


def tensor(start: int, end: int, shape: tuple[int, ...] = (1,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


SAFETENSORS = {
    "huge header": lambda p: write_safetensors(p, b"{}", claimed=(1 << 63) + 5),
    "header beyond the file": lambda p: write_safetensors(p, b"{}", claimed=1 << 20),
    "header of 2 bytes in 8": lambda p: p.write_bytes(b"\x02\0\0\0"),
    "not JSON": lambda p: write_safetensors(p, b"\x80\x02}.    "),
    "JSON of another kind": lambda p: write_safetensors(p, b"[1, 2, 3]"),
    "deep JSON": lambda p: write_safetensors(p, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "not UTF-8": lambda p: write_safetensors(p, b'{"\xff\xfe": 1}'),
    "overlap": lambda p: write_safetensors(p, {"a": tensor(0, 4), "b": tensor(0, 4)}, bytes(4)),
    "hole": lambda p: write_safetensors(p, {"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    "hole at the start": lambda p: write_safetensors(p, {"a": tensor(4, 8)}, bytes(8)),
    "trailing bytes": lambda p: write_safetensors(p, {"a": tensor(0, 4)}, bytes(400)),
    "offsets beyond the file": lambda p: write_safetensors(p, {"a": tensor(0, 1 << 40, (1 << 38,))}, bytes(4)),
    "offsets backwards": lambda p: write_safetensors(p, {"a": tensor(4, 0)}, bytes(4)),
    "negative offsets": lambda p: write_safetensors(p, {"a": tensor(-4, 0)}, bytes(4)),
    "huge shape": lambda p: write_safetensors(p, {"a": tensor(0, 4, (1 << 40, 1 << 40))}, bytes(4)),
    "overflowing shape": lambda p: write_safetensors(p, {"a": tensor(0, 4, (1 << 33, 1 << 31, 1))}, bytes(4)),
    "huge and empty": lambda p: write_safetensors(p, {"a": tensor(0, 0, (1 << 40, 0))}),
    "negative shape": lambda p: write_safetensors(p, {"a": tensor(0, 4, (-1, -1))}, bytes(4)),
    "unknown dtype": lambda p: write_safetensors(p, {"a": tensor(0, 4, (1,), "F31")}, bytes(4)),
    "no tensors": lambda p: write_safetensors(p, {}),
    "metadata of another kind": lambda p: write_safetensors(p, {"__metadata__": {"variant": [1]}, "a": tensor(0, 4)}, bytes(4)),
    "metadata that lies": lambda p: write_safetensors(p, {"__metadata__": {"variant": "mobileclip_s4"}, "a": tensor(0, 4)}, bytes(4)),
    "name with control characters": lambda p: write_safetensors(p, {"a\n\x1b[31mb": tensor(0, 4)}, bytes(4)),
    "long name": lambda p: write_safetensors(p, {"a" * 100_000: tensor(0, 4)}, bytes(4)),
    "torch archive": lambda p: torch.save({"a": torch.zeros(1)}, p),
}


@pytest.mark.parametrize("kind", sorted(SAFETENSORS))
def test_safetensors(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    SAFETENSORS[kind](path)
    refused(path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "BOOL", "U8", "I64", "U16", "C64"])
def test_safetensors_of_every_dtype(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": tensor(0, 64, (64,), dtype)}, bytes(64))
    refused(path)
