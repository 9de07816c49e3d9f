from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mobileclip.errors import InputError
from mobileclip.reinforce.config import load_ensemble

CONFIGS = Path(__file__).parents[2] / "configs/teachers"
NANO = "teachers:\n  - {kind: checkpoint, name: a, source: mobileclip_nano}\n"


@pytest.mark.parametrize(
    ("name", "scales"),
    [("emoji", [None, None, None]), ("datacompdr", [100, 100]), ("dfndr", [70, 60])],
)
def test_published_ensembles(name, scales):
    config = load_ensemble(CONFIGS / f"{name}.yaml")
    assert [t.scale for t in config.teachers] == scales


@pytest.mark.parametrize("name", ["datacompdr", "dfndr"])
def test_published_models_are_known_to_open_clip(name):
    import open_clip

    config = load_ensemble(CONFIGS / f"{name}.yaml")
    for model, tag in [*((t.model, t.pretrained) for t in config.teachers), (config.captioner.model, config.captioner.pretrained)]:
        assert open_clip.get_pretrained_cfg(model, tag), (model, tag)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema_version: 1\nteachers: []\n", r":2: teachers: "),
        ("schema_version: 2\n" + NANO, r":1: schema_version: "),
        ("schema_version: 1\nteachers:\n  - {kind: lit, name: a, image: resnet, text: all-minilm-l6}\n", r":3: .*image: "),
        ("schema_version: 1\nteachers:\n  - kind: magic\n    name: a\n", r":3: .*kind"),
        ("schema_version: 1\n" + NANO + "augmentation:\n  resolutoin: 3\n", r":5: .*resolutoin"),
        ("schema_version: 1\n" + NANO + "augmentation:\n  scale: [0.5, 0.1]\n", r"yaml:5: augmentation.scale: write"),
        ("schema_version: 1\n" + NANO + NANO.splitlines()[1].replace("a,", "../a,"), "name"),
        ("schema_version: 1\n" + NANO + NANO.splitlines()[1], "two have the same name"),
        ("a: &a [1]\nb: *a\n", "anchors"),
        ("a: 1\na: 2\n", ":2: a is there twice"),
        ("[" * 5000, "is not YAML|nesting"),
        ("!!python/object/apply:os.system [true]", "fields with values"),
        ("x: \t- {", "is not YAML"),
        ("", "fields with values"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, message):
    path = tmp_path / "teachers.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as e:
        load_ensemble(path)
    assert re.search(message, str(e.value)), str(e.value)
    assert "\n" not in str(e.value)


def test_not_utf8_is_told(tmp_path):
    path = tmp_path / "teachers.yaml"
    path.write_bytes(b"a: caf\xe9")
    with pytest.raises(InputError, match="UTF-8"):
        load_ensemble(path)


def test_dumped_config_is_read_again(tmp_path):
    config = load_ensemble(CONFIGS / "emoji.yaml")
    path = tmp_path / "again.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    assert load_ensemble(path) == config
