"""The ledger as the trainer uses it: nothing runs uncharged, nothing passes the plan or the budget."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import pytest
from dpft_accounting import (
    AccountingError,
    Budget,
    BudgetExceeded,
    Gaussian,
    Ledger,
    LedgerError,
    Mechanism,
    PoissonGaussian,
    Unit,
    epsilon,
    verify,
)

UNIT = Unit("example")
BUDGET = Budget(2.0, 1e-6)
RUN = PoissonGaussian(0.01, 1.0, 200)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def open_ledger(path: Path, budget: Budget | None = BUDGET) -> Ledger:
    return Ledger.open(path, "sha256:1234", UNIT, budget)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_reservation_is_on_disk_before_reserve_returns(path: Path) -> None:
    """E2: charged, on disk, before the noise is drawn; what happens afterwards cannot take it back."""
    with open_ledger(path) as ledger:
        run = ledger.run("a", RUN)
        run.reserve(3)
        assert Ledger.read(path).runs()["a"].reserved == 3
        run.step()
        assert lines(path)[-1]["kind"] == "reserve"  # steps are counted in memory
        run.commit()
        assert Ledger.read(path).runs()["a"].committed == 1
        run.close()
    assert (run.planned, run.charged, run.remaining) == (200, 3, 197)


def test_appending_syncs_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E2: fsync on every append, and on the folder when the file is made."""
    synced: list[str] = []
    real = os.fsync

    def spy(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", spy)
    with open_ledger(path) as ledger:
        assert path.parent.name in synced
        run = ledger.run("a", RUN)
        before = synced.count(path.name)
        run.reserve()
        run.reserve()
        assert synced.count(path.name) == before + 2


def test_resuming_continues_the_count(path: Path) -> None:
    """E2: k steps, resume, k steps are 2k steps."""
    for session in range(2):
        with open_ledger(path) as ledger, ledger.run("a", RUN) as run:
            assert run.charged == 10 * session
            for _ in range(10):
                run.reserve()
                run.step()
    record = Ledger.read(path).runs()["a"]
    assert (record.reserved, record.committed) == (20, 20)
    assert Ledger.read(path).spent(1e-6) == epsilon(RUN.with_steps(20), UNIT, 1e-6)


def test_an_uncommitted_reservation_stays_charged(path: Path) -> None:
    """E2: steps replayed after a crash are charged again."""
    ledger = open_ledger(path)
    ledger.run("a", RUN).reserve(5)
    os.close(ledger._book._writer._fd)  # type: ignore[union-attr] # the process dies: no commit, lock released
    with open_ledger(path) as again, again.run("a", RUN) as run:
        assert run.charged == 5
        run.reserve(5)
        assert run.charged == 10


@pytest.mark.parametrize(
    "other",
    [
        PoissonGaussian(0.02, 1.0, 200),
        PoissonGaussian(0.01, 1.1, 200),
        PoissonGaussian(0.01, 1.0, 201),
        Gaussian(1.0, 200),
    ],
)
def test_resuming_with_another_mechanism_is_refused(path: Path, other: Mechanism) -> None:
    """E2: changed q, σ or plan."""
    with open_ledger(path, None) as ledger:
        ledger.run("a", RUN).close()
        before = path.read_bytes()
        with pytest.raises(LedgerError, match="opened with"):
            ledger.run("a", other)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("dataset", "unit", "budget"),
    [
        ("sha256:other", UNIT, BUDGET),
        ("sha256:1234", Unit("user"), BUDGET),
        ("sha256:1234", Unit("example", "zero_out", 1000), BUDGET),
        ("sha256:1234", UNIT, Budget(3.0, 1e-6)),
        ("sha256:1234", UNIT, None),
    ],
)
def test_another_header_is_refused(path: Path, dataset: str, unit: Unit, budget: Budget | None) -> None:
    """E2: changed data fingerprint, unit or budget."""
    open_ledger(path).close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="was made for"):
        Ledger.open(path, dataset, unit, budget)
    assert path.read_bytes() == before


def test_the_plan_is_a_wall(path: Path) -> None:
    """E5: step T + 1 raises and changes nothing, in this session and the next."""
    with open_ledger(path) as ledger:
        run = ledger.run("a", RUN)
        run.reserve(199)
        before = path.read_bytes()
        with pytest.raises(BudgetExceeded, match="1 of 200"):
            run.reserve(2)
        assert path.read_bytes() == before
        run.reserve()
        with pytest.raises(BudgetExceeded):
            run.reserve()
    with open_ledger(path) as ledger, pytest.raises(BudgetExceeded):
        ledger.run("a", RUN).reserve()
    assert BudgetExceeded.exit_code == 3


