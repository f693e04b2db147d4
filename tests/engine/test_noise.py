"""Sum and noise meet on one fixed grid, and the clip leaves room for the rounding."""

from __future__ import annotations

import dataclasses
import inspect
import math
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from dpft.engine.keystream import PIECE, InsecureSeededWords, Keystream, normals
from dpft.engine.noise import GriddedGaussian, Noise, drawn_beside
from dpft.errors import InputError, PrivacyError

CASES = [GriddedGaussian(clip, sigma, 300) for clip in (1e-4, 0.3, 1.0, 7.5, 1e4) for sigma in (0.3, 1.0, 17.3)]


@pytest.mark.parametrize("mechanism", CASES, ids=str)
def test_the_grid_is_a_power_of_two_of_public_numbers(mechanism: GriddedGaussian) -> None:
    """H2."""
    mantissa, _ = math.frexp(mechanism.grid)
    assert mantissa == 0.5
    std = mechanism.clip * mechanism.noise_multiplier
    assert 2.0**-31 < mechanism.grid / std <= 2.0**-30
    # Nothing but the plan's numbers can enter: the mechanism is frozen and has no other field.
    assert [f.name for f in dataclasses.fields(mechanism)] == ["clip", "noise_multiplier", "coordinates", "compute"]
    assert dataclasses.replace(mechanism) == mechanism


@pytest.mark.parametrize("mechanism", CASES, ids=str)
def test_a_release_is_an_exact_multiple_of_the_grid(mechanism: GriddedGaussian) -> None:
    """H2: for any sum, the low bits of float64 carry nothing."""
    total = torch.randn(300, dtype=torch.float64) * mechanism.clip * 3
    units = mechanism.release(total, mechanism.noise(Keystream())) / mechanism.grid  # exact: the grid is a power of two
    assert torch.equal(units, units.round())
    assert (units.abs() < 2.0**53).all()  # so every integer near them is a float64


def test_neighbours_release_on_one_lattice() -> None:
    """H2: with one noise, two sums differ by a whole number of grid steps, and stay within the clip."""
    mechanism = GriddedGaussian(1.0, 1.3, 500)
    total = torch.randn(500, dtype=torch.float64)
    g = torch.randn(500, dtype=torch.float64)
    neighbour = total + g / g.norm() * mechanism.bound
    a, b = (mechanism.release(t, mechanism.noise(InsecureSeededWords(5))) for t in (total, neighbour))
    steps = (a - b) / mechanism.grid
    assert torch.equal(steps, steps.round())
    assert float((a - b).norm()) <= mechanism.clip


@pytest.mark.parametrize("d", [1, 1000, 1_000_000])
def test_the_bound_leaves_room_for_rounding(d: int) -> None:
    """H2: rounding moves each coordinate of a difference by at most one grid step, sqrt(d) of them in norm."""
    mechanism = GriddedGaussian(1.0, 10.0, d)
    assert mechanism.bound + mechanism.grid * math.sqrt(d) < mechanism.clip
    assert mechanism.bound > 0.999 * mechanism.clip  # and costs no utility


def test_bfloat16_leaves_more_room() -> None:
    """A10: neighbours' micro-batches round differently, by up to 2e-4 of the clip where it was measured."""
    mechanism = GriddedGaussian(1.0, 1.0, 1000, torch.bfloat16)
    assert mechanism.bound < 1 - 8 * 2e-4 < GriddedGaussian(1.0, 1.0, 1000).bound
    assert mechanism.bound > 0.997


def test_noise_beyond_the_grid_is_refused() -> None:
    """H2: where rounding would eat half of the clip, the plan is an error that names the field."""
    with pytest.raises(InputError, match="noise_multiplier"):
        _ = GriddedGaussian(1.0, 1e9, 1_000_000).bound


