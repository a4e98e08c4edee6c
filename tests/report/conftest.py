from __future__ import annotations

import pytest
from hostile import Made, make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run whose every name is hostile, and the page of it."""
    return make(tmp_path_factory.mktemp("run"))
