"""Deliberately broken exports: the gate must refuse every one of them.

`mobileclip verify --self-test` prints the table.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from mobileclip import checkpoints
from mobileclip.export import runtimes
from mobileclip.export.bundle import Options, ParityInfo, Precision, PreprocessInfo, Target, Tower
from mobileclip.export.export import embed, plan_for
from mobileclip.export.exporter import write
from mobileclip.export.graph import Plan, fold_affine
from mobileclip.export.verify.dataset import pictures
from mobileclip.export.verify.gate import check, filled, image_inputs, text_inputs
from mobileclip.recipe import recipe_tensor
from mobileclip.sources import Model, from_checkpoint
from mobileclip.specs import CLIP_MEAN, CLIP_STD, REGISTRY, PreprocessSpec
from mobileclip.tokenizer import Tokenizer
from mobileclip.zeroshot import normalized

Inputs = npt.NDArray[np.generic]


@functools.cache
def healthy(*, causal: bool = False) -> tuple[Model, dict[Tower, npt.NDArray[np.float32]]]:
    """A small model in which every mistake below is possible (mean and std, a square projection, a mask if asked for), with its own
    embeddings of the verification set."""
    nano = REGISTRY["mobileclip_nano"]
    text = replace(nano.text, causal=causal)
    spec = replace(nano, embed_dim=text.width, text=text, preprocess=replace(nano.preprocess, mean=CLIP_MEAN, std=CLIP_STD))
    model = from_checkpoint(checkpoints.recipe_checkpoint(spec), "deterministic recipe")
    inputs = image_inputs(_info(model.preprocess)), text_inputs(model.tokenizer)
    return model, {"image": normalized(embed(model.image, inputs[0])), "text": normalized(embed(model.text, inputs[1]))}


class Before(nn.Module):
    """A tower behind a change of its input."""

    def __init__(self, change: Callable[[Tensor], Tensor], tower: nn.Module) -> None:
        super().__init__()
        self.change, self.tower = change, tower

    def forward(self, value: Tensor) -> Tensor:
        """Input -> embedding."""
        return self.tower(self.change(value))


class After(nn.Module):
    """A tower in front of a change of its embedding."""

    def __init__(self, tower: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tower, self.change = tower, change

    def forward(self, value: Tensor) -> Tensor:
        """Input -> embedding."""
        return self.change(self.tower(value))


class LastToken(nn.Module):
    """A text tower that pools the last position."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids -> embedding."""
        t: Any = self.tower
        last = torch.eye(tokens.shape[1])[-1:].repeat(tokens.shape[0], 1, 1).to(t.positional_embedding.dtype)
        x = t.ln_final(t.transformer(t.token_embedding(tokens) + t.positional_embedding, t.mask, last))
        return x.squeeze(1) @ t.text_projection


class OnlyFirst(nn.Module):
    """A tower that computes the first row of a batch and repeats it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, value: Tensor) -> Tensor:
        """Input -> embedding."""
        return self.tower(value[:1]).repeat(value.shape[0], 1)


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        tower: The tower that it breaks.
        net: Changes the tower that is exported.
        preprocess: Changes what the manifest says about preprocessing.
        tokenizer: Changes the tokenizer that goes into the bundle.
        inputs: Prepares the pictures in another way.
        plan: Changes the graph around the tower.
        batch: Of the artifact.
        causal: The healthy model has a causal mask.
    """

    tower: Tower
    net: Callable[[nn.Module], nn.Module] = copy.deepcopy
    preprocess: Callable[[PreprocessSpec], PreprocessSpec] = lambda p: p
    tokenizer: Callable[[Tokenizer], Tokenizer] = lambda t: t
    inputs: Callable[[PreprocessSpec], Inputs] | None = None
    plan: Callable[[Plan], Plan] = lambda p: p
    batch: int = 1
    causal: bool = False


def _changed(change: Callable[[nn.Module], object]) -> Callable[[nn.Module], nn.Module]:
    def net(tower: nn.Module) -> nn.Module:
        tower = copy.deepcopy(tower)
        with torch.no_grad():
            change(tower)
        return tower

    return net


def _set(name: str, value: Callable[[nn.Module], object]) -> Callable[[nn.Module], nn.Module]:
    return _changed(lambda tower: setattr(tower, name, value(tower)))


def _through_fp16(tokens: Tensor) -> Tensor:
    return tokens.to(torch.float16).to(torch.int32).clamp(max=49407)


def _last_rows_swapped(embedding: Tensor) -> Tensor:
    return torch.cat([embedding[:-2], embedding[:2]])


def _nearest(spec: PreprocessSpec) -> Inputs:
    """Shortest side to the resolution by nearest neighbour, then the centre crop."""
    rows = []
    for picture in pictures():
        image = picture.image
        scale = spec.resolution / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.NEAREST)
        left, top = (image.width - spec.resolution) // 2, (image.height - spec.resolution) // 2
        pixels = np.asarray(image.crop((left, top, left + spec.resolution, top + spec.resolution)), np.float32) / 255
        rows.append(((pixels - np.array(spec.mean)) / np.array(spec.std)).transpose(2, 0, 1))
    return np.stack(rows).astype(np.float32)


