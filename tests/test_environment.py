"""What the command line tells the libraries beneath, and when."""

from __future__ import annotations

import os
import platform
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
    """The caches of matrix products read their sizes once."""
    code = """
import os, sys
sys.argv = ["dpft", "--help"]
import dpft.cli
assert "torch" not in sys.modules
os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
os.environ.pop("LRU_CACHE_CAPACITY", None)
try:
    dpft.cli.main()
except SystemExit:
    pass
assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == os.environ["LRU_CACHE_CAPACITY"] == "16"
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="counts what glibc has given out")
def test_products_of_many_shapes_leave_little_behind() -> None:
    """500 shapes: 8 MB stay with dpft's settings, 277 MB with torch's, on a processor that multiplies bfloat16."""
    code = """
import ctypes
from dpft.environment import set_defaults
set_defaults()
import torch
class Given(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]
libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Given
left, right = torch.ones(600, 384, dtype=torch.bfloat16), torch.ones(384, 384, dtype=torch.bfloat16)
left[:3] @ right.T
before = libc.mallinfo2().h
for rows in range(100, 600):
    left[:rows] @ right.T
print(libc.mallinfo2().h - before)
"""
    plain = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=plain)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50e6
