"""The same weights through timm and open_clip give the same embeddings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import open_clip
import pytest
import torch
from open_clip.transformer import TextTransformer
from test_golden import golden_image
from timm.layers import LayerNorm, LayerNorm2d
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from mobileclip.checkpoints import Checkpoint, convert
from mobileclip.models.clip import CLIP, normalized
from mobileclip.models.fuse import fuse
from mobileclip.recipe import recipe_tensor
from mobileclip.specs import REGISTRY, MCiTower, TextTower, ViTTower

SAME = 1e-5  # on normalised embeddings
TOKENS = torch.zeros(3, 77, dtype=torch.int64)
TOKENS[0, :7] = torch.tensor([49406, 320, 1125, 539, 320, 1929, 49407])
TOKENS[1, :8] = torch.tensor([49406, 320, 736, 49407, 536, 930, 49407, 5])  # two end tokens: the first one counts
TOKENS[2] = torch.cat([torch.tensor([49406]), torch.arange(1000, 1075), torch.tensor([49407])])


def images(side: int) -> Tensor:
    return torch.stack([torch.from_numpy(golden_image(seed, side)) for seed in (103, 106)])


def fill(module: nn.Module) -> nn.Module:
    state = {n: torch.from_numpy(recipe_tensor(n, tuple(t.shape))) for n, t in module.state_dict().items()}
    module.load_state_dict(state)
    return module.eval()


def same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Load our recipe weights into their module, without renaming, and compare."""
    fill(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        expected = normalized(theirs.eval()(x))
        assert (expected[0] - expected[1]).abs().max() > 1e-3
        assert (normalized(ours(x)) - expected).abs().max() <= SAME


def timm_fastvit(tower: MCiTower, embed_dim: int) -> FastVit:
    position = partial(RepConditionalPosEnc, spatial_shape=(7, 7))
    return FastVit(
        layers=tower.depths,
        embed_dims=tower.dims,
        mlp_ratios=(tower.mlp_ratio,) * len(tower.dims),
        se_downsamples=tower.squeeze_excite,
        downsamples=(False, *(True,) * (len(tower.dims) - 1)),
        pos_embs=tuple(position if a else None for a in tower.attention),
        token_mixers=tuple("attention" if a else "repmixer" for a in tower.attention),
        lkc_use_act=True,
        norm_layer=nn.BatchNorm2d if tower.norm == "batch" else partial(LayerNorm2d, eps=1e-5),
        stem_use_scale_branch=tower.stem_scale,
        num_classes=embed_dim,
    )


def small(tower: MCiTower) -> MCiTower:
    """The same kinds of blocks, one or two a stage, a third as wide."""
    dims = tuple(32 << i for i in range(len(tower.dims)))
    return replace(tower, depths=tuple(min(d, 2) for d in tower.depths), dims=dims)


MCI = {spec.image("open_clip"): spec for spec in REGISTRY.values() if isinstance(spec.open_clip, MCiTower)}


@pytest.mark.parametrize("tower", [pytest.param(t, id=s.name) for t, s in MCI.items()])
def test_mci_image_towers(tower: MCiTower):
    spec = MCI[tower]
    tower = small(tower)
    ours = CLIP(replace(spec, open_clip=tower, embed_dim=64), "open_clip").visual.trunk
    theirs = timm_fastvit(tower, 64)
    same(ours, theirs, images(128))
    fused = fuse(ours).model
    reparameterised = reparameterize_model(theirs)
    ours_state, their_state = fused.state_dict(), reparameterised.state_dict()
    assert set(ours_state) == set(their_state)
    for name, tensor in ours_state.items():
        assert (tensor - their_state[name]).abs().max() <= SAME * max(1, tensor.abs().max())


@pytest.mark.parametrize("side", [64, 96, 160])
def test_mci_at_other_resolutions(side):
    spec = REGISTRY["mobileclip_nano"]
    same(CLIP(spec).visual.trunk, timm_fastvit(spec.image("open_clip"), spec.embed_dim), images(side))


def test_vit_with_a_convolutional_stem():
    spec = REGISTRY["mobileclip_b"]
    towers = [replace(t, width=96, layers=2, heads=3) for t in (spec.open_clip, spec.native) if isinstance(t, ViTTower)]
    ours = CLIP(replace(spec, open_clip=towers[0], embed_dim=64), "open_clip").visual.trunk
    stem = ConvStem(channels=(24, 24, 96), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, in_chans=3, act_layer=nn.GELU)
    embed = partial(HybridEmbed, backbone=stem, proj=False)
    theirs = VisionTransformer(patch_size=1, embed_dim=96, depth=2, num_heads=3, no_embed_class=True, num_classes=64, embed_layer=embed)
    x = images(224)
    same(ours, theirs, x)
    # the native form has the same names and shapes, but for a head bias, and is another net
    native = CLIP(replace(spec, native=towers[1], embed_dim=64), "native").visual.trunk.eval()
    native.load_state_dict({n: t for n, t in ours.state_dict().items() if n != "head.bias"})
    with torch.no_grad():
        assert (normalized(native(x) + ours.head.bias) - normalized(ours(x))).abs().max() > 1e-2


def test_vit_with_a_patch_stem():
    tower = replace(REGISTRY["mobileclip2_l14"].image("open_clip"), width=96, layers=2, heads=3)
    assert isinstance(tower, ViTTower)
    ours = CLIP(replace(REGISTRY["mobileclip2_l14"], open_clip=tower, embed_dim=64)).visual.trunk
    theirs = VisionTransformer(
        patch_size=14, embed_dim=96, depth=2, num_heads=3, pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5), num_classes=64
    )
    same(ours, theirs, images(224))


