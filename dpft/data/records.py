"""One record: its texts and its class, and what identifies it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from dpft.config.template import Piece, parse_template, uses_pair

_KEY_DOMAIN = b"dpft record key v1"


class Keyed(Protocol):
    """What the held-out split and the fingerprint see of a record, whatever it holds."""

    @property
    def key(self) -> bytes:
        """32 bytes that are a function of what the record holds, its label apart."""

    @property
    def label(self) -> int:
        """The class id."""


@dataclass(frozen=True, slots=True)
class Record:
    """The columns of one record as they were read; the template is applied when it is tokenised.

    ``repr`` is without the texts, so that no log or traceback that shows a record can show them.
    """

    text: str
    text_pair: str | None
    label: int  # class id, 0..k-1

    def __repr__(self) -> str:
        return "Record(...)"

    @property
    def key(self) -> bytes:
        """What identifies the record: :func:`record_key`."""
        return record_key(self)


def record_key(record: Record) -> bytes:
    """32 bytes that identify a record by its texts alone: two records with the same texts share it.

    SHA-256 of a domain name and each text behind its own length, so that no two different pairs of
    texts have one encoding; an absent second text differs from an empty one.
    """
    digest = hashlib.sha256(_KEY_DOMAIN)
    for text in (record.text, record.text_pair):
        if text is None:
            digest.update(b"\x00")
        else:
            encoded = text.encode("utf-8")
            digest.update(b"\x01" + len(encoded).to_bytes(8, "big") + encoded)
    return digest.digest()


def render(record: Record, template: str) -> tuple[str, str | None]:
    """The sequences to encode: (rendered template, second text or None).

    A template that places ``{text_pair}`` itself makes one sequence; otherwise the second text stays a
    sequence of its own. Braces inside a record's text are text.
    """
    pieces = _pieces(template)
    first = "".join(literal + _column(record, name) for literal, name in pieces)
    return first, None if uses_pair(pieces) else record.text_pair


@lru_cache(maxsize=8)
def _pieces(template: str) -> tuple[Piece, ...]:
    return parse_template(template)


def _column(record: Record, name: str | None) -> str:
    if name is None:
        return ""
    return record.text if name == "text" else record.text_pair or ""
