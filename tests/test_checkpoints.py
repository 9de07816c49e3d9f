"""Reading, detecting, converting and writing checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import pytest
import torch

from mobileclip import checkpoints
from mobileclip.checkpoints import Checkpoint, convert, expected_shapes, fitting, fused, load, recipe_checkpoint, save
from mobileclip.errors import CheckpointError, InputError, StorageError
from mobileclip.specs import REGISTRY, TextTower


def same(a: Checkpoint, b: Checkpoint) -> None:
    assert (a.spec, a.form, a.fused) == (b.spec, b.form, b.fused)
    assert list(a.state) == list(b.state)
    assert all(torch.equal(t, b.state[n]) for n, t in a.state.items())


@pytest.fixture(scope="module")
def s0(recipe) -> Checkpoint:
    return recipe("mobileclip_s0")


@pytest.fixture(scope="module")
def s1(recipe) -> Checkpoint:
    return recipe("mobileclip_s1")


# --- reading and writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("form", ["train", "inference"])
def test_round_trip_of_nano(nano, tmp_path, suffix, form):
    checkpoint = nano if form == "train" else fused(nano)
    path = tmp_path / f"model{suffix}"
    save(checkpoint, path)
    same(load(path), checkpoint)
    same(load(path, nano.spec), checkpoint)
    with torch.no_grad():
        assert load(path).model().encode_image(torch.rand(1, 3, 64, 64)).shape == (1, 128)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_halves_take_half_the_space(nano, tmp_path, suffix):
    save(nano, tmp_path / f"whole{suffix}")
    save(nano, tmp_path / f"half{suffix}", half=True)
    sizes = [(tmp_path / f"{name}{suffix}").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.52 * sizes[1]
    loaded = load(tmp_path / f"half{suffix}")
    same(loaded, replace(nano, state={name: t.half().to(t.dtype) if t.is_floating_point() else t for name, t in nano.state.items()}))


def test_values_that_no_half_holds_are_refused(nano, tmp_path):
    name = next(name for name, t in nano.state.items() if t.is_floating_point())
    large = replace(nano, state={**nano.state, name: torch.full_like(nano.state[name], 1e6)})
    with pytest.raises(CheckpointError, match=f"{name} has values beyond float16"):
        save(large, tmp_path / "half.pt", half=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_round_trip_of_native_s0(s0, tmp_path, suffix):
    for checkpoint in (s0, fused(s0)):
        path = tmp_path / f"model{suffix}"
        save(checkpoint, path)
        same(load(path), checkpoint)
    if suffix == ".pt":
        names = set(torch.load(path, weights_only=True))
        assert "image_encoder.model.network.1.proj.0.lkb_reparam.weight" in names
        assert "text_encoder.transformer.5.token_mixer.reparam_conv.bias" in names


def test_native_file_has_the_published_shapes(s0, tmp_path):
    save(s0, tmp_path / "s0.pt")
    state = torch.load(tmp_path / "s0.pt", weights_only=True)
    assert state["image_encoder.model.head.proj"].shape == (1024, 512)
    assert state["text_encoder.positional_embedding.pos_embed.pos_embed"].shape == (1, 1, 77, 512)
    assert torch.equal(state["image_encoder.model.head.proj"], s0.state["visual.trunk.head.fc.weight"].T)


def test_training_wrappers(nano, tmp_path):
    path = tmp_path / "epoch_3.pt"
    wrapped = {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{n}": t for n, t in nano.state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "params": list(range(300))}]},
    }
    torch.save(wrapped, path)
    same(load(path), nano)


def test_parameters_of_a_live_model(nano, tmp_path):
    path = tmp_path / "live.pt"
    torch.save(dict(nano.model().named_parameters()) | dict(nano.model().named_buffers()), path)
    loaded = load(path)
    same(loaded, nano)
    assert not any(t.requires_grad for t in loaded.state.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_precisions_are_read_as_float32(nano, tmp_path, dtype, suffix):
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in nano.state.items()}
    save(replace(nano, state=state), tmp_path / f"m{suffix}")
    loaded = load(tmp_path / f"m{suffix}")
    assert all(torch.equal(loaded.state[n], state[n].to(loaded.state[n].dtype)) for n in state)
    assert {t.dtype for t in loaded.state.values()} == {torch.float32, torch.int64}
    assert not loaded.trained


def test_tensors_that_are_parts_of_one_memory_are_written_apart(nano, tmp_path):
    together = torch.cat([t.flatten() for n, t in nano.state.items() if t.is_floating_point()])
    state, at = {}, 0
    for name, tensor in nano.state.items():
        state[name] = together[at : at + tensor.numel()].view(tensor.shape) if tensor.is_floating_point() else tensor
        at += tensor.numel() if tensor.is_floating_point() else 0
    torch.save(state, tmp_path / "one.pt")
    loaded = load(tmp_path / "one.pt")
    same(loaded, nano)
    save(loaded, tmp_path / "apart.safetensors")
    save(loaded, tmp_path / "apart.pt")
    same(load(tmp_path / "apart.safetensors"), nano)
    assert (tmp_path / "apart.pt").stat().st_size < 1.05 * (tmp_path / "one.pt").stat().st_size


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_writing_twice_gives_the_same_bytes(nano, tmp_path, suffix):
    digests = set()
    for i in range(6):
        path = tmp_path / f"copy{i}" / f"model{suffix}"
        save(nano if i % 2 else load(tmp_path / f"copy{i - 1}" / f"model{suffix}") if i else nano, path)
        digests.add(sha256(path.read_bytes()).hexdigest())
        assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert len(digests) == 1


def test_unknown_suffix(nano, tmp_path):
    with pytest.raises(CheckpointError, match=r"unknown kind of checkpoint '\.onnx'; use \.safetensors, \.pt or \.pth"):
        save(nano, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_full_disk_leaves_the_old_file(tmp_path, suffix):
    """A file size limit stops the write half way, as a full disk does."""
    target = tmp_path / f"model{suffix}"
    target.write_bytes(b"old")
    script = f"""
