"""The registry of variants: the only list of models, with everything in which they differ.

Sources: MobileCLIP (arXiv 2311.17049, Tables 1 and 9), MobileCLIP2 (arXiv 2508.20691, Table 6), Apple's model table for the
published numbers, and the published checkpoints' layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mobileclip.files import did_you_mean

Form = Literal["native", "open_clip"]
"""How a checkpoint names its tensors: Apple's first-generation names, or open_clip's. Some nets differ with it, see `ModelSpec.image`."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class MCiTower:
    """FastViT-MCi image tower (MobileCLIP section 4.1). Tuples hold one value a stage."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    mlp_ratio: int
    attention: tuple[bool, ...]
    """True: self-attention blocks; False: RepMixer blocks."""
    squeeze_excite: tuple[bool, ...]
    """Squeeze-excite in the downsampling into the stage (the first entry has no downsampling)."""
    norm: Literal["batch", "layer"]
    """Norm before attention."""
    stem_scale: bool
    """1x1 branches in the stem's first two blocks."""
    head_bias: bool

    @property
    def stride(self) -> int:
        """Pixels a side for one cell of the last feature map; input sides must be multiples of it."""
        return 2 << len(self.dims)


@dataclass(frozen=True)
class ViTTower:
    """Vision transformer image tower: B/16 with a convolutional stem, or plain L/14."""

    width: int
    layers: int
    heads: int
    patch: int
    stem: Literal["conv", "patch"]
    norm_eps: float
    head_bias: bool
    stem_padding: int = 0
    """Padding of the first convolution of a `conv` stem."""

    @property
    def stride(self) -> int:
        """Pixels a side for one patch."""
        return self.patch


@dataclass(frozen=True)
class TextTower:
    """Text tower: `layers` blocks, of which the first and last `mixers` are RepMixer1D blocks (MCt, MobileCLIP section 4.2)."""

    width: int
    heads: int
    layers: int
    causal: bool = False
    mixers: int = 0
    context: int = 77
    vocabulary: int = 49408


@dataclass(frozen=True)
class PreprocessSpec:
    """From a picture to the tensor that the image tower takes."""

    resolution: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    resize: Literal["shortest", "squash"] = "shortest"
    """`shortest`: shortest side to the resolution, then a centre crop; `squash`: both sides, without a crop."""


@dataclass(frozen=True)
class WeightsRef:
    """A published checkpoint on the Hub."""

    repo_id: str
    filename: str
    licence: str = "apple-amlr"
    sha256: str | None = None


@dataclass(frozen=True)
class Published:
    """Figures published by Apple for the trained model (iPhone 12 Pro Max, CoreML); reference data, never measured by this toolkit."""

    image_params_m: float
    text_params_m: float
    image_latency_ms: float
    text_latency_ms: float
    imagenet_top1_percent: float
    average_38_percent: float
    seen_samples_b: int


