"""What is exported: one tower with fixed input and output, its precision written into the graph.

Rules that hold on every finished artifact: token ids are int32 and never pass through fp16; pooling takes the first end token without an
ArgMax; masks are finite; shapes are static.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from mobileclip.errors import GateError
from mobileclip.export.bundle import TensorInfo, Tower
from mobileclip.models.blocks import ConvNorm, LayerScale, RepMixerBlock
from mobileclip.models.fuse import fold_batch_norm
from mobileclip.models.mci import AttentionBlock, MapAttention
from mobileclip.models.text import PackedAttention
from mobileclip.models.vit import Attention, StemLayer
from mobileclip.specs import PreprocessSpec

M = TypeVar("M", bound=nn.Module)


def fold_affine(tower: M) -> M:
    """A copy of a fused tower with every remaining affine step folded into its neighbour, exact up to rounding.

    BatchNorm after a convolution, BatchNorm in front of attention, the scale of attention scores, and layer scale behind a projection.
    The result is no longer in a published form; it only exists to be exported.
    """
    tower = copy.deepcopy(tower)
    with torch.no_grad():
        for m in list(tower.modules()):
            if isinstance(m, ConvNorm | StemLayer) and isinstance(m.bn, nn.BatchNorm2d):
                kernel, bias = fold_batch_norm(m.conv.weight, m.bn)
                m.conv.weight, m.conv.bias, m.bn = nn.Parameter(kernel), nn.Parameter(bias), nn.Identity()
            elif isinstance(m, MapAttention | Attention):
                _fold_scale(m, m.qkv.weight, m.qkv.bias)
            elif isinstance(m, PackedAttention):
                _fold_scale(m, m.in_proj_weight, m.in_proj_bias)
            elif isinstance(m, RepMixerBlock):
                m.layer_scale = _scaled(m.mlp.fc2, m.layer_scale)
            elif isinstance(m, AttentionBlock):
                m.layer_scale_1 = _scaled(m.token_mixer.proj, m.layer_scale_1)
                m.layer_scale_2 = _scaled(m.mlp.fc2, m.layer_scale_2)
                if isinstance(m.norm, nn.BatchNorm2d):
                    qkv = m.token_mixer.qkv
                    kernel, bias = fold_batch_norm(torch.eye(qkv.in_features)[:, :, None, None], m.norm)
                    qkv.bias = nn.Parameter(qkv.weight @ bias)
                    qkv.weight, m.norm = nn.Parameter(qkv.weight @ kernel[:, :, 0, 0]), nn.Identity()
    return tower


def _fold_scale(attention: MapAttention | Attention | PackedAttention, weight: Tensor, bias: Tensor | None) -> None:
    """Multiply the query third of a packed projection by the scale of the scores."""
    for packed in (weight, bias):
        if packed is not None:
            packed[: len(packed) // 3].mul_(attention.scale)
    attention.scale = 1.0


def _scaled(layer: nn.Conv2d | nn.Linear, scale: nn.Module) -> nn.Module:
    """Multiply a projection's outputs by a layer scale; returns what takes the layer scale's place."""
    if not isinstance(scale, LayerScale) or layer.bias is None:
        return scale
    gamma = scale.gamma.flatten()
    layer.weight.mul_(gamma.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.mul_(gamma)
    return nn.Identity()


@dataclass(frozen=True)
class Plan:
    """How one tower is exported.

    Attributes:
        tower: `image` or `text`.
        input: The artifact's input.
        output: The artifact's output.
        preprocess: Set when it is baked into the graph, which then takes uint8 RGB.
        normalize: L2 normalisation at the end, in fp32.
        half: Compute in fp16, but for `fp32_layers` (names of `layers`).
        executorch_backend: Delegate of the executorch target.
    """

    tower: Tower
    input: TensorInfo
    output: TensorInfo
    preprocess: PreprocessSpec | None
    normalize: bool
    half: bool
    executorch_backend: Literal["xnnpack", "coreml"] = "xnnpack"
    fp32_layers: tuple[str, ...] = ()


class InFp32(nn.Module):
    """Run one layer of an fp16 tower in fp32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own signature; floating arguments come in as fp32 and the result leaves as fp16."""
        out = self.layer(*(_to(a, torch.float32) for a in args), **{k: _to(v, torch.float32) for k, v in kwargs.items()})
        return tuple(_to(o, torch.float16) for o in out) if isinstance(out, tuple) else _to(out, torch.float16)


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _norms(tower: nn.Module, pinned: tuple[str, ...]) -> list[str]:
    """Names of the LayerNorms outside the pinned layers.

    They compute in fp32: a sum of squares soon exceeds what fp16 holds, and not every runtime's kernel takes care of that. CoreML, which
    has its own way to fp16, keeps them in fp16, as the Neural Engine knows nothing else.
    """
    names = [name for name, m in tower.named_modules() if isinstance(m, nn.LayerNorm)]
    return [name for name in names if not any(name == p or name.startswith(f"{p}.") for p in pinned)]


def layers(tower: nn.Module) -> list[str]:
    """Names of the layers that can be kept in fp32 one by one, in order: the members of the tower's lists of blocks, and what stands
    beside those lists."""

    def has_list(module: nn.Module) -> bool:
        return any(isinstance(m, nn.Sequential | nn.ModuleList) for m in module.modules())

    def descend(module: nn.Module, prefix: str) -> list[str]:
        names = []
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if has_list(child):
                names += descend(child, f"{path}.")
            elif any(True for _ in child.parameters()):
                names.append(path)
        return names

    return descend(tower, "")


class Graph(nn.Module):
    """A tower from the artifact's input to its float32 embedding."""

    offset: Tensor
    factor: Tensor

    def __init__(self, tower: nn.Module, plan: Plan, *, half: bool, channels_last: bool = True) -> None:
        """Wrap a copy of `tower`.

        Args:
            tower: Fused, in eval mode, float32.
            plan: What to export.
            half: Write the plan's fp16 into the graph (some targets have their own way).
            channels_last: A baked graph takes (N, R, R, 3), else (N, 3, R, R).
        """
        super().__init__()
        self.tower, self.plan = copy.deepcopy(tower), plan
        self.dtype = torch.float16 if half and plan.half else torch.float32
        self.permute = channels_last and plan.preprocess is not None
        if plan.preprocess:
            mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (plan.preprocess.mean, plan.preprocess.std))
            self.register_buffer("factor", 1 / (255 * std))
            self.register_buffer("offset", -mean / std)
        if self.dtype == torch.float16:
            self.tower.half()
            for name in (*plan.fp32_layers, *_norms(tower, plan.fp32_layers)):
                self.tower.set_submodule(name, InFp32(copy.deepcopy(tower.get_submodule(name))))
        self.eval()

    def embed(self, value: Tensor) -> Tensor:
        """Input -> (N, embed_dim) float32."""
        if self.permute:
            value = value.permute(0, 3, 1, 2)
        if self.plan.preprocess:
            value = value.float() * self.factor + self.offset
        embedding = self.tower(_to(value, self.dtype)).float()
        if not self.plan.normalize:
            return embedding
        square = (embedding * embedding).sum(-1, keepdim=True)
        return embedding * square.clamp(min=1e-24).rsqrt()


