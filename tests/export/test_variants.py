"""Published variants at full size, from a checkpoint file to a verified bundle of every target."""

from __future__ import annotations

import pytest

from mobileclip import checkpoints
from mobileclip.export.bundle import TARGETS, Bundle
from mobileclip.specs import get_spec


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "targets", "precision"),
    [
        ("mobileclip_s0", TARGETS, "fp32"),
        ("mobileclip_s0", TARGETS, "fp16"),
        ("mobileclip2_b", ("onnx", "coreml"), "fp32"),
    ],
)
def test_published_variant(variant, targets, precision, bundle_of, tmp_path):
    checkpoint = tmp_path / f"{variant}.pt"
    checkpoints.save(checkpoints.recipe_checkpoint(get_spec(variant)), checkpoint)
    bundle = Bundle.open(bundle_of(str(checkpoint), targets, precision))
    assert bundle.manifest.model.name == variant
    assert bundle.manifest.model.source == checkpoint.name
    assert len(bundle.manifest.parity) == 2 * len(targets)
    assert all(p.passed for p in bundle.manifest.parity)
    if (targets, precision) == (TARGETS, "fp32"):  # of the normalisation, which XNNPACK leaves to the portable kernels
        assert bundle.artifact("executorch", "image").not_delegated == {"sum.dim_IntList": 1}
