"""Writing files so that a crash leaves either the old one or the new one, and secrets stay secret."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dpft.errors import InputError


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` under a temporary name, fsync, and rename into place. ``private`` sets mode 0600."""
    temporary = path.with_name(path.name + ".part")
    mode = 0o600 if private else 0o644
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """JSON with sorted keys; NaN and infinity are refused, since other readers would."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode(), private=private)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or :class:`InputError` that names the file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path.name} is missing in {path.parent.name}; expected a run's folder.") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path.name} is damaged: expected JSON as dpft writes it.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path.name} is damaged: expected a JSON object.")
    return value


def private_folder(path: Path) -> Path:
    """A folder that only its owner can enter (mode 0700), also if it was there before."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path