import resource, signal, sys
from pathlib import Path
from mobileclip.checkpoints import recipe_checkpoint, save
from mobileclip.errors import StorageError
from mobileclip.specs import get_spec
checkpoint = recipe_checkpoint(get_spec("mobileclip_nano"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
try:
    save(checkpoint, Path({str(target)!r}))
except StorageError as e:
    print(e)
    sys.exit(e.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (5, "")
    assert done.stdout.startswith(f"{target}: cannot be written (")
    assert len(done.stdout.splitlines()) == 1
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


def test_folder_that_cannot_be_made(nano, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        save(nano, tmp_path / "file" / "model.pt")


# --- which variant -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_variant_is_told_from_its_shapes(name):
    spec = REGISTRY[name]
    for form in spec.forms:
        for is_fused in (False, True):
            shapes = expected_shapes(spec, form, fused=is_fused)
            if form == "native":  # through the published names and back
                native = {n: torch.empty(s, device="meta") for n, s in checkpoints._native_shapes(spec, shapes).items()}
                shapes = {n: tuple(t.shape) for n, t in checkpoints._from_native(native).items()}
            assert (spec, form) in [(s, f) for s, f, _ in fitting(shapes)]


def test_file_name_and_metadata_tell_variants_of_one_architecture_apart(tmp_path, monkeypatch):
    """A narrow S3 in place of both S3 entries: two variants of one architecture, in a small file."""
    from mobileclip.specs import ModelSpec

    def narrow(spec: ModelSpec) -> ModelSpec:
        nano = REGISTRY["mobileclip_nano"]
        return replace(spec, open_clip=nano.open_clip, text=TextTower(64, 2, 2), embed_dim=32)

    for name in ("mobileclip_s3", "mobileclip2_s3"):
        monkeypatch.setitem(REGISTRY, name, narrow(REGISTRY[name]))
    checkpoint = recipe_checkpoint(REGISTRY["mobileclip2_s3"])
    for file, name in {
        "mobileclip_s3.pt": "mobileclip_s3",
        "mobileclip2_s3.pt": "mobileclip2_s3",
        "MobileCLIP2-S3.pt": "mobileclip2_s3",
        "unknown.pt": "mobileclip_s3",
    }.items():
        save(checkpoint, tmp_path / file)
        loaded = load(tmp_path / file)
        assert loaded.spec.name == name
        assert loaded.fits == ("mobileclip_s3", "mobileclip2_s3")
        assert load(tmp_path / file, REGISTRY["mobileclip2_s3"]).spec.name == "mobileclip2_s3"
    save(checkpoint, tmp_path / "unknown.safetensors")
    assert load(tmp_path / "unknown.safetensors").spec.name == "mobileclip2_s3"


def test_wrong_shapes_show_the_first_five_and_the_nearest_variant(nano, tmp_path):
    names = [n for n, t in nano.state.items() if t.ndim == 1 and n.endswith("weight")][:7]
    state = {n: t[:-1] if n in names else t for n, t in nano.state.items()}
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError) as e:
        load(tmp_path / "wrong.pt")
    message = str(e.value)
    assert f"fits no variant; the nearest is mobileclip_nano (7 of {len(state)} tensors differ)" in message
    for name in names[:5]:
        shape = list(nano.state[name].shape)
        assert f"{name}: expected {shape}, got {[shape[0] - 1]}" in message
    assert not any(name in message for name in names[5:])
    assert message.endswith("; and 2 more")
    assert "\n" not in message


def test_missing_and_surplus_tensors(nano, tmp_path):
    state = {n: t for n, t in nano.state.items() if n != "logit_scale"} | {"extra.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"logit_scale: expected \[\], got absent; extra.weight: expected absent, got \[2\]"):
        load(tmp_path / "m.pt")


def test_a_variant_that_it_is_not(nano, tmp_path):
    save(nano, tmp_path / "nano.pt")
    with pytest.raises(CheckpointError, match="holds mobileclip_nano, not mobileclip2_s0"):
        load(tmp_path / "nano.pt", REGISTRY["mobileclip2_s0"])
    torch.save({n: t for n, t in nano.state.items() if n != "text.text_projection"}, tmp_path / "part.pt")
    with pytest.raises(
        CheckpointError, match=r"does not fit mobileclip_nano \(1 of 530 .* text.text_projection: expected \[64, 128\], got absent"
    ):
        load(tmp_path / "part.pt", nano.spec)


def test_failed_load_leaves_nothing_behind(nano, tmp_path):
    """`load` returns a whole checkpoint or raises; a failing file does not change what was loaded before."""
    save(nano, tmp_path / "good.pt")
    good = load(tmp_path / "good.pt")
    last = list(nano.state)[-1]
    torch.save({**nano.state, last: nano.state[last] * float("nan")}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=f"{last} holds NaN or infinity"):
        load(tmp_path / "bad.pt")
    same(good, nano)


# --- untrained weights -------------------------------------------------------------------------------------------------------------


def test_recipe_weights_are_called_untrained(nano, s0, tmp_path):
    assert not nano.trained
    assert not s0.trained
    assert not fused(nano).trained
    assert not fused(s0).trained
    save(fused(s0), tmp_path / "fused.pt")
    assert not load(tmp_path / "fused.pt").trained


def test_recipe_weights_are_known_after_conversion_and_under_another_variants_name(s1):
    assert not s1.trained
    converted = convert(s1, "open_clip")
    assert not converted.trained
    assert not Checkpoint(s1.spec, "open_clip", False, converted.state, ("mobileclip_s1", "mobileclip2_s2")).trained


@pytest.mark.parametrize(
    "name", ["text.ln_final.weight", "visual.trunk.stem.0.conv_kxk.0.bn.bias", "text.transformer.resblocks.1.ln_1.bias"]
)
def test_one_changed_weight_makes_it_trained(nano, name):
    changed = nano.state[name].clone()
    changed[3] += 1e-3
    assert replace(nano, state={**nano.state, name: changed}).trained


# --- forms -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_fused", [False, True])
def test_conversion_there_and_back_is_lossless(s1, tmp_path, is_fused):
    checkpoint = fused(s1) if is_fused else s1
    there = convert(checkpoint, "open_clip")
    assert there.form == "open_clip"
    assert torch.count_nonzero(there.state["visual.trunk.head.fc.bias"]) == 0
    assert {n: tuple(t.shape) for n, t in there.state.items()} == expected_shapes(s1.spec, "open_clip", fused=is_fused)
    save(there, tmp_path / "there.pt")
    assert not any(n.startswith("image_encoder") for n in torch.load(tmp_path / "there.pt", weights_only=True, mmap=True))
    loaded = load(tmp_path / "there.pt")
    same(loaded, there)
    same(convert(loaded, "native"), checkpoint)
    same(convert(there, "open_clip"), there)


def test_conversion_gives_the_same_embeddings(s1):
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        assert torch.equal(s1.model().encode_image(image), convert(s1, "open_clip").model().encode_image(image))


def test_b_is_not_converted():
    """Refused before any weight is looked at."""
    empty = Checkpoint(REGISTRY["mobileclip_b"], "native", False, {}, ("mobileclip_b",))
    with pytest.raises(CheckpointError, match="mobileclip_b: its native and open_clip forms are different nets"):
        convert(empty, "open_clip")


def test_a_trained_head_bias_is_not_lost(s1):
    there = convert(s1, "open_clip")
    bias = torch.zeros(512)
    bias[5] = 1e-6
    trained = replace(there, state={**there.state, "visual.trunk.head.fc.bias": bias})
    with pytest.raises(CheckpointError, match="the trained head bias has no place in the native form"):
        convert(trained, "native")


@pytest.mark.parametrize(("name", "form"), [("mobileclip_nano", "native"), ("mobileclip_s0", "open_clip"), ("mobileclip2_s0", "native")])
def test_forms_that_do_not_exist(name, form):
    spec = REGISTRY[name]
    with pytest.raises(InputError, match=f"{name} has no {form} form"):
        convert(Checkpoint(spec, spec.published_form, False, {}, (name,)), form)


def test_names_survive_translation_both_ways():
    for spec in REGISTRY.values():
        if "native" in spec.forms:
            for is_fused in (False, True):
                shapes = expected_shapes(spec, "native", fused=is_fused)
                native = checkpoints._native_shapes(spec, shapes)
                back = checkpoints._from_native({n: torch.empty(s, device="meta") for n, s in native.items()})
                assert {n: tuple(t.shape) for n, t in back.items()} == shapes
                assert len(native) == len(shapes)


def test_fusing_a_fused_checkpoint_changes_nothing(nano):
    once = fused(nano)
    assert fused(once) is once
    assert not nano.fused


# --- paths -------------------------------------------------------------------------------------------------------------------------


def test_missing_folder_and_unreadable(tmp_path):
    with pytest.raises(InputError, match=r"none\.pt: no such file; check the path") as missing:
        load(tmp_path / "none.pt")
    with pytest.raises(InputError, match="is a folder, a file is needed") as folder:
        load(tmp_path)
    assert missing.value.exit_code == folder.value.exit_code == 2
    path = tmp_path / "secret.pt"
    path.write_bytes(b"PK\x03\x04")
    path.chmod(0)
    tmp_path.chmod(0o755)
    privileged = os.geteuid() == 0
    if privileged:  # root reads everything: look with another user's eyes
        os.seteuid(65534)
    try:
        with pytest.raises(StorageError, match="cannot be read") as unreadable:
            load(path)
    finally:
        if privileged:
            os.seteuid(0)
    assert unreadable.value.exit_code == 5


@pytest.mark.slow
def test_memory_of_loading_is_bounded(nano, tmp_path):
    """Peak memory of a process that loads, over one that only imports: less than twice the file."""
    path = tmp_path / "padded.pt"
    unused = {f"optimizer.{i}": torch.rand(1 << 20) for i in range(20)}  # 80 MB beside the model
    torch.save({"state_dict": dict(nano.state), "optimizer": unused}, path)
    script = "import resource, sys; from pathlib import Path; from mobileclip import checkpoints\n{}\n"
    script += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = []
    for body in (
        "checkpoints.expected_shapes(checkpoints.REGISTRY['mobileclip_nano'], 'open_clip', fused=False)",
        "checkpoints.load(Path(sys.argv[1]))",
    ):
        run = subprocess.run(
            [sys.executable, "-c", script.format(body), str(path)], capture_output=True, text=True, check=True, timeout=120
        )
        peaks.append(int(run.stdout))
    assert (peaks[1] - peaks[0]) * 1024 < 2 * path.stat().st_size
