"""What the command line tells the libraries beneath, and when."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dpft.environment import DEFAULTS, set_defaults


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    set_defaults()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    for name in DEFAULTS:
        monkeypatch.delenv(name)  # and what this test set goes with it


def test_the_command_line_does_it_before_torch_is_there() -> None:
    """oneDNN reads its size once."""
    code = """
import os, sys
sys.argv = ["dpft", "--help"]
import dpft.cli
assert "torch" not in sys.modules
os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
try:
    dpft.cli.main()
except SystemExit:
    pass
assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "16" and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
