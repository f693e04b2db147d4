"""The version of this package and of those that its numbers depend on."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

__version__ = "0.1.0"


def versions(*packages: str) -> dict[str, str]:
    """Installed version of each of ``packages``."""
    return {package: _installed(package) for package in packages}


@cache
def _installed(package: str) -> str:
    return version(package)