def test_the_budget_is_a_wall_over_all_runs(path: Path) -> None:
    """E5: restarts and seeds compose; a run that would pass the budget is refused, with nothing written."""
    with open_ledger(path) as ledger:
        for number in range(100):
            before = path.read_bytes()
            try:
                run = ledger.run(f"seed {number}", RUN)
            except BudgetExceeded:
                break
            run.reserve(RUN.steps)
            run.close()
        assert number > 1
        assert path.read_bytes() == before
        assert ledger.spent(BUDGET.delta).upper <= BUDGET.epsilon
        everything = [RUN] * (number + 1)
        assert epsilon(RUN.with_steps(RUN.steps * len(everything)), UNIT, 1e-6).upper > BUDGET.epsilon


def test_the_plans_of_open_runs_count_against_the_budget(path: Path) -> None:
    """E5: two runs side by side cannot both be promised the same budget."""
    with open_ledger(path) as ledger:
        long = RUN.with_steps(ledger.remaining(RUN))
        first = ledger.run("a", long)
        with pytest.raises(BudgetExceeded):
            ledger.run("b", long)
        first.close()  # nothing was reserved
        ledger.run("b", long).close()


def test_what_remains_can_be_planned(path: Path) -> None:
    """E5: remaining() and run() agree."""
    with open_ledger(path) as ledger:
        with ledger.run("a", RUN) as run:
            run.reserve(150)
        left = ledger.remaining(RUN)
        with ledger.run("b", RUN.with_steps(left)) as run:
            run.reserve(left)
        assert BUDGET.epsilon * (1 - 2e-3) <= ledger.spent(BUDGET.delta).upper <= BUDGET.epsilon
        with pytest.raises(BudgetExceeded):
            ledger.run("c", RUN)


def test_remaining_needs_a_budget(path: Path) -> None:
    with open_ledger(path, None) as ledger, pytest.raises(LedgerError, match="no budget"):
        ledger.remaining(RUN)


def test_spending_never_falls_as_records_are_added(path: Path) -> None:
    """E4, E5: and is exact for equal runs, closed for full batches, composed for mixtures."""
    runs: list[Mechanism] = [RUN, Gaussian(30.0, 4), RUN, PoissonGaussian(0.05, 3.0, 20), Gaussian(60.0, 1)]
    with open_ledger(path, None) as ledger:
        assert ledger.spent(1e-6).upper == 0
        spent = 0.0
        for number, mechanism in enumerate(runs):
            with ledger.run(str(number), mechanism) as run:
                for k in (1, mechanism.steps - 1):
                    if k:
                        run.reserve(k)
                    now = ledger.spent(1e-6).upper
                    assert now >= spent * (1 - 1e-3)
                    spent = now
        merged = ledger.spent(1e-6)
    assert merged.method == "pld"
    assert merged.upper >= epsilon(RUN.with_steps(400), UNIT, 1e-6).upper


def test_full_batch_runs_add_up_in_closed_form(path: Path) -> None:
    with open_ledger(path, None) as ledger:
        for name, mechanism in {"a": Gaussian(3.0, 9), "b": Gaussian(4.0, 16)}.items():
            with ledger.run(name, mechanism) as run:
                run.reserve(mechanism.steps)
        found = ledger.spent(1e-6)
    assert found.method == "analytic"
    assert found.upper == pytest.approx(epsilon(Gaussian(1.0, 2), UNIT, 1e-6).upper, rel=1e-9)


def test_a_run_without_noise_spends_everything(path: Path) -> None:
    """F4: a non-private run is infinite, and no budget admits it."""
    with open_ledger(path, None) as ledger, ledger.run("a", PoissonGaussian(0.1, 0.0, 3)) as run:
        run.reserve()
        assert ledger.spent(1e-6).upper == math.inf
    with open_ledger(path.with_name("other"), BUDGET) as ledger, pytest.raises(BudgetExceeded, match="inf"):
        ledger.run("a", PoissonGaussian(0.1, 0.0, 3))


def test_a_step_must_have_been_reserved(path: Path) -> None:
    """E2: noise before the reservation is a fault of the trainer, and is said."""
    with open_ledger(path) as ledger, ledger.run("a", RUN) as run:
        with pytest.raises(LedgerError, match="reserved"):
            run.step()
        run.reserve()
        run.step()
        with pytest.raises(LedgerError, match="reserved"):
            run.step()


