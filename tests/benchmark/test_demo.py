"""What the demo tries a bundle on. The whole demo is `make demo`."""

from __future__ import annotations

import pytest

from mobileclip.benchmark.demo import DRAWINGS, TOP, try_out
from mobileclip.export.bundle import Bundle


@pytest.mark.parametrize(("source", "trained"), [("mobileclip_nano", True), ("untrained:mobileclip_nano", False)])
def test_a_drawing_is_classified_and_one_is_found(bundle_of, source, trained):
    shown = try_out(Bundle.open(bundle_of(source, ("onnx",))))
    assert shown.trained is trained
    assert shown.pictures == shown.labels == 65
    assert len(shown.rows) == len(shown.found) == TOP
    assert [p for _, p in shown.rows] == sorted((p for _, p in shown.rows), reverse=True)
    if trained:
        assert shown.rows[0][0] == DRAWINGS.picture
        assert {name for _, name, _ in shown.found[:3]} <= {"horse face", "elephant", "dog face", "octopus", "whale", "turtle"}
