"""What the tests of the apps share."""

from __future__ import annotations

import pytest

from tests.apps.kotlin import Kotlin, missing, shared


@pytest.fixture(scope="session")
def kotlin() -> Kotlin:
    """The compiler, with what it has built already."""
    if lacking := missing():
        pytest.skip(f"{lacking} is not installed")
    return shared()
