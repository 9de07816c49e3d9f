"""What the demo tries a bundle on. The whole demo is `make demo`."""

from __future__ import annotations

import pytest

from mobileclip.benchmark.demo import DRAWINGS, PHOTOGRAPHS, TOP, try_out
from mobileclip.export.bundle import Bundle


@pytest.mark.parametrize(("trial", "pictures"), [(PHOTOGRAPHS, 21), (DRAWINGS, 65)])
@pytest.mark.parametrize(("source", "trained"), [("mobileclip_nano", True), ("untrained:mobileclip_nano", False)])
def test_a_picture_is_classified_and_one_is_found(bundle_of, source, trained, trial, pictures):
    shown = try_out(Bundle.open(bundle_of(source, ("onnx",))), trial)
    assert shown.trained is trained
    assert len(shown.rows) == len(shown.found) == TOP
    assert [p for _, p in shown.rows] == sorted((p for _, p in shown.rows), reverse=True)
    assert [cosine for *_, cosine in shown.found] == sorted((cosine for *_, cosine in shown.found), reverse=True)
    assert shown.labels > TOP
    assert shown.pictures == pictures
    assert sum(p for _, p in shown.rows) < 1, "of all labels, not of those that are shown"


def test_the_weights_that_ship_know_drawings(bundle_of):
    shown = try_out(Bundle.open(bundle_of("mobileclip_nano", ("onnx",))), DRAWINGS)
    assert shown.labels == 65
    assert shown.rows[0][0] == DRAWINGS.picture
    assert {name for _, name, _ in shown.found[:3]} <= {"dog face", "horse face", "octopus", "whale", "elephant"}
