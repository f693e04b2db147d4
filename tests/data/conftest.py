"""A place of its own for every test: home, caches and temporary files all under ``tmp_path``."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A first call imports a library or meets a busy machine; no time limit on single examples.
settings.register_profile("dpft", deadline=None)
settings.load_profile("dpft")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """I3: no test of this folder opens a connection; sockets raise."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home, cache, working and temporary folder, to be searched after a test."""
    home = tmp_path / "home"
    for folder in ("cache", "tmp", "work"):
        (home / folder).mkdir(parents=True)
    for variable, folder in (
        ("HOME", ""),
        ("XDG_CACHE_HOME", "cache"),
        ("HF_HOME", "cache/hf"),
        ("TMPDIR", "tmp"),
    ):
        monkeypatch.setenv(variable, str(home / folder))
    for variable in ("DPFT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(home / "work")
    return home
