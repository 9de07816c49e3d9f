"""Tensor names of native (Apple, first generation) checkpoints and of open_clip's, one table read in both directions.

A row pairs two literal fragments; `^` and `$` anchor one to the start or end of the name within its tower. Rows apply in order.
"""

from __future__ import annotations

import re

Row = tuple[str, str]

_REPMIXER: tuple[Row, ...] = (
    (".rbr_conv.", ".conv_kxk."),
    (".rbr_scale.", ".conv_scale."),
    (".rbr_skip.", ".identity."),
    (".convffn.", ".mlp."),
    ("layer_scale$", "layer_scale.gamma$"),
    ("layer_scale_1$", "layer_scale_1.gamma$"),
    ("layer_scale_2$", "layer_scale_2.gamma$"),
)
_FASTVIT: tuple[Row, ...] = (
    *((f"^network.{n}.", f"^stages.{i}.blocks.") for i, n in enumerate((0, 2, 4, 7))),
    ("^network.6.", "^stages.3.pos_emb."),
    *((f"^network.{n}.", f"^stages.{i}.downsample.") for i, n in enumerate((1, 3, 5), 1)),
    ("^patch_embed.", "^stem."),
    ("^conv_exp.se.reduce.", "^final_conv.se.fc1."),
    ("^conv_exp.se.expand.", "^final_conv.se.fc2."),
    ("^conv_exp.", "^final_conv."),
    (".lkb_origin.", ".large_conv."),
    (".proj.0.lkb_reparam.", ".proj.0.reparam_conv."),
    (".pe.", ".pos_enc."),
    ("^head.proj$", "^head.fc.weight$"),
    *_REPMIXER,
)
_VIT: tuple[Row, ...] = (
    *((f"^patch_emb.{i}.block.conv.", f"^patch_embed.backbone.{i}.conv.") for i in range(3)),
    *((f"^patch_emb.{i}.block.norm.", f"^patch_embed.backbone.{i}.bn.") for i in range(3)),
    ("^pos_embed.pos_embed.pos_embed$", "^pos_embed$"),
    ("^transformer.", "^blocks."),
    (".pre_norm_mha.0.", ".norm1."),
    (".pre_norm_mha.1.qkv_proj.", ".attn.qkv."),
    (".pre_norm_mha.1.out_proj.", ".attn.proj."),
    (".pre_norm_ffn.0.", ".norm2."),
    (".pre_norm_ffn.1.", ".mlp.fc1."),
    (".pre_norm_ffn.4.", ".mlp.fc2."),
    ("^post_transformer_norm.", "^norm."),
    ("^classifier.proj$", "^head.weight$"),
)
_TEXT: tuple[Row, ...] = (
    ("^embedding_layer.", "^token_embedding."),
    ("^positional_embedding.pos_embed.pos_embed$", "^positional_embedding$"),
    ("^transformer.", "^transformer.resblocks."),
    (".pre_norm_mha.0.", ".ln_1."),
    (".pre_norm_mha.1.qkv_proj.", ".attn.in_proj_"),
    (".pre_norm_mha.1.out_proj.", ".attn.out_proj."),
    (".pre_norm_ffn.0.", ".ln_2."),
    (".pre_norm_ffn.1.", ".mlp.c_fc."),
    (".pre_norm_ffn.4.", ".mlp.c_proj."),
    ("^final_layer_norm.", "^ln_final."),
    ("^projection_layer$", "^text_projection$"),
    *_REPMIXER,
)
_NATIVE_IMAGE, _NATIVE_TEXT = "image_encoder.model.", "text_encoder."
_IMAGE, _TEXT_PREFIX = "visual.trunk.", "text."


def is_native(name: str) -> bool:
    """True for a tensor name of a native checkpoint's towers."""
    return name.startswith((_NATIVE_IMAGE, _NATIVE_TEXT))


def to_open_clip(name: str) -> str:
    """open_clip's name of a native tensor; any other name comes back as it is."""
    if name.startswith(_NATIVE_IMAGE):
        return _IMAGE + _translate(name.removeprefix(_NATIVE_IMAGE), _FASTVIT + _VIT)
    if name.startswith(_NATIVE_TEXT):
        return _TEXT_PREFIX + _translate(name.removeprefix(_NATIVE_TEXT), _TEXT)
    return name


def to_native(name: str, *, vit: bool) -> str:
    """The native name of an open_clip tensor; `vit` tells the image towers apart, as they share fragments in this direction."""
    if name.startswith(_IMAGE):
        return _NATIVE_IMAGE + _translate(name.removeprefix(_IMAGE), _swapped(_VIT if vit else _FASTVIT))
    if name.startswith(_TEXT_PREFIX):
        return _NATIVE_TEXT + _translate(name.removeprefix(_TEXT_PREFIX), _swapped(_TEXT))
    return name


def _swapped(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple((b, a) for a, b in rows)


def _translate(name: str, rows: tuple[Row, ...]) -> str:
    for old, new in rows:
        pattern = ("^" if old.startswith("^") else "") + re.escape(old.strip("^$")) + ("$" if old.endswith("$") else "")
        name = re.sub(pattern, new.strip("^$"), name)
    return name
