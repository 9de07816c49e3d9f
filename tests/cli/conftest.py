"""Run a command in this process through the real entry point."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from mobileclip.cli import main


@dataclass
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """The output with white space collapsed, for tables break their lines."""
        return " ".join(self.out.split())

    @property
    def json(self) -> Any:
        """The output of `--json`."""
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        """The error lines."""
        assert "Traceback" not in self.err
        return [line for line in self.err.splitlines() if "rror: " in line]

    @property
    def error(self) -> str:
        """The one error, the last line of standard error."""
        assert self.errors == self.err.splitlines()[-1:], self.err
        return self.errors[0]


@pytest.fixture
def run(monkeypatch, capsys) -> Iterator[Callable[..., Result]]:
    """`run("export", "--target", "onnx")`."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["mobileclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
            main.main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    yield call
    logging.disable(logging.NOTSET)
