"""The held-out split: each record decides for itself, so no record's side depends on another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from dpft.data.records import Record, record_key

_SALT = b"dpft held-out split v1"
"""Public and constant. A seed here would invite choosing the split by its accuracy."""


def is_held_out(record: Record, fraction: float) -> bool:
    """Whether this record is held out: a fixed function of its texts and of the fraction alone.

    Records with the same texts land on one side. A larger fraction keeps what a smaller one held out.
    """
    digest = hashlib.sha256(_SALT + record_key(record)).digest()
    return int.from_bytes(digest[:8], "big") < int(fraction * 2**64)


def split_held_out(records: Iterable[Record], fraction: float) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """(train, held out), each in the order of the records. Their sizes vary around the fraction.

    Adding or removing one record moves no other.
    """
    train: list[Record] = []
    heldout: list[Record] = []
    for record in records:
        (heldout if is_held_out(record, fraction) else train).append(record)
    return tuple(train), tuple(heldout)
