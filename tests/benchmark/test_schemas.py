from __future__ import annotations

from pathlib import Path

import pytest

from mobileclip.benchmark import schemas

CONFORMANCE = Path(__file__).parents[2] / "conformance"


@pytest.mark.parametrize("name", schemas.FILES)
def test_committed_schema_is_current(name: str) -> None:
    current = (CONFORMANCE / name).read_bytes()
    assert current == schemas.schemas()[name], "run: python -m mobileclip.benchmark.schemas conformance"


def test_written_where_asked(tmp_path: Path) -> None:
    schemas.main(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(schemas.FILES)
