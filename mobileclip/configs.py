"""YAML files that people write, read into strict pydantic models; what is wrong is told with its line and field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mobileclip.errors import InputError
from mobileclip.files import reading

_MAX_BYTES, _MAX_DEPTH = 1 << 20, 20
T = TypeVar("T", bound=BaseModel)
_Lines = dict[tuple[str, ...], int]


class Strict(BaseModel):
    """Base of all configs: unknown fields, NaN and infinity are errors, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_config(path: Path, kind: type[T], changes: Sequence[str] = ()) -> T:
    """Read a YAML file as a `kind`.

    Args:
        path: The file.
        kind: What its fields are checked against.
        changes: `FIELD=VALUE` each, instead of what the file has: `optimizer.lr=5e-4`, values in YAML.

    Raises:
        InputError: Names the line and the field of the first things that are wrong.
    """
    with reading(path):
        data = path.read_bytes()
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path}: is too large for a config ({len(data):,} bytes)")
    lines: _Lines = {}
    try:
        tree = yaml.compose(data.decode(), yaml.SafeLoader)
        value = _value(path, tree, (), lines) if tree else None
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: is not UTF-8 text (byte {e.start})") from None
    except (yaml.YAMLError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        raise InputError(f"{path}:{mark.line + 1 if mark else 1}: is not YAML: {getattr(e, 'problem', None) or e}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}:1: fields with values are needed, one on a line, as in `schema_version: 1`")
    for change in changes:
        _set(value, change, lines)
    try:
        return kind.model_validate(value)
    except ValidationError as e:
        raise InputError("; ".join(_problem(path, error, lines) for error in e.errors()[:5])) from None


def _set(value: dict[str, Any], change: str, lines: _Lines) -> None:
    """Change a field; line 0 stands for the command line."""
    name, equals, text = change.partition("=")
    place = tuple(name.split("."))
    if not equals or not all(place):
        raise InputError(f"--set {change!r}: write FIELD=VALUE, as in optimizer.lr=5e-4")
    for part in place[:-1]:
        value = value.setdefault(part, {})
        if not isinstance(value, dict):
            raise InputError(f"--set {change!r}: {part} is no group of fields; set it as a whole")
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        value[place[-1]] = _value(Path("--set"), tree, place, {}) if tree else None
    except (yaml.YAMLError, RecursionError):
        raise InputError(f"--set {change!r}: the value is not YAML") from None
    lines[place] = 0


def _value(path: Path, node: yaml.Node, place: tuple[str, ...], lines: _Lines) -> Any:
    """Plain data of a node; notes the line of each field. Anchors are refused, so that a small file cannot become a large value."""
    lines.setdefault(place, node.start_mark.line + 1)
    if len(place) > _MAX_DEPTH or getattr(node, "seen", False):
        raise InputError(f"{path}:{node.start_mark.line + 1}: anchors and deep nesting have no use in a config")
    node.seen = True  # type: ignore[attr-defined]
    if isinstance(node, yaml.MappingNode):
        value: dict[str, Any] = {}
        for key, child in node.value:
            name = str(key.value)
            if name in value:
                raise InputError(f"{path}:{key.start_mark.line + 1}: {'.'.join((*place, name))} is there twice")
            lines[*place, name] = key.start_mark.line + 1
            value[name] = _value(path, child, (*place, name), lines)
        return value
    if isinstance(node, yaml.SequenceNode):
        return [_value(path, child, (*place, str(i)), lines) for i, child in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    """YAML 1.1 takes `1e-3` for text; here it is a number, as everybody means it."""
    if node.tag == "tag:yaml.org,2002:str" and not node.style:
        try:
            return float(node.value)
        except ValueError:
            return node.value
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, AttributeError, TypeError):  # what PyYAML makes of !!int abc or a thirteenth month
        raise yaml.MarkedYAMLError(problem=f"{node.value!r} is not a value of its type", problem_mark=node.start_mark) from None


def _problem(path: Path, error: Any, lines: _Lines) -> str:
    place = tuple(str(part) for part in error["loc"])
    known = next((place[:n] for n in range(len(place), -1, -1) if place[:n] in lines), ())
    field = ".".join(p for p in place if p in {name for found in lines for name in found} or p == place[-1])
    message = error["msg"].removeprefix("Value error, ")
    line = lines.get(known, 1)
    return f"{f'{path}:{line}' if line else '--set'}: {f'{field}: ' if field else ''}{message}"
