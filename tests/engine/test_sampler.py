"""Poisson sampling is what the accountant describes: independent inclusions, each with the plan's rate."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from dpft.engine.keystream import InsecureSeededWords, Keystream
from dpft.engine.sampler import poisson_sample

RECORDS, RATE, DRAWS = 60, 0.15, 3000


@pytest.fixture(scope="module")
def inclusion() -> torch.Tensor:
    """[DRAWS, RECORDS] of 0 and 1: who was in which batch."""
    source = Keystream()
    table = torch.zeros(DRAWS, RECORDS, dtype=torch.float64)
    for row in table:
        row[poisson_sample(RECORDS, RATE, source)] = 1
    return table


def test_each_record_is_included_with_the_sample_rate(inclusion: torch.Tensor) -> None:
    """D1, D4."""
    # A count is Binomial(DRAWS, RATE). 5 standard deviations leave 6e-7 a record, 3e-5 for all 60.
    spread = math.sqrt(DRAWS * RATE * (1 - RATE))
    assert ((inclusion.sum(dim=0) - DRAWS * RATE).abs() < 5 * spread).all()
    total_spread = math.sqrt(DRAWS * RECORDS * RATE * (1 - RATE))
    assert abs(float(inclusion.sum()) - DRAWS * RECORDS * RATE) < 5 * total_spread


def test_inclusions_are_independent(inclusion: torch.Tensor) -> None:
    """D1, D6: pairs of records, and consecutive batches, meet as often as chance has it."""
    both = inclusion.T @ inclusion
    pairs = both[~torch.eye(RECORDS, dtype=torch.bool)]
    # The count of a pair is Binomial(DRAWS, RATE^2) = 67 on average. There are 1,770 pairs; by Chernoff's
    # bound P(X > m + t) <= exp(-m h(t/m)), h(x) = (1+x) ln(1+x) - x: t = 7 deviations leaves 6e-9 a pair.
    mean, spread = DRAWS * RATE**2, math.sqrt(DRAWS * RATE**2 * (1 - RATE**2))
    assert ((pairs - mean).abs() < 7 * spread).all()
    overlap = float((inclusion[1:] * inclusion[:-1]).sum())
    # Overlaps of consecutive batches: mean q^2, and neighbouring terms share a batch, which adds
    # 2 q^3 (1 - q) to the variance q^2 (1 - q^2) of each.
    variance = RATE**2 * (1 - RATE**2) + 2 * RATE**3 * (1 - RATE)
    count = (DRAWS - 1) * RECORDS
    assert abs(overlap - count * RATE**2) < 5 * math.sqrt(count * variance)


def test_batch_sizes_vary_as_a_binomial_does(inclusion: torch.Tensor) -> None:
    """D1: shuffling would give batches of one size."""
    sizes = inclusion.sum(dim=1)
    # The relative standard error of a variance from n nearly normal values is sqrt(2/n) = 0.026; the
    # binomial's excess kurtosis adds less than 1 %. Five of them.
    expected = RECORDS * RATE * (1 - RATE)
    assert abs(float(sizes.var()) / expected - 1) < 5 * math.sqrt(2.1 / DRAWS)


def test_rate_one_takes_every_record_and_no_records_give_an_empty_batch() -> None:
    """D1, D2."""
    assert poisson_sample(17, 1.0, Keystream()) == list(range(17))
    assert poisson_sample(0, 0.5, Keystream()) == []
    assert poisson_sample(0, 1.0, Keystream()) == []


@pytest.mark.parametrize("rate", [1e-12, 2.0**-64, 0.1, 0.5, 1 - 2.0**-53])
def test_inclusion_probability_is_at_most_the_rate_and_within_one_word_of_it(rate: float) -> None:
    """D4: the words from which a record is included, counted exactly."""

    class Edges:
        """Words around the threshold, in the signed order that the sampler compares in."""

        name, private = "edges", False

        def words(self, n: int) -> torch.Tensor:
            return torch.tensor(words[:n], dtype=torch.int64)

    threshold = int(rate * 2**64)
    words = [w - (1 << 63) for w in (0, threshold - 1, threshold, (1 << 64) - 1) if w >= 0]
    drawn = poisson_sample(len(words), rate, Edges())
    assert drawn == [i for i, w in enumerate(words) if w + (1 << 63) < threshold]
    assert threshold / 2**64 <= rate


def test_sampling_ignores_every_user_seed() -> None:
    """D6: no seed of torch, numpy or random reproduces a batch."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        drawn.append(poisson_sample(400, 0.5, Keystream()))
    assert drawn[0] != drawn[1]  # equal by chance: 2^-400


def test_two_sources_do_not_draw_the_same_records() -> None:
    """D6: the overlap of two ranks' batches is chance's."""
    n = 20_000
    one, other = (set(poisson_sample(n, 0.5, Keystream())) for _ in range(2))
    assert abs(len(one & other) - n / 4) < 5 * math.sqrt(n * 3 / 16)


def test_the_seeded_source_repeats_itself_and_says_so() -> None:
    """C5: what can be replayed declares that it is not private."""
    assert poisson_sample(50, 0.5, InsecureSeededWords(1)) == poisson_sample(50, 0.5, InsecureSeededWords(1))
    assert not InsecureSeededWords.private
    assert "NOT PRIVATE" in InsecureSeededWords.name
