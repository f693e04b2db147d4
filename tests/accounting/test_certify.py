"""The rule that turns several accountants' answers into one number."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from dpft_accounting import (
    AccountantsDisagree,
    AccountingError,
    Bound,
    EpsDelta,
    Gaussian,
    PoissonGaussian,
    Select,
    TruncatedPoissonGaussian,
    Unit,
    Unsupported,
    UserELS,
    accountants,
    certify,
    epsilon,
    pld,
)
from dpft_accounting.certify import decide
from dpft_accounting.mechanisms import Mechanism

EXAMPLE = Unit("example")


def rows(pld_upper: float, prv_range: tuple[float, float], rdp_upper: float) -> tuple[Bound, Bound, Bound]:
    return (
        Bound(0.0, pld_upper, "pld", {}),
        Bound(*prv_range, "prv", {}),
        Bound(0.0, rdp_upper, "rdp", {}),
    )


@pytest.mark.parametrize(
    ("pld_upper", "prv_range", "rdp_upper", "delta", "method", "flagged"),
    [
        (2.0, (1.9, 2.1), 2.3, 1e-6, "pld", False),
        (1.8, (1.9, 2.1), 2.3, 1e-6, "prv", True),  # PLD below PRV's lower bound: unsound
        (2.2, (1.9, 2.1), 2.3, 1e-6, "prv", True),
        (2.0, (1.9, 2.4), 1.95, 1e-6, "rdp", True),
        (2.5, (1.9, 2.2), 2.3, 1e-10, "prv", True),
        (9.0, (1.9, 2.4), 2.3, 1e-10, "rdp", True),
        (2.0, (0.0, math.inf), 2.3, 1e-10, "rdp", True),
        (2.0, (1.9, 2.1), 2.3, 1e-13, "rdp", True),
        (2.0, (0.0, math.inf), 2.3, 1e-6, "pld", True),
        (2.5, (0.0, math.inf), 2.3, 1e-6, "rdp", True),
        (math.inf, (0.0, math.inf), 2.3, 1e-6, "rdp", True),
        (math.inf, (1.9, 2.1), 2.3, 1e-6, "prv", True),
    ],
)
def test_the_reported_row(
    pld_upper: float,
    prv_range: tuple[float, float],
    rdp_upper: float,
    delta: float,
    method: str,
    flagged: bool,
) -> None:
    """E4: PLD if the others bear it out; otherwise a bound that is sound, and a flag."""
    chosen, flags = decide(*rows(pld_upper, prv_range, rdp_upper), delta)
    assert chosen.method == method
    assert bool(flags) is flagged
    assert chosen.upper >= prv_range[0]


def test_a_contradiction_gives_no_number() -> None:
    """E4: fail closed."""
    with pytest.raises(AccountantsDisagree, match="lower bound is above"):
        decide(*rows(2.0, (2.5, 2.6), 2.3), 1e-6)
    assert AccountantsDisagree.exit_code == 3


def test_a_certificate_lists_every_accountant_and_survives_json() -> None:
    """F5: the statement's number can be recomputed from what the certificate says."""
    mechanism = PoissonGaussian(0.01, 0.8, 100)
    found = certify(mechanism, EXAMPLE, 1e-6)
    assert [row.method for row in found.rows] == ["pld", "prv", "rdp"]
    assert found.bound.upper >= found.rows[0].upper
    assert found.bound.lower == found.rows[1].lower > 0
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert Bound.from_dict(stored["bound"]) == found.bound
    assert {"dp-accounting", "prv-accountant"} <= set(found.bound.versions)
    assert certify(mechanism, EXAMPLE, 1e-6) == found


def test_a_full_batch_is_certified_in_closed_form() -> None:
    """E4: never an FFT at q = 1, where the closed form is exact."""
    found = certify(Gaussian(2.0, 10), EXAMPLE, 1e-6)
    assert found.bound.method == "analytic"
    assert found.bound.lower <= found.rows[1].upper
    assert found.rows[2].upper == math.inf
    assert "not run" in found.rows[2].flags[0]
    assert certify(PoissonGaussian(1.0, 2.0, 10), EXAMPLE, 1e-6).bound == found.bound


@pytest.mark.parametrize("mechanism", [Gaussian(0.0, 2), PoissonGaussian(0.1, 0.0, 2)])
def test_no_noise_is_certified_infinite(mechanism: Mechanism) -> None:
    """F4."""
    found = certify(mechanism, EXAMPLE, 1e-6)
    assert found.bound.lower == math.inf
    assert found.to_dict()["bound"]["upper"] == "inf"


@pytest.mark.parametrize("mechanism", [Gaussian(1.0, 0), PoissonGaussian(0.1, 1.0, 0)])
def test_no_steps_are_certified_free(mechanism: Mechanism) -> None:
    assert certify(mechanism, EXAMPLE, 1e-6).bound.upper == 0


