"""Reference values of ε, from several accountants at fine grids; golden.json names the sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import Gaussian, Mechanism, PoissonGaussian, Unit, certify, epsilon

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden.json").read_text())
EXAMPLE = Unit("example")


def mechanism_of(row: dict[str, Any]) -> Mechanism:
    """The mechanism that a row is about."""
    if row["sampler"] == "full_batch":
        return Gaussian(row["sigma"], row["steps"])
    return PoissonGaussian(row["q"], row["sigma"], row["steps"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['q']}-{row['sigma']}-{row['steps']}")
def test_epsilon_is_the_reference_value(row: dict[str, Any]) -> None:
    """E4: within the tolerance, and never below the lower bound."""
    found = epsilon(mechanism_of(row), EXAMPLE, row["delta"])
    assert abs(found.upper - row["epsilon"]) <= row["tolerance"]
    assert found.upper >= row["lower"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['q']}-{row['sigma']}-{row['steps']}")
def test_rdp_is_above_the_reference_value(row: dict[str, Any]) -> None:
    """E4: an analytic bound lies above the truth."""
    assert epsilon(mechanism_of(row), EXAMPLE, row["delta"], method="rdp").upper >= row["lower"]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["steps"] <= 2000], ids=lambda row: f"{row['q']}-{row['sigma']}"
)
def test_certificates_bracket_the_reference_value(row: dict[str, Any]) -> None:
    """E4: two independent accountants agree, without flags."""
    bound = certify(mechanism_of(row), EXAMPLE, row["delta"]).bound
    assert bound.lower - 1e-5 <= row["epsilon"] <= bound.upper + 1e-5  # the file has six digits
    assert abs(bound.upper - row["epsilon"]) <= row["tolerance"]
    assert bound.flags == ()
