"""Safe reading and writing of checkpoints, conversion between native and open_clip form, and the shape report."""

from __future__ import annotations

import functools
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mobileclip import names
from mobileclip.archives import check_torch_archive
from mobileclip.errors import CheckpointError, StorageError
from mobileclip.files import reading, staged_file
from mobileclip.models.clip import CLIP
from mobileclip.models.fuse import fuse
from mobileclip.recipe import recipe_tensor
from mobileclip.specs import REGISTRY, Form, MCiTower, ModelSpec, ViTTower

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
HEAD_BIAS = ("visual.trunk.head.fc.bias", "visual.trunk.head.bias")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under open_clip's names, and the net that they belong to.

    Attributes:
        spec: The variant; where several share one architecture, the one that the file's metadata or name tells, else the first.
        form: The net of the variant, see `ModelSpec`.
        fused: Inference form.
        state: float32 tensors (int64 for BatchNorm counters), in the model's order.
        fits: Names of all variants that these tensors fit; more than one where the architecture is the same.
    """

    spec: ModelSpec
    form: Form
    fused: bool
    state: State
    fits: tuple[str, ...]

    def model(self) -> CLIP:
        """The model with these weights, in eval mode; it shares the checkpoint's memory."""
        model = CLIP(self.spec, self.form, folded=self.fused)
        model.load_state_dict(self.state, assign=True)
        return model.eval()

    @property
    def trained(self) -> bool:
        """False when the small weights (4096 values or fewer) are the deterministic recipe's, whatever the precision they were stored in.

        Folded convolutions and a head bias that a conversion added are not looked at, as the recipe does not give them.
        """
        probes = {n: t for n, t in self.state.items() if n.endswith((".weight", ".bias")) and t.numel() <= 4096}
        probes = {n: t for n, t in probes.items() if "reparam_conv" not in n and n not in HEAD_BIAS}
        vit = isinstance(self.spec.image(self.form), ViTTower)
        native = {REGISTRY[fit].published_form == "native" for fit in self.fits}
        return not any(
            all(_is_recipe(names.to_native(n, vit=vit) if published_native else n, t) for n, t in probes.items())
            for published_native in native
        )


def _is_recipe(key: str, tensor: Tensor) -> bool:
    recipe = torch.from_numpy(recipe_tensor(key, tuple(tensor.shape)))
    return any(torch.equal(tensor, recipe.to(stored).float()) for stored in (torch.float32, torch.float16, torch.bfloat16))


def recipe_checkpoint(spec: ModelSpec) -> Checkpoint:
    """Untrained weights for a variant, filled by `mobileclip.recipe` under its published names, in training form."""
    published = expected_shapes(spec, spec.published_form, fused=False)
    native = spec.published_form == "native"
    raw = {}
    for name, shape in (_native_shapes(spec, published) if native else published).items():
        raw[name] = torch.from_numpy(recipe_tensor(name, shape))
    state = _from_native(raw) if native else raw
    return Checkpoint(spec, spec.published_form, False, {n: state[n] for n in published}, (spec.name,))


# --- reading ---------------------------------------------------------------------------------------------------------------------


def load(path: Path, spec: ModelSpec | None = None) -> Checkpoint:
    """Read a native, open_clip or safetensors checkpoint and tell which variant it holds. No code in the file is run.

    Args:
        path: `.safetensors`, or anything that `torch.save` wrote.
        spec: The variant it must be; default: whichever fits.

    Raises:
        CheckpointError: Unsafe, damaged, of another family, of wrong shapes, or with values that are not finite.
    """
    raw, metadata = _read(path)
    raw = _unwrapped(path, raw)
    form_names = "native" if any(map(names.is_native, raw)) else "open_clip"
    state = _from_native(raw) if form_names == "native" else raw
    if len(state) < len(raw):
        raise CheckpointError(f"{path}: names the same tensor twice, once as Apple and once as open_clip does")
    got = {name: tuple(t.shape) for name, t in state.items()}
    fits = fitting(got, spec)
    if not fits:
        raise CheckpointError(_shape_report(path, got, spec))
    hint = metadata.get("variant") or path.stem.lower().replace("-", "_")
    best, form, fused = next((f for f in fits if f[0].name == hint), fits[0])
    state = _separate({name: _checked(path, name, state[name]) for name in expected_shapes(best, form, fused=fused)})
    return Checkpoint(best, form, fused, state, tuple(f[0].name for f in fits))


