"""What the demo tries a bundle on. The whole demo is `make demo`."""

from __future__ import annotations

from mobileclip.benchmark.demo import TOP, try_out
from mobileclip.export.bundle import Bundle


def test_a_photograph_is_classified_and_one_is_found(bundle_of):
    shown = try_out(Bundle.open(bundle_of("untrained:mobileclip_nano", ("onnx",))))
    assert not shown.trained
    assert len(shown.rows) == len(shown.found) == TOP
    assert [p for _, p in shown.rows] == sorted((p for _, p in shown.rows), reverse=True)
    assert [cosine for *_, cosine in shown.found] == sorted((cosine for *_, cosine in shown.found), reverse=True)
    assert shown.labels > TOP
    assert shown.pictures == 21
    assert sum(p for _, p in shown.rows) < 1, "of all labels, not of those that are shown"
