"""The held-out split: each record decides for itself, so no record's side depends on another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from dpft.data.records import Keyed

_SALT = b"dpft held-out split v1"
"""Public and constant. A seed here would invite choosing the split by its accuracy."""


R = TypeVar("R", bound=Keyed)


def is_held_out(record: Keyed, fraction: float) -> bool:
    """Whether this record is held out: a fixed function of its texts or its image and of the fraction alone.

    Records that hold the same land on one side. A larger fraction keeps what a smaller one held out.
    """
    digest = hashlib.sha256(_SALT + record.key).digest()
    return int.from_bytes(digest[:8], "big") < int(fraction * 2**64)


def split_held_out(records: Iterable[R], fraction: float) -> tuple[tuple[R, ...], tuple[R, ...]]:
    """(train, held out), each in the order of the records. Their sizes vary around the fraction.

    Adding or removing one record moves no other.
    """
    train: list[R] = []
    heldout: list[R] = []
    for record in records:
        (heldout if is_held_out(record, fraction) else train).append(record)
    return tuple(train), tuple(heldout)