@pytest.mark.parametrize("causal", [False, True])
def test_text_transformers(causal):
    spec = replace(REGISTRY["mobileclip_nano"], text=TextTower(96, 3, 3, causal=causal), embed_dim=64)
    theirs = TextTransformer(width=96, heads=3, layers=3, output_dim=64, no_causal_mask=not causal)
    same(CLIP(spec).text, theirs, TOKENS)


def test_first_end_token_is_pooled_for_int32_too():
    text = fill(CLIP(replace(REGISTRY["mobileclip_nano"], text=TextTower(64, 4, 4, mixers=1))).text)
    with torch.no_grad():
        assert torch.equal(text(TOKENS), text(TOKENS.int()))


def compare(checkpoint: Checkpoint, open_clip_name: str, image_difference: float | None = None) -> None:
    """Against open_clip's own model; `image_difference` is given where the image towers are different nets."""
    ours, side = checkpoint.model(), checkpoint.spec.preprocess.resolution
    theirs = open_clip.create_model(open_clip_name, pretrained=None)
    state = checkpoint.state if checkpoint.form == "open_clip" else with_zero_bias(checkpoint)
    theirs.load_state_dict(state, strict=True)
    theirs.eval()
    with torch.no_grad():
        image = (ours.encode_image(images(side), normalize=True) - theirs.encode_image(images(side), normalize=True)).abs().max()
        text = (ours.encode_text(TOKENS, normalize=True) - theirs.encode_text(TOKENS, normalize=True)).abs().max()
    assert text <= SAME
    if image_difference is None:
        assert image <= SAME
    else:
        assert image == pytest.approx(image_difference, rel=0.5)


def with_zero_bias(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {**checkpoint.state, "visual.trunk.head.bias": torch.zeros(checkpoint.spec.embed_dim)}


def test_mobileclip2_s0_is_open_clips(recipe):
    compare(recipe("mobileclip2_s0"), "MobileCLIP2-S0")


def test_converted_mobileclip_s1_is_open_clips(recipe):
    compare(convert(recipe("mobileclip_s1"), "open_clip"), "MobileCLIP-S1")


@pytest.mark.slow
def test_mobileclip_b_is_another_net_in_each_form(recipe):
    checkpoint = recipe("mobileclip_b")
    compare(checkpoint, "MobileCLIP-B", image_difference=3.3e-2)
    compare(replace(checkpoint, form="open_clip", state=with_zero_bias(checkpoint)), "MobileCLIP-B")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "open_clip_name"),
    [
        ("mobileclip2_s2", "MobileCLIP2-S2"),
        ("mobileclip2_b", "MobileCLIP2-B"),
        ("mobileclip2_s3", "MobileCLIP2-S3"),
        ("mobileclip2_s4", "MobileCLIP2-S4"),
        ("mobileclip2_l14", "MobileCLIP2-L-14"),
    ],
)
def test_large_variants_are_open_clips(recipe, name, open_clip_name):
    compare(recipe(name), open_clip_name)
