"""Validation of single values, worded alike everywhere: what was expected, what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from .errors import AccountingError

_LARGEST = 10**15  # steps, units: more than there can be, and few enough for exact arithmetic in float64


def real(name: str, value: object, *, minimum: float = -math.inf, infinite: bool = False) -> float:
    """``value`` as a float; refuses booleans, text, nan, less than ``minimum`` and, by default, infinity."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise AccountingError(f"Expected {name} to be a number, found {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # JSON knows integers that no float holds
        number = math.nan
    if math.isnan(number) or number < minimum or (math.isinf(number) and not infinite):
        limit = "" if minimum == -math.inf else f" of at least {minimum:g}"
        raise AccountingError(f"Expected {name} to be a finite number{limit}, found {value!r:.60}.")
    return number


def rate(name: str, value: object) -> float:
    """``value`` as a float above 0 and at most 1."""
    number = real(name, value)
    if not 0 < number <= 1:
        raise AccountingError(f"Expected a sampling rate {name} above 0 and at most 1, found {value!r}.")
    return number


def integer(name: str, value: object, *, minimum: int) -> int:
    """``value`` as an int; refuses booleans, floats (also whole ones) and values below ``minimum``."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not minimum <= int(value) <= _LARGEST:  # type: ignore[call-overload]  # whole, so it is a number
        raise AccountingError(
            f"Expected {name} to be a whole number of at least {minimum} and at most {_LARGEST}, found {value!r:.60}."
        )
    return int(value)  # type: ignore[call-overload,no-any-return]


def text(name: str, value: object, *, longest: int = 200) -> str:
    """``value`` if it is printable, non-empty text of at most ``longest`` characters."""
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise AccountingError(f"Expected {name} to be 1 to {longest} printable characters, found {value!r:.60}.")
    return value


def exact_keys(name: str, value: object, keys: set[str]) -> Mapping[str, Any]:
    """``value`` if it is a mapping with these keys, no fewer and no more."""
    if not isinstance(value, Mapping):
        raise AccountingError(f"Expected {name} to be a mapping, found {value!r:.60}.")
    if set(value) != keys:
        raise AccountingError(f"Expected {name} to have the keys {sorted(keys)}, found {sorted(map(str, value))}.")
    return value
