"""A crash or a full disk leaves the old file or the new one, and secrets are born secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dpft import files
from dpft.errors import InputError
from dpft.files import private_folder, read_json, write_atomic, write_json


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """G4, I4."""
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if fails == "write":
        real = os.fdopen

        def fdopen(descriptor: int, mode: str) -> object:
            file = real(descriptor, mode, buffering=0)
            file.close()
            return file  # writing to it raises

        monkeypatch.setattr(files.os, "fdopen", fdopen)
        with pytest.raises((OSError, ValueError)):
            write_atomic(path, b"new")
    else:
        monkeypatch.setattr(files.os, fails, full)
        with pytest.raises(OSError, match="No space"):
            write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_is_renamed_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G4, I4: file, then name, then folder."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (order.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("rename"), replace(a, b))[1])
    write_atomic(tmp_path / "a", b"x")
    assert order == ["sync", "rename", "sync"]


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_private_files_and_folders_are_the_owners_alone(tmp_path: Path, mask: int) -> None:
    """I4: whatever the umask, and also if the folder was open before."""
    before = os.umask(mask)
    try:
        (tmp_path / "was").mkdir(mode=0o755)
        for folder in (private_folder(tmp_path / "was"), private_folder(tmp_path / "new")):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            write_json(folder / "x.json", {"a": 1}, private=True)
            assert stat.S_IMODE((folder / "x.json").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_named_without_its_folder(tmp_path: Path, content: bytes) -> None:
    """F3, F4, I2."""
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.json") as error:
        read_json(path)
    assert str(tmp_path) not in str(error.value)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        read_json(path)


def test_json_holds_no_nan(tmp_path: Path) -> None:
    """F4: other readers would refuse it."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "x.json", {"a": value})
    assert not list(tmp_path.iterdir())