def test_an_exception_leaves_an_abort_record_and_all_charges(path: Path) -> None:
    """E2, G4."""

    def train(ledger: Ledger) -> None:
        with ledger.run("a", RUN) as run:
            run.reserve(10)
            run.step()
            raise KeyboardInterrupt

    with open_ledger(path) as ledger, pytest.raises(KeyboardInterrupt):
        train(ledger)
    assert [line["kind"] for line in lines(path)] == ["header", "open", "reserve", "commit", "abort"]
    assert lines(path)[-1]["steps"] == 9
    assert Ledger.read(path).runs()["a"].reserved == 10


def test_closing_the_ledger_commits_its_runs(path: Path) -> None:
    ledger = open_ledger(path)
    run = ledger.run("a", RUN)
    run.reserve(2)
    run.step()
    ledger.close()
    ledger.close()
    run.close()
    assert Ledger.read(path).runs()["a"].committed == 1
    for action in (run.reserve, run.step, run.commit, lambda: ledger.run("b", RUN)):
        with pytest.raises(LedgerError, match=r"closed|not open"):
            action()


def test_a_run_is_open_once(path: Path) -> None:
    with open_ledger(path) as ledger:
        run = ledger.run("a", RUN)
        with pytest.raises(LedgerError, match="already open"):
            ledger.run("a", RUN)
        run.close()
        assert ledger.run("a", RUN).name == "a"


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "2"])
def test_a_meaningless_reservation_is_refused(path: Path, k: int) -> None:
    """F4."""
    with open_ledger(path) as ledger, ledger.run("a", RUN) as run:
        with pytest.raises(AccountingError, match="k"):
            run.reserve(k)
        assert run.charged == 0


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, None, "\ud800"])
def test_a_meaningless_name_is_refused(path: Path, name: str) -> None:
    """I4: names are printable and short."""
    with open_ledger(path) as ledger, pytest.raises(AccountingError, match="name"):
        ledger.run(name, RUN)
    with pytest.raises(AccountingError, match="dataset_id"):
        Ledger.open(path, name, UNIT)


def test_reading_changes_nothing_and_needs_no_lock(path: Path) -> None:
    """E4: reads that mutate have made ε depend on how often it was printed."""
    with open_ledger(path) as ledger:
        run = ledger.run("a", RUN)
        run.reserve(7)
        before = path.read_bytes(), path.stat().st_mtime_ns
        reader = Ledger.read(path)
        assert reader.spent(1e-6) == reader.spent(1e-6) == ledger.spent(1e-6)
        assert reader.remaining(RUN) == reader.remaining(RUN) > 0
        assert (reader.dataset_id, reader.unit, reader.budget) == ("sha256:1234", UNIT, BUDGET)
        assert dict(reader.runs()) == dict(ledger.runs())
        with pytest.raises(LedgerError, match=r"Ledger\.open"):
            reader.run("b", RUN)
        with pytest.raises(TypeError):
            reader.runs()["a"] = reader.runs()["a"]  # type: ignore[index]
        reader.close()
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_verify_sums_up(path: Path) -> None:
    with open_ledger(path) as ledger, ledger.run("a", RUN) as run:
        run.reserve(4)
        run.step()
    found = verify(path)
    assert (found.records, found.runs, found.reserved, found.committed, found.torn_bytes) == (4, 1, 4, 1, 0)
    assert found.head_sha256 == hashlib.sha256(path.read_bytes().splitlines()[-1]).hexdigest()
    assert found.to_dict()["reserved"] == 4
    assert "4 steps reserved, 1 executed" in str(found)


def test_the_file_says_no_more_than_it_should(path: Path) -> None:
    """F2: a time of day for each step would publish how large its batch was."""
    with open_ledger(path) as ledger, ledger.run("a", RUN) as run:
        run.reserve()
    for record in lines(path)[1:]:
        assert set(record) == {"seq", "prev_sha256", "run", "kind", "mech", "steps", "parts", "t"}
        assert len(str(record["t"])) == len("2026-01-31")


def test_the_spent_delta_must_make_sense(path: Path) -> None:
    """E6."""
    unit = Unit("example", "zero_out", 1000)
    with Ledger.open(path, "d", unit) as ledger, pytest.raises(AccountingError, match="1/n"):
        ledger.spent(1e-3)
    with pytest.raises(AccountingError, match="1/n"):
        Ledger.open(path.with_name("other"), "d", unit, Budget(1.0, 0.01))
    assert not path.with_name("other").exists()
