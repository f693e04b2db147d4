"""Poisson sampling: each record joins each logical batch independently, with the plan's probability.

The drawn set is secret. Amplification by sampling holds only while an observer does not know who was
drawn, so neither the set nor its size goes into anything public.

A sample is drawn by its size, which is binomial, and then as one of all sets of that size: the same distribution,
exactly, in memory that grows with the sample and not with the records.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dpft.engine.keystream import Words

_BITS = 64  # of a word, and of the probability
_CHUNK = 1 << 17  # words asked for at a time: 1 MB


def poisson_sample(records: int, sample_rate: float, source: Words) -> list[int]:
    """Positions of the records drawn, in ascending order; possibly none.

    Guarantee: each of ``records`` positions is included independently with probability
    floor(sample_rate * 2^64) / 2^64, never above ``sample_rate``. ``sample_rate`` = 1 includes all."""
    threshold = int(sample_rate * 2.0**_BITS)
    if threshold >= 1 << _BITS:
        return list(range(records))
    drawn: list[int] = subset(records, binomial(records, threshold, source), source).tolist()
    return drawn


def binomial(trials: int, threshold: int, source: Words) -> int:
    """How many of ``trials`` uniform 64-bit numbers are below ``threshold``, exactly as often as chance has it.

    The numbers are drawn together, a bit at a time from the highest. Those are undecided whose bits so far are the
    threshold's; where its next bit is 1, the ones with a 0 there are below it, and where it is 0, the ones with a 1 are
    above. Half are decided each time, so ``trials`` numbers take about 2 ``trials`` bits in all. Every count is a whole
    number: nothing is rounded."""
    below, undecided = 0, trials
    for bit in reversed(range(_BITS)):
        if not undecided:
            break
        with_one = _ones_among(undecided, source)
        if threshold >> bit & 1:
            below, undecided = below + undecided - with_one, with_one
        else:
            undecided -= with_one
    return below  # what is equal to the threshold is not below it


def subset(records: int, size: int, source: Words) -> NDArray[np.int64]:
    """A set of ``size`` of the positions below ``records``, in ascending order, each such set equally likely.

    Positions are drawn one after the other, as many as are missing, until there are ``size`` different ones. Time and
    memory grow with ``size`` alone; of more than half of the records the rest is drawn instead."""
    if 2 * size > records:
        kept = np.ones(records, dtype=np.bool_)
        kept[subset(records, records - size, source)] = False
        return np.flatnonzero(kept)
    found = np.empty(0, dtype=np.int64)
    while len(found) < size:
        found = np.unique(np.concatenate([found, *_positions(records, size - len(found), source)]))
    return found


def _ones_among(bits: int, source: Words) -> int:
    """How many of so many fair bits are 1."""
    found = 0
    for start in range(0, bits, _CHUNK * _BITS):
        wanted = min(bits - start, _CHUNK * _BITS)
        words = source.words(-(-wanted // _BITS)).numpy().view(np.uint64)
        found += int(np.bitwise_count(words[:-1]).sum())
        found += int(np.bitwise_count(words[-1] >> np.uint64(-wanted % _BITS)))  # the last word has bits to spare
    return found


def _positions(records: int, count: int, source: Words) -> Iterator[NDArray[np.int64]]:
    """``count`` uniform positions below ``records``, in pieces: words cut to the fewest bits, without those that are
    too large (less than half of them)."""
    mask = np.int64((1 << (records - 1).bit_length()) - 1)
    while count:
        words = source.words(count).numpy() & mask
        found = words[words < records]
        count -= len(found)
        yield found