def _of_another_variant(layer: str) -> Callable[[nn.Module], None]:
    """A layer gets the weights that the recipe gives to layers of this shape under another variant's names."""

    def change(tower: nn.Module) -> None:
        net = tower.get_submodule(layer)
        net.load_state_dict(
            {n: torch.from_numpy(recipe_tensor(f"another variant.{n}", tuple(v.shape))) for n, v in net.state_dict().items()}
        )

    return change


def _causal_mask(tower: nn.Module) -> Tensor:
    context = tower.get_parameter("positional_embedding").shape[0]
    return torch.full((context, context), -1e4).triu(1)


MUTANTS: dict[str, Mutant] = {
    "channels in BGR order": Mutant("image", net=lambda t: Before(lambda x: x.flip(1), t)),
    "mean and std dropped": Mutant("image", preprocess=lambda p: replace(p, mean=(0.0,) * 3, std=(1.0,) * 3)),
    "mean and std swapped": Mutant("image", preprocess=lambda p: replace(p, mean=p.std, std=p.mean)),
    "pixels not scaled to [0, 1]": Mutant("image", net=lambda t: Before(lambda x: x * 255, t)),
    "squashed instead of cropped": Mutant("image", preprocess=lambda p: replace(p, resize="squash")),
    "nearest for bilinear": Mutant("image", inputs=_nearest),
    "bicubic for bilinear": Mutant("image", preprocess=lambda p: replace(p, interpolation="bicubic")),
    "picture mirrored": Mutant("image", net=lambda t: Before(lambda x: x.flip(3), t)),
    "an image layer of another variant": Mutant("image", net=_changed(_of_another_variant("trunk.stages.2.blocks.1"))),
    "start-token pooling": Mutant("text", net=_set("end_token", lambda t: 49406)),
    "last-token pooling": Mutant("text", net=LastToken),
    "ids through fp16": Mutant("text", net=lambda t: Before(_through_fp16, t)),
    "mask added": Mutant("text", net=_set("mask", _causal_mask)),
    "mask missing": Mutant("text", net=_set("mask", lambda t: None), causal=True),
    "padding with the end token": Mutant("text", tokenizer=lambda t: Tokenizer.from_json(t.to_bytes(), pad_id=t.end_id)),
    "captions cut at 16 tokens": Mutant("text", net=lambda t: Before(lambda x: x * (torch.arange(x.shape[1]) < 16), t)),
    "positions not added": Mutant("text", net=_changed(lambda t: t.get_parameter("positional_embedding").zero_())),
    "a text layer of another variant": Mutant("text", net=_changed(_of_another_variant("transformer.resblocks.1"))),
    "projection transposed": Mutant("text", net=_changed(lambda t: t.get_parameter("text_projection").t_())),
    "no normalisation": Mutant("image", plan=lambda p: replace(p, normalize=False)),
    "constant output": Mutant("image", net=lambda t: After(t, lambda e: e * 0 + 1)),
    "output with NaN": Mutant("text", net=lambda t: After(t, lambda e: e / (e - e))),
    "one row for the whole batch": Mutant("text", net=OnlyFirst, batch=2),
    "last rows of a large batch wrong": Mutant("text", net=lambda t: After(t, _last_rows_swapped), batch=96),
}  # fmt: skip


def judge(mutant: Mutant, folder: Path, target: Target = "onnx", precision: Precision = "fp32") -> ParityInfo:
    """Export a broken tower, past the checks of its graph, and put its outputs before the gate."""
    tower = mutant.tower
    model, reference = healthy(causal=mutant.causal)
    options = Options(targets=(target,), towers=(tower,), precision=precision, batch=mutant.batch)
    spec = model.preprocess
    given: Inputs
    if tower == "text":
        given = text_inputs(mutant.tokenizer(model.tokenizer))
    else:
        given = mutant.inputs(spec) if mutant.inputs else image_inputs(_info(mutant.preprocess(spec)))
    net = mutant.net(fold_affine(model.image if tower == "image" else model.text))
    plan = mutant.plan(plan_for(tower, model.embed_dim, options, _info(spec), given))
    artifact = write(target, net, plan, folder, check=False)
    session = runtimes.load_artifact(folder, artifact)
    rows = filled(len(given), mutant.batch)
    outputs = runtimes.embed(session, given[rows], mutant.batch)
    others = reference["text" if tower == "image" else "image"]
    return check(artifact, session.engine, outputs, reference[tower][rows], others, options)


def _info(spec: PreprocessSpec) -> PreprocessInfo:
    return PreprocessInfo(**spec.__dict__, baked=False)


def self_test(progress: Callable[[str], None]) -> list[tuple[str, ParityInfo]]:
    """What the gate says to a healthy export and to every mutant, by name."""
    results = []
    for name, mutant in {"none (healthy)": Mutant("image"), **MUTANTS}.items():
        progress(name)
        with tempfile.TemporaryDirectory() as folder:
            results.append((name, judge(mutant, Path(folder))))
    return results
