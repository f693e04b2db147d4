"""Silence for library messages that are known to be harmless, for the length of one call only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absl_silenced() -> Iterator[None]:
    """dp-accounting logs Rényi orders whose series does not converge; they are dropped, the rest is sound."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)


@contextmanager
def float_warnings_silenced() -> Iterator[None]:
    """Overflow to infinity and 0/0 in far tails: results are checked to be finite, or soundly infinite."""
    import numpy as np

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