@pytest.mark.parametrize("clip", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("sigma", [0.4, 3.0])
def test_the_noise_has_the_plans_standard_deviation(clip: float, sigma: float) -> None:
    """B3, C2: sigma * C, whatever the sum is."""
    d = 40_000
    mechanism = GriddedGaussian(clip, sigma, d)
    for total in (torch.zeros(d, dtype=torch.float64), torch.full((d,), 50 * clip, dtype=torch.float64)):
        noise = mechanism.release(total.clone(), mechanism.noise(Keystream())) - total
        # Relative standard error 1/sqrt(2d) = 0.35 %; five of them.
        assert abs(float(noise.std()) / (sigma * clip) - 1) < 5 / math.sqrt(2 * d)
        assert abs(float(noise.mean())) < 5 * sigma * clip / math.sqrt(d)


def test_noise_is_full_precision() -> None:
    """C7: 2^30 grid steps a deviation, so 4,000 draws are all distinct but for birthday pairs."""
    mechanism = GriddedGaussian(1.0, 1.0, 4000)
    noise = mechanism.release(torch.zeros(4000, dtype=torch.float64), mechanism.noise(Keystream()))
    assert noise.dtype == torch.float64
    assert len(noise.unique()) >= 3995  # expected pairs: 4000^2/2 / (2^30 * 2 sqrt(pi)) = 0.002


def test_noise_is_drawn_once_whatever_the_sum() -> None:
    """C1, H3: the words consumed depend on the number of coordinates alone, and the sum meets what is drawn already."""

    class Counting(Keystream):
        calls: tuple[int, ...] = ()

        def words(self, n: int) -> torch.Tensor:
            self.calls += (n,)
            return super().words(n)

    mechanism = GriddedGaussian(1.0, 1.0, 11)
    for scale in (0.0, 1.0, 1e12):
        source = Counting()
        mechanism.release(torch.full((11,), scale, dtype=torch.float64), mechanism.noise(source))
        assert source.calls == (12,)


def test_noise_and_release_take_no_scale_from_their_caller() -> None:
    """B3: clip and noise are fields of one value; a caller can pass source and sum, nothing else."""
    assert list(inspect.signature(GriddedGaussian.noise).parameters) == ["self", "source"]
    assert list(inspect.signature(GriddedGaussian.release).parameters) == ["self", "total", "noise"]


def test_no_two_sums_are_released_with_the_same_noise() -> None:
    """C6: their difference would have none."""
    mechanism = GriddedGaussian(1.0, 1.0, 50)
    noise = mechanism.noise(Keystream())
    mechanism.release(torch.zeros(50, dtype=torch.float64), noise)
    with pytest.raises(PrivacyError, match="anew"):
        mechanism.release(torch.ones(50, dtype=torch.float64), noise)


@pytest.mark.parametrize("idle", [False, True])
def test_noise_drawn_beside_is_the_same_and_done_on_leaving(idle: bool) -> None:
    mechanism, source = GriddedGaussian(1.0, 1.3, 200_001), InsecureSeededWords(4)
    noise = mechanism.noise(source)
    with drawn_beside(noise, idle=idle):
        pass
    drawn = source.words(1)
    found = torch.cat([*noise.take()])
    assert torch.equal(found, torch.cat([*mechanism.noise(InsecureSeededWords(4)).take()])) == idle
    # What is drawn next comes after all of the noise, or before it where the processor has the sum to take.
    assert torch.equal(drawn, InsecureSeededWords(4).words(1)) != idle
    assert not any(thread.name.startswith("noise") for thread in threading.enumerate())


def test_an_error_beside_the_noise_waits_for_it_and_one_within_it_arrives() -> None:
    """C6: what comes next reads the same source, so that nobody else may be reading it then."""
    drawn: list[int] = []

    def slowly() -> Iterator[torch.Tensor]:
        time.sleep(0.05)
        drawn.append(1)
        yield torch.zeros(1)

    with pytest.raises(KeyError), drawn_beside(Noise(slowly()), idle=True):
        raise KeyError
    assert drawn == [1]

    def broken() -> Iterator[torch.Tensor]:
        raise OSError("no words")
        yield

    with pytest.raises(OSError, match="no words"), drawn_beside(Noise(broken()), idle=True):
        pass


@pytest.mark.parametrize("d", [0, 49, 51])
def test_a_sum_of_another_size_is_not_released(d: int) -> None:
    """C1: noise would be missing on some of it, or be the same on several coordinates."""
    mechanism = GriddedGaussian(1.0, 1.0, 50)
    with pytest.raises(PrivacyError, match="50 coordinates"):
        mechanism.release(torch.zeros(d, dtype=torch.float64), mechanism.noise(Keystream()))


def test_noise_comes_in_pieces_and_each_coordinate_has_its_own() -> None:
    """C1: at sizes around the pieces' edges, the same as in one go."""
    for d in (1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3):
        mechanism = GriddedGaussian(1.0, 1.0, d)
        made = mechanism.release(torch.zeros(d, dtype=torch.float64), mechanism.noise(InsecureSeededWords(2)))
        whole = torch.cat([*normals(InsecureSeededWords(2), d)])
        assert torch.equal(made, (whole / mechanism.grid).round_() * mechanism.grid)
        assert len(made.unique()) > 0.999 * d
