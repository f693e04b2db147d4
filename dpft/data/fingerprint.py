"""The fingerprint that tells, on resume, whether the records are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any

from dpft.errors import PrivacyError
from dpft.files import read_json, write_json


def fingerprint(records: Iterable[Any]) -> str:
    """SHA-256 (hex) over all that the records hold, in order.

    It is a function of private data: whoever holds it can test a guess of the whole set. It is therefore
    kept under ``private/`` only, compared on resume, and never exported.
    """
    digest = hashlib.sha256(b"dpft data fingerprint v2")
    for record in records:
        digest.update(hashlib.sha256(repr(astuple(record)).encode()).digest())
    return digest.hexdigest()


def same_records(path: Path, records: Iterable[Any], resume: bool) -> None:
    """Write the fingerprint to ``path``, which stays private; on ``resume`` it only says "same" or "changed".

    Raises :class:`PrivacyError` where the records changed."""
    found = fingerprint(records)
    if resume and path.exists() and read_json(path)["sha256"] != found:
        raise PrivacyError("The records changed since this run began; its ledger speaks of others. Start a new run.")
    write_json(path, {"sha256": found}, private=True)
