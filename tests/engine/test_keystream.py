"""The noise source: normal to the statistic's limits, keyed by the system, never the same twice."""

from __future__ import annotations

import copy
import math
import os
import pickle
import random

import numpy as np
import pytest
import torch
from scipy import stats

from dpft.engine import keystream
from dpft.engine.keystream import InsecureSeededWords, Keystream, Words, uniform

N = 1_000_000


def standard_normal(source: Words, n: int) -> torch.Tensor:
    """All pieces as one."""
    return torch.cat([torch.empty(0, dtype=torch.float64), *keystream.normals(source, n)])


@pytest.fixture(scope="module")
def normals() -> torch.Tensor:
    return standard_normal(Keystream(), N)


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Times sqrt(n): standard normal where x and y are independent."""
    return float((x * y).mean() / (x.std() * y.std())) * math.sqrt(len(x))


def test_draws_are_standard_normal(normals: torch.Tensor) -> None:
    """H1: mean, variance, third and fourth moment, and the whole distribution."""
    # Standard errors over n draws: mean 1/sqrt(n), variance sqrt(2/n), skewness sqrt(6/n), kurtosis
    # sqrt(24/n); five of each leave 6e-7 a test.
    assert abs(float(normals.mean())) < 5 / math.sqrt(N)
    assert abs(float(normals.var()) - 1) < 5 * math.sqrt(2 / N)
    assert abs(float(stats.skew(normals.numpy()))) < 5 * math.sqrt(6 / N)
    assert abs(float(stats.kurtosis(normals.numpy()))) < 5 * math.sqrt(24 / N)
    # Kolmogorov-Smirnov: P(sqrt(n) D > 2.7) = 2 exp(-2 * 2.7^2) = 1e-6.
    assert stats.kstest(normals.numpy(), "norm").statistic < 2.7 / math.sqrt(N)


def test_the_tail_is_there(normals: torch.Tensor) -> None:
    """H1: a generator of few bits cuts the tail; beyond 4 there should be 63 of a million."""
    expected = N * 2 * stats.norm.sf(4)
    assert abs(int((normals.abs() > 4).sum()) - expected) < 5.5 * math.sqrt(expected)


def test_no_part_of_the_stream_resembles_another(normals: torch.Tensor) -> None:
    """C6: chunks, neighbours and the two halves that Box-Muller makes of one radius are uncorrelated."""
    chunks = normals.view(10, -1)
    for i in range(10):
        for j in range(i):
            assert abs(correlation(chunks[i], chunks[j])) < 5
    assert abs(correlation(normals[1:], normals[:-1])) < 5
    half = N // 2
    assert abs(correlation(normals[:half], normals[half:])) < 5
    # Squares too: cos and sin of one angle share a radius, and are independent all the same.
    sq = normals.square() - 1
    assert abs(correlation(sq[:half], sq[half:])) < 6


def test_uniforms_never_hit_zero_whose_logarithm_is_infinite() -> None:
    """H1: the extreme words give finite normals."""

    class Constant:
        private = False
        name = "constant"

        def __init__(self, value: int) -> None:
            self.value = value

        def words(self, n: int) -> torch.Tensor:
            return torch.full((n,), self.value, dtype=torch.int64)

    for word in (0, -1, (1 << 53) - 1, -(1 << 63), (1 << 63) - 1):
        source = Constant(word)
        u = uniform(source, 3)
        assert (u > 0).all()
        assert (u <= 1).all()
        assert standard_normal(source, 3).isfinite().all()


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64, 1001])
def test_words_consumed_depend_on_the_count_alone(n: int) -> None:
    """H3: no rejection, so the work done says nothing about the values drawn."""

    class Counting(Keystream):
        used = 0

        def words(self, n: int) -> torch.Tensor:
            self.used += n
            return super().words(n)

    for _ in range(20):
        source = Counting()
        assert standard_normal(source, n).shape == (n,)
        assert source.used == n + n % 2


def test_a_forked_child_takes_a_key_of_its_own() -> None:
    """H1, C6."""
    source = Keystream()
    source.words(1)
    read, write = os.pipe()
    # The bare system call: multiprocessing would warn of threads, and a child that only draws words and
    # leaves by _exit touches none of them.
    pid = _fork_without_warning()
    if pid == 0:
        os.write(write, source.words(4).numpy().tobytes())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    child = np.frombuffer(os.read(read, 100), dtype=np.int64)
    os.close(read)
    assert len(child) == 4
    assert not set(child.tolist()) & set(source.words(4).tolist())


def _fork_without_warning() -> int:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def test_copies_and_pickles_have_keys_of_their_own() -> None:
    """C6, F3: nothing that is written down gives the noise back."""
    source = Keystream()
    others = [copy.copy(source), copy.deepcopy(source), pickle.loads(pickle.dumps(source)), Keystream()]
    drawn = [tuple(s.words(4).tolist()) for s in (source, *others)]
    assert len(set(drawn)) == len(drawn)
    assert b"AES" not in pickle.dumps(source)
    assert len(pickle.dumps(source)) < 100  # a name: no room for 256 bits of key


def test_noise_is_no_function_of_user_seeds() -> None:
    """C5: the same seeds everywhere, other noise; and no seed's normals resemble it."""
    d = 4000
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        drawn.append(standard_normal(Keystream(), d))
    assert abs(correlation(*drawn)) < 5
    for seed in range(50):
        # 100 comparisons at 5 standard errors: 6e-5 in all.
        guess = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert abs(correlation(drawn[0], guess)) < 5
        guess = torch.from_numpy(np.random.default_rng(seed).standard_normal(d))
        assert abs(correlation(drawn[0], guess)) < 5


def test_the_key_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """C5: at least 128 bits; here 256 of key and 128 of counter."""
    asked: list[int] = []
    real = os.urandom
    monkeypatch.setattr(os, "urandom", lambda n: (asked.append(n), real(n))[1])
    Keystream()
    assert sum(asked) == 48


def test_the_default_generators_are_left_alone() -> None:
    """C5: drawing neither reads nor moves the states that a checkpoint would store."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    standard_normal(Keystream(), 100)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_the_seeded_source_covers_all_bits() -> None:
    """The tests' own source must be good enough to test with: each of 64 bits is set half of the time."""
    words = InsecureSeededWords(3).words(20_000)
    for bit in range(63):  # torch.randint excludes one word of 2^64
        share = float(((words >> bit) & 1).double().mean())
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(20_000)