@dataclass(frozen=True)
class ModelSpec:
    """One variant. `native` and `open_clip` are the image towers behind a checkpoint of that form; the forms can be different nets
    with the same keys (both B models: stem padding and LayerNorm epsilon differ), so the form travels with the weights."""

    name: str
    embed_dim: int
    text: TextTower
    preprocess: PreprocessSpec
    published_form: Form
    native: MCiTower | ViTTower | None = None
    open_clip: MCiTower | ViTTower | None = None
    weights: WeightsRef | None = None
    published: Published | None = None
    parameters: tuple[int, int] | None = None
    """Counted (image, text) parameters of the published form after fusing."""

    def image(self, form: Form) -> MCiTower | ViTTower:
        """The image tower behind checkpoints of `form`.

        Raises:
            InputError: The variant has no such form.
        """
        tower = self.native if form == "native" else self.open_clip
        if tower is None:
            from mobileclip.errors import InputError

            raise InputError(f"{self.name} has no {form} form; its checkpoints are {self.published_form}")
        return tower

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms that this variant has."""
        return tuple(f for f, t in (("native", self.native), ("open_clip", self.open_clip)) if t is not None)  # type: ignore[misc]


_R4, _SE4 = (False, False, False, True), (False, False, True, True)
_MCI0 = MCiTower((2, 6, 10, 2), (64, 128, 256, 512), 3, _R4, _SE4, "batch", True, head_bias=False)
_MCI1 = replace(_MCI0, depths=(4, 12, 20, 4))
_MCI2 = replace(_MCI0, depths=(4, 12, 24, 4), dims=(80, 160, 320, 640))
_MCI3 = MCiTower(
    (2, 12, 24, 4, 2), (96, 192, 384, 768, 1536), 4, (False, False, False, True, True), (False,) * 5, "layer", False, head_bias=True
)
_MCI4 = replace(_MCI3, depths=(2, 12, 24, 4, 4), dims=(128, 256, 512, 1024, 2048))
_VIT_B_NATIVE = ViTTower(768, 12, 12, 16, "conv", 1e-5, head_bias=False, stem_padding=1)
_VIT_B = replace(_VIT_B_NATIVE, norm_eps=1e-6, head_bias=True, stem_padding=0)
_VIT_L = ViTTower(1024, 24, 16, 14, "patch", 1e-5, head_bias=True)
_NANO = MCiTower((2, 2, 4, 2), (32, 64, 128, 256), 3, _R4, _SE4, "batch", True, head_bias=True)

_TEXT = TextTower(512, 8, 12)
_TEXT_CAUSAL = TextTower(512, 8, 12, causal=True)
_TEXT_WIDE = TextTower(768, 12, 12)
_TEXT_MCT = TextTower(512, 8, 6, mixers=1)

_UNIT = PreprocessSpec(256)
_UNIT_224 = PreprocessSpec(224)
_CLIP = PreprocessSpec(256, CLIP_MEAN, CLIP_STD)
_CLIP_224 = PreprocessSpec(224, CLIP_MEAN, CLIP_STD, "bicubic")


def _biased(tower: MCiTower) -> MCiTower:
    return replace(tower, head_bias=True)


def _hub(repo: str, filename: str) -> WeightsRef:
    return WeightsRef(f"apple/{repo}", filename)


# Published(image M, text M, image ms, text ms, ImageNet %, 38-set %, billion samples seen)
_SPECS = (
    ModelSpec("mobileclip_s0", 512, _TEXT_MCT, _UNIT, "native", native=_MCI0,
              weights=_hub("MobileCLIP-S0", "mobileclip_s0.pt"), published=Published(11.4, 42.4, 1.5, 1.6, 67.8, 58.1, 13),
              parameters=(11_356_992, 42_435_072)),
    ModelSpec("mobileclip_s1", 512, _TEXT, _UNIT, "native", native=_MCI1, open_clip=_biased(_MCI1),
              weights=_hub("MobileCLIP-S1", "mobileclip_s1.pt"), published=Published(21.5, 63.4, 2.5, 3.3, 72.6, 61.3, 13),
              parameters=(21_460_544, 63_428_096)),
    ModelSpec("mobileclip_s2", 512, _TEXT, _UNIT, "native", native=_MCI2, open_clip=_biased(_MCI2),
              weights=_hub("MobileCLIP-S2", "mobileclip_s2.pt"), published=Published(35.7, 63.4, 3.6, 3.3, 74.4, 63.7, 13),
              parameters=(35_702_480, 63_428_096)),
    ModelSpec("mobileclip_b", 512, _TEXT_CAUSAL, _UNIT_224, "native", native=_VIT_B_NATIVE, open_clip=_VIT_B,
              weights=_hub("MobileCLIP-B", "mobileclip_b.pt"), published=Published(86.3, 63.4, 10.4, 3.3, 76.8, 65.2, 13),
              parameters=(86_348_544, 63_428_096)),
    ModelSpec("mobileclip_blt", 512, _TEXT_CAUSAL, _UNIT_224, "native", native=_VIT_B_NATIVE, open_clip=_VIT_B,
              weights=_hub("MobileCLIP-B-LT", "mobileclip_blt.pt"), published=Published(86.3, 63.4, 10.4, 3.3, 77.2, 65.8, 36),
              parameters=(86_348_544, 63_428_096)),
    ModelSpec("mobileclip_s3", 768, _TEXT_WIDE, _CLIP, "open_clip", open_clip=_MCI3,
              weights=_hub("MobileCLIP-S3", "mobileclip_s3.pt"), published=Published(125.1, 123.6, 8.0, 6.6, 78.3, 66.3, 13),
              parameters=(125_074_272, 123_650_304)),
    ModelSpec("mobileclip_s4", 768, _TEXT_WIDE, _CLIP, "open_clip", open_clip=_MCI4,
              weights=_hub("MobileCLIP-S4", "mobileclip_s4.pt"), published=Published(321.6, 123.6, 19.6, 6.6, 79.4, 68.1, 13),
              parameters=(321_569_664, 123_650_304)),
    ModelSpec("mobileclip_l14", 768, _TEXT_WIDE, _CLIP_224, "open_clip", open_clip=_VIT_L,
              weights=_hub("MobileCLIP-L-14", "mobileclip_l14.pt"), published=Published(304.3, 123.6, 57.9, 6.6, 79.5, 66.9, 13),
              parameters=(303_966_976, 123_650_304)),
    ModelSpec("mobileclip2_s0", 512, _TEXT, _UNIT, "open_clip", open_clip=_biased(_MCI0),
              weights=_hub("MobileCLIP2-S0", "mobileclip2_s0.pt"), published=Published(11.4, 42.4, 1.5, 1.6, 71.5, 59.7, 13),
              parameters=(11_357_504, 63_428_096)),
    ModelSpec("mobileclip2_s2", 512, _TEXT, _UNIT, "open_clip", open_clip=_biased(_MCI2),
              weights=_hub("MobileCLIP2-S2", "mobileclip2_s2.pt"), published=Published(35.7, 63.4, 3.6, 3.3, 77.2, 64.1, 13),
              parameters=(35_702_992, 63_428_096)),
    ModelSpec("mobileclip2_b", 512, _TEXT_CAUSAL, _UNIT_224, "open_clip", open_clip=_VIT_B,
              weights=_hub("MobileCLIP2-B", "mobileclip2_b.pt"), published=Published(86.3, 63.4, 10.4, 3.3, 79.4, 65.8, 13),
              parameters=(86_349_056, 63_428_096)),
    ModelSpec("mobileclip2_s3", 768, _TEXT_WIDE, _CLIP, "open_clip", open_clip=_MCI3,
              weights=_hub("MobileCLIP2-S3", "mobileclip2_s3.pt"), published=Published(125.1, 123.6, 8.0, 6.6, 80.7, 66.8, 13),
              parameters=(125_074_272, 123_650_304)),
    ModelSpec("mobileclip2_s4", 768, _TEXT_WIDE, _CLIP, "open_clip", open_clip=_MCI4,
              weights=_hub("MobileCLIP2-S4", "mobileclip2_s4.pt"), published=Published(321.6, 123.6, 19.6, 6.6, 81.9, 67.5, 13),
              parameters=(321_569_664, 123_650_304)),
    ModelSpec("mobileclip2_l14", 768, _TEXT_WIDE, _CLIP_224, "open_clip", open_clip=_VIT_L,
              weights=_hub("MobileCLIP2-L-14", "mobileclip2_l14.pt"), published=Published(304.3, 123.6, 57.9, 6.6, 81.9, 67.8, 13),
              parameters=(303_966_976, 123_650_304)),
    ModelSpec("mobileclip_nano", 128, TextTower(64, 4, 4, mixers=1, context=32), PreprocessSpec(64), "open_clip", open_clip=_NANO,
              parameters=(2_112_032, 3_341_952)),
)  # fmt: skip

REGISTRY: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
DEFAULT_MODEL = "mobileclip_nano"


def get_spec(name: str) -> ModelSpec:
    """The spec of a variant; case and `-`, `/` for `_` do not matter.

    Raises:
        InputError: Unknown name; names the nearest one.
    """
    key = name.lower().replace("-", "_").replace("/", "_")
    aliases = {"mobileclip_b_lt": "mobileclip_blt", "mobileclip_l_14": "mobileclip_l14", "mobileclip2_l_14": "mobileclip2_l14"}
    key = aliases.get(key, key)
    if key not in REGISTRY:
        raise did_you_mean("model", name, REGISTRY)
    return REGISTRY[key]
