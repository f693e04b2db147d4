"""The fingerprint that tells, on resume, whether the records are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from dpft.data.records import Record, record_key


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256 (hex) over the keys and labels of the records, in order.

    It is a function of private data: whoever holds it can test a guess of the whole set. It is therefore
    kept under ``private/`` only, compared on resume, and never exported.
    """
    digest = hashlib.sha256(b"dpft data fingerprint v1")
    for record in records:
        digest.update(record_key(record) + record.label.to_bytes(8, "big"))
    return digest.hexdigest()
