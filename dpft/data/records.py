"""One record: its texts and what is learnt of them, and what identifies it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from dpft.config.template import Piece, parse_template, uses_pair

_KEY_DOMAIN = b"dpft record key v1"
_GROUP_DOMAIN = b"dpft group key v1"

Label = int | float | tuple[int, ...] | None
"""A class id; a number; 0 or 1 for each label name; a class id for each word; or nothing, where a text is learnt."""


class Keyed(Protocol):
    """What the held-out split, the fingerprint and the units see of a record, whatever it holds."""

    @property
    def key(self) -> bytes:
        """32 bytes that are a function of what the record holds, its label apart, or of its group alone."""

    @property
    def label(self) -> Label:
        """What a head learns of it."""

    @property
    def group(self) -> str | None:
        """What rows of one unit have in common; None where each is one."""


@dataclass(frozen=True, slots=True)
class Record:
    """The columns of one record as they were read; the template is applied when it is tokenised.

    ``repr`` is without the texts, so that no log or traceback that shows a record can show them.
    """

    text: str
    text_pair: str | None
    label: Label
    target: str | None = None  # the text to write
    group: str | None = None

    def __repr__(self) -> str:
        return "Record(...)"

    @property
    def key(self) -> bytes:
        """What identifies the record: :func:`record_key`; of a row in a group, what identifies the group."""
        if self.group is None:
            return record_key(self)
        return hashlib.sha256(_GROUP_DOMAIN + self.group.encode("utf-8")).digest()


def record_key(record: Record) -> bytes:
    """32 bytes that identify a record by its texts alone: two records with the same texts share it.

    SHA-256 of a domain name and each text behind its own length, so that no two different lists of
    texts have one encoding; an absent second text differs from an empty one. A target is only there where one is set.
    """
    digest = hashlib.sha256(_KEY_DOMAIN)
    for text in (record.text, record.text_pair, *(() if record.target is None else (record.target,))):
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
