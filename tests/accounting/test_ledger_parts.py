"""Disjoint parts, adaptive budgets, and what is left for a planned run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from dpft_accounting import (
    AccountingError,
    Budget,
    BudgetExceeded,
    EpsDelta,
    Gaussian,
    Ledger,
    LedgerError,
    Mechanism,
    PoissonGaussian,
    Select,
    Unit,
    epsilon,
)
from dpft_accounting import rdp as renyi
from dpft_accounting.filter import RenyiFilter, filter_for

UNIT, BUDGET = Unit("example"), Budget(3.0, 1e-6)
RUN = PoissonGaussian(0.01, 1.0, 300)
PARTS = ("train", "validation")


def spend(ledger: Ledger, name: str, mechanism: Mechanism, parts: tuple[str, ...] | None = None) -> None:
    with ledger.run(name, mechanism, parts) as run:
        run.reserve(mechanism.planned)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_disjoint_parts_cost_the_worst_of_them(path: Path) -> None:
    """E5: a unit is in one part only; what touches all counts in each."""
    small, large = Gaussian(9.0), Gaussian(5.0)
    with Ledger.open(path, "d", UNIT, BUDGET, parts=PARTS) as ledger:
        spend(ledger, "a", large, ("train",))
        assert ledger.spent(1e-6).upper == epsilon(large, UNIT, 1e-6).upper
        spend(ledger, "b", small, ("validation",))
        assert ledger.spent(1e-6).upper == epsilon(large, UNIT, 1e-6).upper
        spend(ledger, "c", small)
        both = Gaussian(1 / math.hypot(1 / 9, 1 / 5))
        assert ledger.spent(1e-6).upper == pytest.approx(epsilon(both, UNIT, 1e-6).upper, rel=1e-9)
        assert ledger.spent(1e-6, "validation").upper == pytest.approx(
            epsilon(Gaussian(9.0, 2), UNIT, 1e-6).upper, rel=1e-9
        )
        spend(ledger, "d", small, ("validation", "train"))
        assert ledger.runs()["d"].parts == PARTS
    read = Ledger.read(path)
    assert read.parts == PARTS
    assert [run.parts for run in read.runs().values()] == [("train",), ("validation",), ("all",), PARTS]


def test_under_replace_a_unit_may_leave_one_part_for_another(path: Path) -> None:
    """E6: the old unit in train, the new one in validation. Gaussians, so that the truth is a sum of squares."""
    unit = Unit("example", "replace", 10**5)
    with Ledger.open(path, "d", unit, None, parts=("a", "b", "c")) as ledger:
        spend(ledger, "in a", Gaussian(5.0), ("a",))
        spend(ledger, "in b", Gaussian(4.0), ("b",))
        # Replacing within b costs (2/4)²; crossing costs (1/5)² + (1/4)², which is less.
        assert ledger.spent(1e-6).upper == pytest.approx(epsilon(Gaussian(2.0), UNIT, 1e-6).upper, rel=1e-9)
        # A run on both parts sees a replacement, whichever way the unit goes, and so does one on all.
        spend(ledger, "on both", Gaussian(3.0), ("a", "b"))
        spend(ledger, "on all", Gaussian(10.0))
        mu = math.hypot(2 / 4, 2 / 3, 2 / 10)
        assert ledger.spent(1e-6).upper == pytest.approx(epsilon(Gaussian(1 / mu), UNIT, 1e-6).upper, rel=1e-9)


def test_a_stated_guarantee_cannot_cross_parts_under_replace(path: Path) -> None:
    """E6: (ε, δ) for a replaced unit does not follow for one that leaves; on the whole data set it is fine."""
    unit = Unit("example", "replace", 10**5)
    with Ledger.open(path, "d", unit, BUDGET, parts=PARTS) as ledger:
        spend(ledger, "whole", EpsDelta(0.1, 1e-8))
        before = path.read_bytes()
        with pytest.raises(AccountingError, match="leaves one part"):
            ledger.run("a", EpsDelta(0.1, 1e-8), ("train",))
        assert path.read_bytes() == before


@pytest.mark.parametrize("parts", [("test",), (), ("train", "train"), ("all", "train"), ("",)])
def test_parts_that_nobody_declared_disjoint_are_refused(path: Path, parts: tuple[str, ...]) -> None:
    """E5: parallel composition only where it was promised in the header."""
    with Ledger.open(path, "d", UNIT, BUDGET, parts=PARTS) as ledger:
        before = path.read_bytes()
        with pytest.raises(AccountingError, match="among those"):
            ledger.run("a", RUN, parts)
        assert path.read_bytes() == before
    with pytest.raises(LedgerError, match="was made for parts"):
        Ledger.open(path, "d", UNIT, BUDGET)


def test_a_run_is_resumed_on_its_own_parts(path: Path) -> None:
    with Ledger.open(path, "d", UNIT, BUDGET, parts=PARTS) as ledger:
        ledger.run("a", RUN, ("train",)).close()
        with pytest.raises(LedgerError, match="on train"):
            ledger.run("a", RUN)
        ledger.run("a", RUN, ["train"]).close()


def test_a_forged_part_is_found(path: Path) -> None:
    """E2: a record that moves a run to another part breaks the meaning, with the chain intact."""
    with Ledger.open(path, "d", UNIT, BUDGET, parts=PARTS) as ledger, ledger.run("a", RUN, ("train",)) as run:
        run.reserve(3)
    lines = path.read_text().splitlines()
    forged = json.loads(lines[-1])
    forged["parts"] = ["validation"]
    path.write_text("\n".join([*lines[:-1], json.dumps(forged, separators=(",", ":"))]) + "\n")
    with pytest.raises(LedgerError, match=f"Line {len(lines)} "):
        Ledger.read(path)


def test_released_at_once_is_charged_at_once(path: Path) -> None:
    """A tuning run or an imported guarantee is one step; nothing of it is free before it is reserved."""
    tuned, imported = Select(PoissonGaussian(0.01, 2.0, 100), 5.0), EpsDelta(0.5, 1e-8)
    with Ledger.open(path, "d", UNIT, BUDGET) as ledger:
        for name, mechanism in (("tuned", tuned), ("imported", imported)):
            with ledger.run(name, mechanism) as run:
                before = ledger.spent(1e-6).upper
                assert run.planned == 1
                run.reserve()
                assert ledger.spent(1e-6).upper > before
        assert Ledger.read(path).runs()["tuned"].mech == tuned


def test_an_adaptive_ledger_stops_at_the_filters_limit(path: Path) -> None:
    """E5: whatever the order of runs, the sum at one order decides, and the budget holds."""
    with Ledger.open(path, "d", UNIT, BUDGET, filter="adaptive_rdp") as ledger:
        assert ledger.adaptive
        for number in range(100):
            left = ledger.remaining(RUN)
            try:
                spend(ledger, str(number), RUN)
            except BudgetExceeded:
                break
            assert left >= 300
        assert 0 < left < 300
        spend(ledger, "last", RUN.with_steps(left))
        spent = ledger.spent(BUDGET.delta)
        assert BUDGET.epsilon * 0.99 <= spent.upper <= BUDGET.epsilon
        assert spent.method == "rdp filter"
        total = epsilon(RUN.with_steps(300 * number + left), UNIT, BUDGET.delta, method="rdp").upper
        assert spent.upper >= total  # one order fixed in advance is never better than the best
        with pytest.raises(BudgetExceeded):
            ledger.run("more", RUN.with_steps(max(2, 300 // 50)))
    assert Ledger.read(path).adaptive
    with pytest.raises(LedgerError, match="filter"):
        Ledger.open(path, "d", UNIT, BUDGET)


def test_the_filter_is_a_plain_sum_of_divergences() -> None:
    """An independent computation: Gaussians have R(α) = α/(2σ²)."""
    found = filter_for(BUDGET)
    many = [Gaussian(4.0, 3), Gaussian(7.0, 2)]
    from dpft_accounting import Sequential

    expected = found.order / 2 * (3 / 16 + 2 / 49)
    assert found.divergence(Sequential(many), UNIT) == pytest.approx(expected, rel=1e-12)
    assert found.epsilon(found.limit(BUDGET), BUDGET.delta) == pytest.approx(BUDGET.epsilon, rel=1e-12)
    best = max(renyi.ORDERS, key=lambda order: RenyiFilter(float(order)).limit(BUDGET) / order)
    assert found.order == best


@pytest.mark.parametrize("budget", [None, Budget(1e-9, 1e-9)])
def test_a_filter_needs_a_budget_that_it_can_hold(path: Path, budget: Budget | None) -> None:
    with pytest.raises(AccountingError, match="budget"):
        Ledger.open(path, "d", UNIT, budget, filter="adaptive_rdp")
    assert not path.exists()
    with pytest.raises(AccountingError, match="planned or adaptive_rdp"):
        Ledger.open(path, "d", UNIT, BUDGET, filter="anything")  # type: ignore[arg-type]


def test_mechanisms_without_a_renyi_bound_are_refused_by_a_filter(path: Path) -> None:
    with Ledger.open(path, "d", UNIT, BUDGET, filter="adaptive_rdp") as ledger:
        before = path.read_bytes()
        with pytest.raises(AccountingError, match="use pld"):
            ledger.run("a", EpsDelta(0.1, 1e-8))
        assert path.read_bytes() == before


@pytest.mark.parametrize("rule", ["planned", "adaptive_rdp"])
def test_the_room_for_a_planned_run_is_exactly_what_is_admitted(path: Path, rule: str) -> None:
    """E5: with the noise that room() names the run fits, with two percent less it does not."""
    with Ledger.open(path, "d", UNIT, BUDGET, filter=rule, parts=PARTS) as ledger:  # type: ignore[arg-type]
        spend(ledger, "a", RUN)
        room = ledger.room(0.02, 500, ("train",))
        assert room is not None
        ledger.check(PoissonGaussian(0.02, room.sigma, 500), ("train",))
        with pytest.raises(BudgetExceeded):
            ledger.check(PoissonGaussian(0.02, 0.98 * room.sigma, 500), ("train",))
        assert 0 < room.epsilon.upper < BUDGET.epsilon
        spend(ledger, "b", PoissonGaussian(0.02, room.sigma, 500), ("train",))
        again = ledger.room(0.02, 500, ("train",))
        assert again is None or again.epsilon.upper < 0.05 * room.epsilon.upper
        assert ledger.room(0.02, 500, ("validation",)) is not None


def test_a_report_adds_up(path: Path) -> None:
    with Ledger.open(path, "d", UNIT, BUDGET, parts=PARTS) as ledger:
        spend(ledger, "a", RUN, ("train",))
        spend(ledger, "b", Gaussian(20.0, 4))
        report = ledger.report()
        assert ledger.verify().runs == 2
    assert report.spent == Ledger.read(path).spent(1e-6)
    assert [row.epsilon for row in report.runs] == [epsilon(RUN, UNIT, 1e-6), epsilon(Gaussian(20.0, 4), UNIT, 1e-6)]
    assert report.by_part["train"].upper > report.by_part["validation"].upper
    assert json.loads(json.dumps(report.to_dict()))["runs"]["a"]["parts"] == ["train"]
    with Ledger.open(path.with_name("other"), "d", UNIT) as bare, pytest.raises(LedgerError, match="Give delta"):
        bare.report()


def test_confirming_earlier_steps_changes_no_charge(path: Path) -> None:
    with Ledger.open(path, "d", UNIT, BUDGET) as ledger:
        spend(ledger, "a", RUN)
    with Ledger.reopen(path) as ledger, ledger.run("a", RUN) as run:
        before = ledger.spent(1e-6)
        run.confirm(100)
        with pytest.raises(LedgerError, match="uncommitted"):
            run.confirm(201)
        run.confirm(200)
        assert ledger.spent(1e-6) == before
    assert Ledger.read(path).runs()["a"].committed == 300


def test_a_ledger_of_the_first_format_goes_on(path: Path) -> None:
    """Its header had neither parts nor a filter."""
    header = {
        "seq": 0, "prev_sha256": "0" * 64, "kind": "header", "schema": "dpft-ledger/1", "dataset": "d",
        "unit": UNIT.to_dict(), "budget": BUDGET.to_dict(), "versions": {"dpft-accounting": "0.1.0"},
    }  # fmt: skip
    path.write_text(json.dumps(header, separators=(",", ":")) + "\n")
    with Ledger.open(path, "d", UNIT, BUDGET) as ledger:
        spend(ledger, "a", RUN)
    assert Ledger.read(path).runs()["a"].reserved == 300
    path.write_text(json.dumps({**header, "parts": []}, separators=(",", ":")) + "\n")
    with pytest.raises(LedgerError, match="keys"):
        Ledger.read(path)