def _read(path: Path) -> tuple[Mapping[str, object], Mapping[str, str]]:
    with reading(path):
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise CheckpointError(f"{path}: is not a regular file")
        with path.open("rb") as f:
            head = f.read(4)
    if not status.st_size:
        raise CheckpointError(f"{path}: is empty; download it again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if head != b"PK\x03\x04":
        raise CheckpointError(
            f"{path}: is damaged or not a checkpoint; safetensors, or the zip archive that torch.save writes since PyTorch 1.6, is needed"
        )
    with reading(path):
        check_torch_archive(path)
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as e:
            # torch.load raises whatever its parts raise; the archive and its pickle are inspected above, so this is damage
            raise CheckpointError(f"{path}: is damaged or not a checkpoint ({_short(e)}); download it again") from None
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, a state dict (name to tensor) is needed")
    return value, {}


def _read_safetensors(path: Path) -> tuple[State, Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    with reading(path):
        try:
            with safe_open(path, framework="pt") as f:
                return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}  # noqa: SIM118
        except SafetensorError as e:
            raise CheckpointError(f"{path}: is damaged or not safetensors ({_short(e)}); download it again") from None


def _short(value: object) -> str:
    """For a message: text that a file may have chosen, cut and without control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:80])


def _unwrapped(path: Path, value: Mapping[str, object]) -> State:
    """Strip training wrappers: `{"state_dict": ...}` and the `module.` of data parallel training."""
    inner = value.get("state_dict")
    if isinstance(inner, Mapping):
        value = inner
    state: State = {}
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            shown = _short(name) if isinstance(name, str) else f"a key of type {type(name).__name__}"
            raise CheckpointError(f"{path}: {shown} is not the name of a dense tensor; a plain state dict is needed")
        state[name.removeprefix("module.")] = tensor
    stored, size = sum(t.nbytes for t in state.values()), path.stat().st_size
    if stored > size:
        raise CheckpointError(f"{path}: refused, tensors of {stored:,} bytes in a file of {size:,}; they share or repeat their memory")
    if len(state) < len(value):
        raise CheckpointError(f"{path}: names the same tensor twice, with and without 'module.'")
    return state


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    """The tensor as float32 (counters as int64), refused when a value is not finite."""
    if name.endswith("num_batches_tracked"):
        return tensor.to(torch.int64)
    if not tensor.is_floating_point():
        raise CheckpointError(f"{path}: {name} is {tensor.dtype}; quantized or integer weights are not supported")
    tensor = tensor.detach().to(torch.float32).contiguous()
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{path}: {name} holds NaN or infinity; the training run that wrote it has failed")
    return tensor


def _halved(path: Path, name: str, tensor: Tensor) -> Tensor:
    halved = tensor.half() if tensor.is_floating_point() else tensor
    if not halved.isfinite().all():
        raise CheckpointError(f"{path}: {name} has values beyond float16's 65,504; write it without --half")
    return halved


def _separate(state: State) -> State:
    """Every tensor with memory of its own: files may store several in one, or parts of one, and safetensors cannot write these."""
    seen = set()
    for name, tensor in state.items():
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(memory.data_ptr())
    return state


# --- shapes ----------------------------------------------------------------------------------------------------------------------


def expected_shapes(spec: ModelSpec, form: Form, *, fused: bool) -> Shapes:
    """Name (open_clip's) to shape of every tensor of a variant, in the model's order."""
    return _shapes(spec.image(form), replace(spec, name="", weights=None, published=None, parameters=None), fused)


@functools.cache
def _shapes(tower: MCiTower | ViTTower, anonymous: ModelSpec, fused: bool) -> Shapes:
    """Cached without the variant's name, as variants share architectures."""
    form: Form = "native" if tower == anonymous.native else "open_clip"
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in CLIP(anonymous, form, folded=fused).state_dict().items()}


def fitting(got: Shapes, spec: ModelSpec | None = None) -> list[tuple[ModelSpec, Form, bool]]:
    """Variant, form and fusing of every net that has exactly the tensors `got` (open_clip's names); only those of `spec` if it is given."""
    return [
        (candidate, form, fused)
        for candidate in ([spec] if spec else REGISTRY.values())
        if _plausible(candidate, got)
        for form in candidate.forms
        for fused in (False, True)
        if expected_shapes(candidate, form, fused=fused) == got
    ]


def _plausible(spec: ModelSpec, got: Shapes) -> bool:
    """A cheap test before the whole model is built: vocabulary, text width and embedding size."""
    text = spec.text
    return (
        got.get("text.token_embedding.weight") == (text.vocabulary, text.width)
        and got.get("text.text_projection") == (text.width, spec.embed_dim)
    )  # fmt: skip


def _shape_report(path: Path, got: Shapes, wanted: ModelSpec | None) -> str:
    """What differs from the variant asked for, or from the nearest: the first five tensors, expected and got."""
    if not got:
        return f"{path}: holds no tensors"
    if wanted and (held := fitting(got)):
        return f"{path}: holds {held[0][0].name}, not {wanted.name}"

    def differences(expected: Shapes) -> list[str]:
        return [n for n in [*expected, *(n for n in got if n not in expected)] if expected.get(n) != got.get(n)]

    candidates = [
        (spec, expected, differences(expected))
        for spec in ([wanted] if wanted else REGISTRY.values())
        for form in spec.forms
        for fused in (False, True)
        for expected in (expected_shapes(spec, form, fused=fused),)
    ]
    spec, expected, differ = min(candidates, key=lambda c: len(c[2]))
    towers = [n for n in expected if n.startswith("visual.")]
    if sum(n in got for n in towers) < len(towers) / 10:
        return (
            f"{path}: is not a MobileCLIP checkpoint (its {len(got)} tensors have other names; the first is {_short(next(iter(got)))!r}); "
            "other CLIP models come in as open_clip:NAME"
        )

    def shape(of: tuple[int, ...] | None) -> str:
        return "absent" if of is None else _short(list(of))

    shown = "; ".join(f"{_short(n)}: expected {shape(expected.get(n))}, got {shape(got.get(n))}" for n in differ[:5])
    more = f"; and {len(differ) - 5} more" if len(differ) > 5 else ""
    kind = "does not fit" if wanted else "fits no variant; the nearest is"
    return f"{path}: {kind} {spec.name} ({len(differ)} of {len(expected)} tensors differ): {shown}{more}"


# --- forms -----------------------------------------------------------------------------------------------------------------------


def _from_native(raw: Mapping[str, Tensor]) -> State:
    """Native tensors under open_clip's names and in its shapes; no head bias is made up."""
    state = {}
    for name, tensor in raw.items():
        new = names.to_open_clip(name)
        if name.endswith((".head.proj", ".classifier.proj")) and tensor.ndim == 2:
            tensor = tensor.T.contiguous()
        elif name.endswith(".pos_embed.pos_embed") and tensor.ndim == 4 and tensor.shape[:2] == (1, 1):
            tensor = tensor[0] if new.startswith("visual") else tensor[0, 0]
        state[new] = tensor
    return state


def _native_name(spec: ModelSpec, name: str) -> str:
    return names.to_native(name, vit=isinstance(spec.image("native"), ViTTower))


def _native_shapes(spec: ModelSpec, shapes: Shapes) -> Shapes:
    meta = {n: torch.empty(s, device="meta") for n, s in shapes.items()}
    return {n: tuple(t.shape) for n, t in _to_native(spec, meta).items()}


def _to_native(spec: ModelSpec, state: Mapping[str, Tensor]) -> State:
    """The inverse of `_from_native`."""
    raw = {}
    for name, tensor in state.items():
        native = _native_name(spec, name)
        if native.endswith((".head.proj", ".classifier.proj")):
            tensor = tensor.T.contiguous()
        elif native.endswith(".pos_embed.pos_embed"):
            tensor = tensor[None] if name.startswith("visual") else tensor[None, None]
        raw[native] = tensor
    return raw


def convert(checkpoint: Checkpoint, form: Form) -> Checkpoint:
    """The same net in another form: adds a zero head bias for open_clip, drops it (it must be zero) for native.

    Raises:
        CheckpointError: It would be another net (the B models), or a trained bias would be lost.
        InputError: The variant has no such form.
    """
    if form == checkpoint.form:
        return checkpoint
    spec, state = checkpoint.spec, dict(checkpoint.state)
    here, there = spec.image(checkpoint.form), spec.image(form)
    if replace(here, head_bias=False) != replace(there, head_bias=False):
        raise CheckpointError(
            f"{spec.name}: its native and open_clip forms are different nets behind the same names (stem padding and LayerNorm epsilon); "
            "a converted file would give other embeddings"
        )
    expected = expected_shapes(spec, form, fused=checkpoint.fused)
    bias = next(n for n in HEAD_BIAS if n in state or n in expected)
    if there.head_bias:
        state[bias] = torch.zeros(expected[bias])
    elif torch.count_nonzero(state[bias]):
        raise CheckpointError(f"{spec.name}: the trained head bias has no place in the native form; keep open_clip or safetensors")
    return replace(checkpoint, form=form, state={n: state[n] for n in expected})


def fused(checkpoint: Checkpoint) -> Checkpoint:
    """The same net in inference form, see `mobileclip.models.fuse`; there is no way back."""
    if checkpoint.fused:
        return checkpoint
    state = fuse(checkpoint.model()).model.state_dict()
    return replace(checkpoint, fused=True, state={n: state[n] for n in expected_shapes(checkpoint.spec, checkpoint.form, fused=True)})


def check_suffix(path: Path) -> None:
    """Raise a CheckpointError unless `save` can write a file of this name."""
    if path.suffix not in {".safetensors", ".pt", ".pth"}:
        raise CheckpointError(f"{path}: unknown kind of checkpoint {path.suffix!r}; use .safetensors, .pt or .pth")


def save(checkpoint: Checkpoint, path: Path, *, half: bool = False) -> None:
    """Write atomically: `.safetensors` under open_clip's names, or `.pt` in the published layout of the checkpoint's form.

    Args:
        checkpoint: What to write.
        path: Where.
        half: Store weights as float16: half the size, rounded to 11 bits.

    Raises:
        CheckpointError: Another suffix, or a value that float16 cannot hold.
        StorageError: The file cannot be written.
    """
    check_suffix(path)
    if half:
        checkpoint = replace(checkpoint, state={name: _halved(path, name, t) for name, t in checkpoint.state.items()})
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with staged_file(path) as tmp:
        try:
            if path.suffix == ".safetensors":
                save_file(checkpoint.state, tmp, metadata={"variant": checkpoint.spec.name})  # more entries have no fixed order
            else:
                native = checkpoint.form == "native"
                state = _to_native(checkpoint.spec, checkpoint.state) if native else dict(checkpoint.state)
                with tmp.open("wb") as f:  # given a path, torch.save would write the temporary name into the file
                    torch.save(state, f)
        except (SafetensorError, RuntimeError) as e:  # what both libraries make of a full disk
            raise StorageError(f"{path}: cannot be written ({_short(e)}); free some space and run again") from e
