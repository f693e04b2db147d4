"""A valid recipe to bend."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A first call imports a library or meets a busy machine; no time limit on single examples.
settings.register_profile("dpft", deadline=None)
settings.load_profile("dpft")

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.toml"


@pytest.fixture
def quickstart() -> Path:
    return QUICKSTART


@pytest.fixture
def values() -> dict[str, Any]:
    """The quickstart recipe as plain tables, fresh for each test."""
    return tomllib.loads(QUICKSTART.read_text(encoding="utf-8"))
