"""The mutation suite: broken exports, and the gate that must refuse every one."""

from __future__ import annotations

import pytest

from mobileclip.errors import BundleError
from mobileclip.export.verify.gate import MIN_COSINE
from mobileclip.export.verify.mutants import MUTANTS, Mutant, judge


def test_there_are_enough_mutants():
    assert len(MUTANTS) >= 14
    assert {m.tower for m in MUTANTS.values()} == {"image", "text"}


@pytest.mark.parametrize("batch", [1, 96])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_healthy_export_passes(tower, batch, tmp_path):
    assert judge(Mutant(tower, batch=batch), tmp_path).passed


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["coreml", "executorch"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_healthy_export_passes_everywhere(tower, target, precision, tmp_path):
    assert judge(Mutant(tower), tmp_path, target, precision).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize("target", ["coreml", "executorch"])
def test_a_broken_export_is_refused_everywhere(target, name, tmp_path):
    if (target, name) == ("coreml", "ids through fp16"):  # rounded ids lie outside the vocabulary
        with pytest.raises(BundleError, match=r"outside 0\.\.49407"):
            judge(MUTANTS[name], tmp_path, target, "fp16")
    else:
        assert not judge(MUTANTS[name], tmp_path, target, "fp16").passed


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_export_is_refused(name, tmp_path):
    parity = judge(MUTANTS[name], tmp_path)
    assert not parity.passed
    if name != "no normalisation":  # caught by its length, not by its direction
        assert parity.cosine_min < MIN_COSINE["fp16"]  # so the looser bar refuses it as well
