"""Other CLIP models of open_clip and timm go through the same pipeline."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from mobileclip.errors import InputError
from mobileclip.export.bundle import Bundle
from mobileclip.export.verify.dataset import captions
from mobileclip.sources import load_model


@pytest.mark.parametrize("name", ["ViT-S-32-alt", "RN50", "MobileCLIP-S1"])
def test_towers_equal_open_clip(name):
    model = load_model(f"open_clip:{name}")
    torch.manual_seed(0)
    theirs = open_clip.create_model(name, pretrained=None, load_weights=False).eval()
    size = model.preprocess.resolution
    image = torch.from_numpy(np.random.default_rng(0).random((2, 3, size, size), np.float32))
    texts = captions()[:8]
    with torch.no_grad():
        assert torch.allclose(model.image(image), theirs.encode_image(image), atol=2e-5)
        ids = torch.from_numpy(model.tokenizer(texts))
        wanted = theirs.encode_text(open_clip.get_tokenizer(name)(texts))
        assert torch.allclose(model.text(ids), wanted, atol=2e-5)


def test_export_of_a_small_open_clip_model(bundle_of):
    bundle = Bundle.open(bundle_of("open_clip:ViT-S-32-alt", ("onnx",)))
    assert bundle.manifest.model.name == "open_clip:ViT-S-32-alt"
    assert bundle.manifest.model.trained is False
    assert all(p.passed for p in bundle.manifest.parity)


@pytest.mark.slow
def test_export_of_vit_b_32(bundle_of):
    bundle = Bundle.open(bundle_of("open_clip:ViT-B-32"))
    assert len(bundle.manifest.parity) == 6
    assert all(p.passed for p in bundle.manifest.parity)


def test_unknown_name_is_named():
    with pytest.raises(InputError, match="unknown open_clip model 'ViT-B32'; did you mean 'ViT-B-32'"):
        load_model("open_clip:ViT-B32")


def test_unknown_weights_are_one_line():
    with pytest.raises(InputError, match="open_clip cannot load ViT-B-32/nothing"):
        load_model("open_clip:ViT-B-32/nothing")
