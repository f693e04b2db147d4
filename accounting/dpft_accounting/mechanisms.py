"""What was run on the data, as values: every accountant, ledger and report reads these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ._check import exact_keys
from .combined import EpsDelta, Parallel, Select, Sequential, Trials
from .errors import AccountingError
from .sampled import (
    BandedMF,
    Gaussian,
    PoissonGaussian,
    ShuffledGaussian,
    TruncatedPoissonGaussian,
    UserELS,
)
from .value import Mechanism

__all__ = [
    "BandedMF",
    "EpsDelta",
    "Gaussian",
    "Mechanism",
    "Parallel",
    "PoissonGaussian",
    "Select",
    "Sequential",
    "ShuffledGaussian",
    "Trials",
    "TruncatedPoissonGaussian",
    "UserELS",
    "mechanism_from_dict",
]

_CLASSES: tuple[type[Mechanism], ...] = (
    Gaussian, PoissonGaussian, TruncatedPoissonGaussian, ShuffledGaussian, UserELS, BandedMF,
    EpsDelta, Sequential, Parallel, Select,
)  # fmt: skip
_BY_KIND = {cls.kind: cls for cls in _CLASSES}


def mechanism_from_dict(value: Mapping[str, Any]) -> Mechanism:
    """The mechanism that ``to_dict`` described; AccountingError for an unknown kind, version or key."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in _BY_KIND:
        raise AccountingError(f"Expected a mechanism of kind {', '.join(_BY_KIND)}, found {kind!r:.60}.")
    cls = _BY_KIND[kind]
    names = {field.name for field in fields(cls)}
    checked = exact_keys(f"mechanism {kind}", value, names | {"kind", "v"})
    if type(checked["v"]) is not int or checked["v"] != 1:
        raise AccountingError(f"Expected version 1 of mechanism {kind}, found {checked['v']!r:.60}.")
    return cls.from_fields({name: checked[name] for name in names})
