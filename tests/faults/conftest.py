"""What the tests of interrupted exports share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forkserver import ForkServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Starts `mobileclip` commands in forks of one warm process."""
    server = ForkServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()
