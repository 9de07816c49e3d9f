"""YAML files that people write, read into strict pydantic models; what is wrong is told with its line and field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError
from pydantic_core import PydanticCustomError

from mobileclip.errors import InputError
from mobileclip.files import reading

_MAX_BYTES, _MAX_DEPTH = 1 << 20, 20
T = TypeVar("T", bound=BaseModel)
_Lines = dict[tuple[str, ...], int]


@dataclass(frozen=True)
class _Source:
    """Where a config comes from."""

    path: Path | None = field(default=None, compare=False)
    """None: not from a file."""
    lines: _Lines = field(default_factory=dict, compare=False)
    """Of each field; 0 stands for the command line. Where a config comes from makes it no other one."""

    def place(self, name: tuple[str, ...]) -> str:
        """File and line of a field, or of the group that lacks it."""
        known = next((name[:n] for n in range(len(name), -1, -1) if name[:n] in self.lines), ())
        line = self.lines.get(known, 1)
        return f"{self.path}:{line}" if line else "--set"


class Strict(BaseModel):
    """Base of all configs: unknown fields, NaN and infinity are errors, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    _source: _Source = PrivateAttr(default_factory=_Source)

    def wrong(self, name: str, message: str) -> InputError:
        """What to raise where a field (`a.b`) turns out wrong later: it names the line, too, if the config comes from a file."""
        place = f"{self._source.place(tuple(name.split('.')))}: " if self._source.path else ""
        return InputError(f"{place}{name}: {message}")


def share(value: object) -> object:
    """A share written in percent, `1%`, as the number 0.01; whatever else it is stays as it is.

    Raises:
        ValueError: No number before the sign.
    """
    if not (isinstance(value, str) and value.endswith("%")):
        return value
    try:
        return float(value.removesuffix("%")) / 100
    except ValueError:
        raise ValueError("is not a share; write for example 1% or 0.01") from None


def misfit(name: str, message: str) -> PydanticCustomError:
    """What a validator of several fields raises: the one (`a.b`) that does not fit to the others."""
    return PydanticCustomError("misfit", "{field}: {message}", {"field": name, "message": message})


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
    source = _Source(path, lines)
    try:
        config = kind.model_validate(value)
    except ValidationError as e:
        raise InputError("; ".join(_problem(source, error) for error in e.errors()[:5])) from None
    if isinstance(config, Strict):
        config._source = source
    return config


def _set(value: dict[str, Any], change: str, lines: _Lines) -> None:
    """Change a field, and note that it is the command line's."""
    name, equals, text = change.partition("=")
    place = tuple(name.split("."))
    if not equals or not all(place):
        raise InputError(f"--set {change!r}: write FIELD=VALUE, as in optimizer.lr=5e-4")
    for part in place[:-1]:
        value = value.setdefault(part, {})
        if not isinstance(value, dict):
            raise InputError(f"--set {change!r}: {part} is no group of fields; set it as a whole")
    for known in [known for known in lines if known[: len(place)] == place]:
        del lines[known]
    below: _Lines = {place: 0}
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        value[place[-1]] = _value(Path("--set"), tree, place, below) if tree else None
    except (yaml.YAMLError, RecursionError):
        raise InputError(f"--set {change!r}: the value is not YAML") from None
    lines.update(dict.fromkeys(below, 0))


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


def _problem(source: _Source, error: Any) -> str:
    known = {part for name in source.lines for part in name}
    name = tuple(str(part) for part in error["loc"])
    name = tuple(part for part in name if part in known or part == name[-1])  # pydantic puts the alternatives of a union between
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "misfit":
        name, message = (*name, *error["ctx"]["field"].split(".")), error["ctx"]["message"]
    told = f"{'.'.join(name)}: " if name else ""
    return f"{source.place(name)}: {told}{message}"
