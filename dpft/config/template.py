"""Templates: how the text columns of one record become its first sequence."""

from __future__ import annotations

from string import Formatter

PLACEHOLDERS = ("text", "text_pair")

Piece = tuple[str, str | None]
"""A literal, then the placeholder that follows it (or None at the end)."""


def parse_template(template: str) -> tuple[Piece, ...]:
    """Cut a template into literals and placeholders; ``{{`` and ``}}`` are literal braces.

    Only ``{text}`` and ``{text_pair}`` are understood. Attributes, indexes, conversions and format
    specifications are refused (ValueError), so a template can't reach anything but the record's text.

    >>> parse_template("Review: {text}")
    (('Review: ', 'text'),)
    """
    pieces: list[Piece] = []
    try:
        parsed = list(Formatter().parse(template))
    except ValueError:
        raise ValueError("expected every brace to be closed; write {{ and }} for literal braces") from None
    for literal, name, spec, conversion in parsed:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            raise ValueError("expected no placeholders but {text} and {text_pair}, written exactly so")
        pieces.append((literal, name))
    if "text" not in (name for _, name in pieces):
        raise ValueError("expected the placeholder {text} at least once")
    return tuple(pieces)


def uses_pair(pieces: tuple[Piece, ...]) -> bool:
    """Whether the template itself places the second text, so that the record is one sequence."""
    return any(name == "text_pair" for _, name in pieces)