class ImageGraph(Graph):
    """An image tower; the argument's name becomes the input's."""

    def forward(self, image: Tensor) -> Tensor:
        """Picture -> (N, embed_dim) float32."""
        return self.embed(image)


class TextGraph(Graph):
    """A text tower; the argument's name becomes the input's."""

    def forward(self, tokens: Tensor) -> Tensor:
        """int32 ids -> (N, embed_dim) float32."""
        return self.embed(tokens)


def traced(
    tower: nn.Module, plan: Plan, *, half: bool, channels_last: bool = True, input_dtype: torch.dtype | None = None
) -> torch.export.ExportedProgram:
    """The tower's graph with static shapes, from `torch.export`."""
    kind = ImageGraph if plan.tower == "image" else TextGraph
    graph = kind(tower, plan, half=half, channels_last=channels_last)
    shape = plan.input.shape
    if plan.preprocess and not channels_last:
        shape = (shape[0], 3, *shape[1:3])
    example = torch.zeros(shape, dtype=input_dtype or getattr(torch, plan.input.dtype))
    with torch.no_grad():
        program = torch.export.export(graph, (example,))
    for name, value in [*program.state_dict.items(), *program.constants.items()]:
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise GateError(f"{plan.tower} tower: {name} is not finite (a mask must be finite, weights must fit the precision)")
    return program
