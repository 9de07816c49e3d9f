from __future__ import annotations

import pytest

from mobileclip.data.samples import BadSample, Sample


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"txt": b"a cat"}, ["a cat"]),
        ({"txt": "猫".encode()}, ["猫"]),
        ({"txt": b'["a cat", "a dog"]'}, ["a cat", "a dog"]),
        ({"txt": b'["quoted" in a caption]'}, ['["quoted" in a caption]']),
        ({"txt": b"a cat", "json": b'{"text": "a dog"}'}, ["a cat"]),
        ({"json": b'{"text": "a dog"}'}, ["a dog"]),
        ({"json": b'{"texts": ["a dog", "", "a cat"], "text": "x"}'}, ["a dog", "", "a cat"]),
        ({"json": b'{"uid": 3, "caption": "a dog"}'}, ["a dog"]),
    ],
)
def test_captions(members, expected):
    assert Sample("", members).captions() == expected


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "no_caption"),
        ({"txt": b" \n"}, "no_caption"),
        ({"json": b"{}"}, "no_caption"),
        ({"json": b'{"text": null}'}, "no_caption"),
        ({"json": b'{"text": []}'}, "no_caption"),
        ({"json": b'{"text": 3}'}, "no_caption"),
        ({"json": b'["a cat"]'}, "no_caption"),
        ({"json": b"[" * 200_000}, "no_caption"),
        ({"json": b"9" * 5000}, "no_caption"),
        ({"txt": b'["", " "]'}, "no_caption"),
        ({"txt": b"\xff\xfe"}, "not_utf8"),
        ({"json": b'{"text": "\xff"}'}, "not_utf8"),
        ({"json": b'{"text": "\\ud800"}'}, "not_utf8"),
        ({"txt": b'["\\udc00"]'}, "not_utf8"),
    ],
)
def test_captions_that_cannot_be_used(members, reason):
    with pytest.raises(BadSample) as e:
        Sample("", members).captions()
    assert e.value.reason == reason
