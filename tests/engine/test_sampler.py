"""Poisson sampling is what the accountant describes: independent inclusions, each with the plan's rate."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from dpft.engine.keystream import InsecureSeededWords, Keystream
from dpft.engine.sampler import binomial, poisson_sample, subset

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


class Spelt:
    """Words whose first bits spell one number, a bit a word, from its highest."""

    name, private = "spelt", False

    def __init__(self, number: int) -> None:
        self._bits = iter(f"{number:064b}")

    def words(self, n: int) -> torch.Tensor:
        assert n == 1
        return torch.tensor([-(1 << 63) if next(self._bits) == "1" else 0])


@pytest.mark.parametrize("rate", [1e-12, 2.0**-64, 0.1, 0.5, 1 - 2.0**-53])
def test_inclusion_probability_is_at_most_the_rate_and_within_one_word_of_it(rate: float) -> None:
    """D4: the numbers for which a record is included, counted exactly at their edges."""
    threshold = int(rate * 2**64)
    for number in (0, threshold - 1, threshold, (1 << 64) - 1):
        assert binomial(1, threshold, Spelt(number)) == (number < threshold)
    assert threshold / 2**64 <= rate


class Noted(InsecureSeededWords):
    """Keeps the words that it hands out."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.given: list[list[int]] = []

    def words(self, n: int) -> torch.Tensor:
        words = super().words(n)
        self.given.append([w % (1 << 64) for w in words.tolist()])
        return words


def one_trial_at_a_time(trials: int, threshold: int, given: list[list[int]]) -> int:
    """The same bits, given to trials that each keep a number of their own."""
    numbers, undecided = [0] * trials, list(range(trials))
    for bit, words in zip(reversed(range(64)), given, strict=False):
        spelt = "".join(f"{word:064b}" for word in words)
        # Of the last word only the highest bits are used.
        bits = spelt[: len(undecided)]
        for i, value in zip(undecided, bits, strict=True):
            numbers[i] |= int(value) << bit
        undecided = [i for i in undecided if numbers[i] >> bit == threshold >> bit]
    return sum(number < threshold for number in numbers)


@pytest.mark.parametrize("trials", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("threshold", [1, 1 << 60, 0x1999999999999999, (1 << 63) + 12345, (1 << 64) - 1])
def test_a_size_is_the_count_of_numbers_below_the_threshold(trials: int, threshold: int) -> None:
    """D1, D4: as if every record had a number of its own."""
    source = Noted(trials)
    size = binomial(trials, threshold, source)
    assert size == one_trial_at_a_time(trials, threshold, source.given)


def test_sizes_are_spread_as_the_binomial_is() -> None:
    """D1: every size's share, by Pearson's statistic."""
    n, rate, draws, source = 12, 0.3, 20_000, Keystream()
    seen = Counter(binomial(n, int(rate * 2**64), source) for _ in range(draws))
    expected = {k: draws * math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)}
    tail = [k for k in expected if expected[k] < 10]
    cells = [(seen[k], expected[k]) for k in expected if k not in tail]
    cells.append((sum(seen[k] for k in tail), sum(expected[k] for k in tail)))
    statistic = sum((s - e) ** 2 / e for s, e in cells)
    # Chi-squared with at most 12 degrees of freedom is above 60 with probability 3e-8.
    assert statistic < 60


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 6])
def test_every_set_of_a_size_is_equally_likely(size: int) -> None:
    """D1: also beyond half of the records, where those left out are drawn."""
    draws, source = 9_000, Keystream()
    seen = Counter(tuple(subset(6, size, source).tolist()) for _ in range(draws))
    sets = list(itertools.combinations(range(6), size))
    assert set(seen) <= set(sets)
    expected = draws / len(sets)
    # Chi-squared with at most 19 degrees of freedom is above 75 with probability 1e-8.
    assert sum((seen[s] - expected) ** 2 / expected for s in sets) < 75


def test_memory_does_not_grow_with_the_records() -> None:
    """A thousand of a billion: no request is longer than a chunk, and none holds a word a record."""

    class Measured(Keystream):
        longest = 0

        def words(self, n: int) -> torch.Tensor:
            self.longest = max(self.longest, n)
            return super().words(n)

    source = Measured()
    drawn = poisson_sample(10**9, 1e-6, source)
    assert abs(len(drawn) - 1000) < 200  # six standard deviations
    assert drawn == sorted(set(drawn))
    assert 0 <= drawn[0] < drawn[-1] < 10**9
    assert source.longest <= 1 << 17


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
