"""Poisson sampling: each record joins each logical batch independently, with the plan's probability.

The drawn set is secret. Amplification by sampling holds only while an observer does not know who was
drawn, so neither the set nor its size goes into anything public.
"""

from __future__ import annotations

import torch

from dpft.engine.keystream import Words

# 2^64 as the span of a signed word: compare in the signed order, whose least value is -2^63.
_LOW = -(1 << 63)


def poisson_sample(records: int, sample_rate: float, source: Words) -> list[int]:
    """Positions of the records drawn, in ascending order; possibly none.

    Guarantee: each of ``records`` positions is included independently with probability
    floor(sample_rate * 2^64) / 2^64, never above ``sample_rate``. ``sample_rate`` = 1 includes all."""
    threshold = int(sample_rate * 2.0**64)
    if threshold >= 1 << 64:
        return list(range(records))
    drawn = source.words(records) < (_LOW + threshold)
    return torch.nonzero(drawn).flatten().tolist()