def test_what_prv_does_not_know_is_checked_by_another_implementation() -> None:
    """E6: replace-one, truncation, user level: two pessimistic bounds side by side, and no lower bound claimed."""
    replaced, zero_out = Unit("example", "replace", 10**4), Unit("example", "zero_out", 10**4)
    for mechanism, unit in (
        (PoissonGaussian(0.01, 0.8, 100), replaced),
        (TruncatedPoissonGaussian(10**4, 0.01, 130, 0.8, 100), zero_out),
        (UserELS(0.01, 2.0, 100, 4), EXAMPLE),
    ):
        found = certify(mechanism, unit, 1e-6)
        assert [row.method for row in found.rows] == ["pld", "dp-accounting", "rdp"]
        assert found.bound.flags == ("two upper bounds agree, no lower bound",)
        assert found.bound.lower == 0
        assert found.rows[0].upper == pytest.approx(found.rows[1].upper, rel=1e-3)
        assert math.isinf(found.rows[2].upper)
    with pytest.raises(Unsupported):
        certify(PoissonGaussian(0.01, 0.8, 100), replaced, 1e-10)


def test_two_implementations_that_disagree_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """E4: the larger is published, with the reason."""
    honest = pld.epsilon

    def forgetful(composition: accountants.Composition, delta: float, rtol: float = 1e-3) -> Bound:
        parts = tuple(replace(part, steps=part.steps // 2) for part in composition.parts)
        return honest(replace(composition, parts=parts), delta, rtol)

    mechanism = UserELS(0.01, 2.0, 100, 4)
    truth = epsilon(mechanism, EXAMPLE, 1e-6).upper
    monkeypatch.setattr(pld, "epsilon", forgetful)
    found = certify(mechanism, EXAMPLE, 1e-6).bound
    assert found.method == "dp-accounting"
    assert "disagree" in found.flags[0]
    assert found.upper >= truth * (1 - 1e-3)


def test_a_selection_is_checked_against_its_renyi_bound_and_a_stated_guarantee_is_trusted() -> None:
    selected = certify(Select(PoissonGaussian(0.01, 0.8, 100), 5.0), EXAMPLE, 1e-6)
    assert selected.bound.flags == ("checked against rdp only",)
    assert selected.bound.upper == pytest.approx(min(row.upper for row in selected.rows), rel=1e-8)
    stated = certify(EpsDelta(1.5, 1e-7), EXAMPLE, 1e-6)
    assert (stated.bound.upper, stated.bound.method) == (1.5, "stated")
    assert "on trust" in stated.bound.flags[0]


def test_a_pld_that_is_only_too_coarse_is_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    """E4: PLD can exceed PRV's upper bound by its grid alone; a finer one settles it without a flag."""
    honest = pld.epsilon

    def coarse(composition: accountants.Composition, delta: float, rtol: float = 1e-3) -> Bound:
        return honest(composition, delta, 30 * rtol)

    mechanism = PoissonGaussian(0.01, 1.0, 3000)
    monkeypatch.setattr(pld, "epsilon", coarse)
    first = epsilon(mechanism, EXAMPLE, 1e-6).upper
    found = certify(mechanism, EXAMPLE, 1e-6)
    assert found.rows[0].upper < found.rows[1].upper < first
    assert found.bound.method == "pld"
    assert found.bound.flags == ()


def test_a_wrong_pld_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """E4: the cross-check is seen to fire: a PLD that forgets half of its steps is overruled and flagged."""
    honest = pld.epsilon

    def forgetful(composition: accountants.Composition, delta: float, rtol: float = 1e-3) -> Bound:
        parts = tuple(replace(part, steps=part.steps // 2) for part in composition.parts)
        return honest(replace(composition, parts=parts), delta, rtol)

    mechanism = PoissonGaussian(0.01, 0.8, 400)
    truth = epsilon(mechanism, EXAMPLE, 1e-6).upper
    monkeypatch.setattr(pld, "epsilon", forgetful)
    found = certify(mechanism, EXAMPLE, 1e-6).bound
    assert found.method == "prv"
    assert "disagree" in found.flags[0]
    assert found.upper >= truth * (1 - 1e-3)


def test_below_the_reach_of_long_double_the_analytic_bound_is_published() -> None:
    """E4."""
    found = certify(PoissonGaussian(0.01, 0.8, 50), EXAMPLE, 1e-13)
    assert found.bound.method == "rdp"
    assert found.bound.flags


def test_a_meaningless_delta_is_refused() -> None:
    """E6."""
    with pytest.raises(AccountingError, match="1/n"):
        certify(Gaussian(1.0), Unit("example", "zero_out", 100), 0.01)
