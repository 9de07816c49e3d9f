"""From a model to a published bundle: fuse, export, verify, and only then give it its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mobileclip import __version__
from mobileclip.errors import BundleError, GateError, InputError
from mobileclip.export.bundle import (
    GOLDEN,
    MANIFEST,
    REFERENCE,
    TOKENIZER,
    TOWERS,
    Bundle,
    Manifest,
    ModelInfo,
    Options,
    ParityInfo,
    PreprocessInfo,
    Target,
    TensorInfo,
    TokenizerInfo,
    Tower,
    file_entry,
    write_manifest,
)
from mobileclip.export.publishing import publishing
from mobileclip.export.verify.dataset import dataset_sha256
from mobileclip.files import locked
from mobileclip.sources import Model
from mobileclip.zeroshot import normalized

if TYPE_CHECKING:
    from torch import nn

    from mobileclip.export.graph import Plan

Progress = Callable[[str], None]
GOLDEN_INPUTS = 3
TOOLS = ("torch", "coremltools", "executorch", "onnx", "onnxruntime", "onnxscript", "timm", "open_clip_torch", "numpy", "pillow")


def export_bundle(model: Model, options: Options, out: Path, progress: Progress, *, again: bool = False) -> Bundle:
    """Export a model as a bundle.

    Everything is written and verified beside `out` and renamed at the end. A bundle that is already there and would come out the same
    is kept. Several processes may export to one folder: they take turns.

    Args:
        model: Fused towers, from `mobileclip.sources.load_model`.
        options: What to export.
        out: The bundle's folder; an older bundle there is replaced.
        progress: Told each step.
        again: Export even if the same bundle is there.

    Raises:
        GateError: An artifact's numbers are wrong; nothing was published.
        MissingToolError: A target's packages are not installed.
        StorageError: Writing failed; nothing was published.
    """
    from mobileclip.export.exporter import check_packages

    check_packages(options)
    out = Path(os.path.abspath(out))  # resolves `.` and `..` but keeps links
    if not out.name:
        raise InputError(f"{out}: a bundle needs a folder of its own; choose one with -o")
    with locked(out):
        if not again and (same := _existing(model, options, out)):
            progress(f"{out} is up to date")
            return same
        with publishing(out) as staging:
            _write(model, options, staging, progress)
        return Bundle.open(out)


def _existing(model: Model, options: Options, out: Path) -> Bundle | None:
    if not (out / MANIFEST).is_file():
        return None
    try:
        bundle = Bundle.open(out)
    except BundleError:
        return None
    m = bundle.manifest
    same = (m.embedding_space, m.options, m.model.name, m.tools, m.toolkit_version, m.dataset_sha256) == (
        model.embedding_space, options, model.name, _tools(), __version__, dataset_sha256(),
    )  # fmt: skip
    return bundle if same else None


def _tools() -> dict[str, str]:
    found = {}
    for package in TOOLS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _write(model: Model, options: Options, folder: Path, progress: Progress) -> None:
    from safetensors.numpy import save_file

    from mobileclip.export.exporter import write
    from mobileclip.export.graph import fold_affine
    from mobileclip.export.precision import by_sensitivity, fp32_layers
    from mobileclip.export.verify.gate import image_inputs, input_names, require_passed, text_inputs, verify

    preprocess = PreprocessInfo(**asdict(model.preprocess), baked=options.bake_preprocessing)
    progress("running the model on the verification set")
    plain = preprocess.model_copy(update={"baked": False})
    inputs: dict[Tower, npt.NDArray[np.generic]] = {"image": image_inputs(plain), "text": text_inputs(model.tokenizer)}
    raw = {"image": embed(model.image, inputs["image"]), "text": embed(model.text, inputs["text"])}
    for tower in TOWERS:
        for name, row in zip(input_names(tower), raw[tower], strict=True):
            if not np.isfinite(row).all():
                raise GateError(f"{model.name}: the model's own embedding of {name} is not finite; the checkpoint is broken")
    reference = {tower: normalized(rows) for tower, rows in raw.items()}
    if options.bake_preprocessing:
        inputs["image"] = image_inputs(preprocess)

    save_file(reference | {f"{t}.norm": np.linalg.norm(raw[t], axis=1) for t in TOWERS}, folder / REFERENCE)
    save_file(_golden(inputs, reference if options.normalize else raw), folder / GOLDEN)
    model.tokenizer.save(folder / TOKENIZER)
    nets = {tower: fold_affine(model.image if tower == "image" else model.text) for tower in options.towers}
    plans: dict[Tower, Plan] = {}
    artifacts = []
    for tower, net in nets.items():
        plan = plan_for(tower, model.embed_dim, options, preprocess, inputs[tower])
        if plan.half:
            progress(f"{tower} tower: finding the layers that need fp32")
            pinned = fp32_layers(net, plan, inputs[tower], reference[tower], reference["text" if tower == "image" else "image"])
            plan = replace(plan, fp32_layers=pinned)
        plans[tower] = plan
        for target in options.targets:
            progress(f"{tower} tower: exporting {target} {options.precision}")
            artifacts.append(write(target, net, plan, folder))
    manifest = Manifest(
        toolkit_version=__version__,
        model=ModelInfo(
            name=model.name,
            form=model.form,
            source=model.source,
            weights_sha256=model.weights_sha256,
            trained=model.trained,
            branches_folded=model.branches_folded,
            logit_scale=model.logit_scale,
        ),
        embedding_space=model.embedding_space,
        embed_dim=model.embed_dim,
        options=options,
        preprocess=preprocess,
        tokenizer=TokenizerInfo(file=file_entry(folder, folder / TOKENIZER), context_length=model.tokenizer.context_length),
        artifacts=tuple(artifacts),
        dataset_sha256=dataset_sha256(),
        reference=file_entry(folder, folder / REFERENCE),
        golden=file_entry(folder, folder / GOLDEN),
        parity=(),
        tools=_tools(),
    )
    parity: list[ParityInfo] = []
    for target in options.targets:
        progress(f"verifying {target}")
        for result in verify(Bundle(folder, manifest), [target]):
            tower = result.tower
            if not result.passed and plans[tower].half:
                progress(f"{tower} tower: finding the layers that {target} needs in fp32")
                order = by_sensitivity(nets[tower], plans[tower], inputs[tower], reference[tower])
                manifest, result = _repaired(manifest, folder, target, nets[tower], plans[tower], order, result)
            parity.append(result)
    require_passed(parity, options.precision)
    write_manifest(folder, manifest.model_copy(update={"parity": tuple(parity)}))


def _repaired(
    manifest: Manifest, folder: Path, target: Target, net: nn.Module, plan: Plan, order: Sequence[str], failed: ParityInfo
) -> tuple[Manifest, ParityInfo]:
    """Export one artifact again with as few more layers in fp32 as its runtime needs; some round more than torch does."""
    from mobileclip.export.exporter import write
    from mobileclip.export.graph import layers
    from mobileclip.export.precision import fewest
    from mobileclip.export.verify.gate import verify

    result = failed

    def passes(pinned: Sequence[str]) -> bool:
        nonlocal manifest, result
        chosen = tuple(name for name in layers(net) if name in {*plan.fp32_layers, *pinned})
        artifact = write(target, net, replace(plan, fp32_layers=chosen), folder)
        artifacts = tuple(artifact if a.path == artifact.path else a for a in manifest.artifacts)
        manifest = manifest.model_copy(update={"artifacts": artifacts})
        (result,) = verify(Bundle(folder, manifest), [target], [plan.tower])
        return result.passed

    fewest(order, passes)
    return manifest, result


def plan_for(tower: Tower, embed_dim: int, options: Options, preprocess: PreprocessInfo, inputs: npt.NDArray[np.generic]) -> Plan:
    """The plan of one tower, whose artifacts take rows of `inputs`."""
    from mobileclip.export.graph import Plan

    name, shape = "image" if tower == "image" else "tokens", (options.batch, *inputs.shape[1:])
    return Plan(
        tower=tower,
        input=TensorInfo.model_validate({"name": name, "dtype": inputs.dtype.name, "shape": shape}),
        output=TensorInfo(name="embedding", dtype="float32", shape=(options.batch, embed_dim)),
        preprocess=preprocess.spec if tower == "image" and preprocess.baked else None,
        normalize=options.normalize,
        half=options.precision == "fp16",
        executorch_backend=options.executorch_backend,
    )


def embed(tower: object, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Embeddings by the model itself, not normalised, in small batches."""
    import torch
    from torch import nn

    assert isinstance(tower, nn.Module)
    with torch.no_grad():
        parts = [tower(torch.from_numpy(inputs[i : i + 8])) for i in range(0, len(inputs), 8)]
        return torch.cat(parts).numpy()


def _golden(
    inputs: dict[Tower, npt.NDArray[np.generic]], reference: dict[str, npt.NDArray[np.float32]]
) -> dict[str, npt.NDArray[np.generic]]:
    """The first few inputs, as the artifacts take them, with the model's outputs."""
    n = GOLDEN_INPUTS
    return {
        "image.input": np.ascontiguousarray(inputs["image"][:n]),
        "image.embedding": np.ascontiguousarray(reference["image"][:n]),
        "text.input": np.ascontiguousarray(inputs["text"][:n]),
        "text.embedding": np.ascontiguousarray(reference["text"][:n]),
    }
