"""What the records of a ledger mean: the header, and the runs with what was planned, reserved and committed.

Every record is checked against those before it, so that a file that parses is also one that the writer can
have made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

from ._check import exact_keys, integer, text
from .budget import Budget
from .chain import Record
from .errors import AccountingError, LedgerError
from .mechanisms import Mechanism, mechanism_from_dict
from .units import Unit
from .versions import __version__, versions

SCHEMA = "dpft-ledger/1"
WHOLE = ["all"]  # the part of the data set that a run touches

_CHAIN_KEYS = {"seq", "prev_sha256"}
_HEADER_KEYS = _CHAIN_KEYS | {"kind", "schema", "dataset", "unit", "budget", "versions"}
_RECORD_KEYS = _CHAIN_KEYS | {"run", "kind", "mech", "steps", "parts", "t"}


@dataclass(frozen=True)
class Header:
    """What all runs of a ledger share. ``dataset`` is a fingerprint chosen by the caller, never data."""

    dataset: str
    unit: Unit
    budget: Budget | None

    def to_fields(self) -> Record:
        """The header's record, without the chain."""
        return {
            "kind": "header",
            "schema": SCHEMA,
            "dataset": self.dataset,
            "unit": self.unit.to_dict(),
            "budget": self.budget and self.budget.to_dict(),
            "versions": {"dpft-accounting": __version__, **versions("dp-accounting", "prv-accountant")},
        }


@dataclass(frozen=True)
class RunRecord:
    """One run: ``mech`` at its planned steps, steps ``reserved`` in all sessions, steps known to be executed.

    ``reserved`` is what the run is charged: committed steps were reserved before, and a reservation that a
    crash left uncommitted may have been executed.
    """

    mech: Mechanism
    reserved: int = 0
    committed: int = 0


def event(kind: str, run: str | None, *, mech: Mechanism | None = None, steps: int = 0, note: str = "") -> Record:
    """A record without the chain.

    ``t`` is the UTC date and nothing finer: a step takes as long as its batch is large, so the time of each
    step would publish the batch sizes, which must stay secret.
    """
    fields: dict[str, Any] = {
        "run": run,
        "kind": kind,
        "mech": mech and mech.to_dict(),
        "steps": steps,
        "parts": WHOLE if run is not None else [],
        "t": datetime.now(UTC).date().isoformat(),
    }
    return {**fields, "text": note} if kind == "note" else fields


def replay(records: Iterable[Record]) -> tuple[Header, dict[str, RunRecord]]:
    """Header and runs of a chain. Errors: LedgerError naming the line."""
    header: Header | None = None
    runs: dict[str, RunRecord] = {}
    for number, record in enumerate(records, start=1):
        try:
            if header is None:
                header = _header(record)
            else:
                apply(runs, record)
        except AccountingError as problem:
            raise LedgerError(f"Line {number} of the ledger makes no sense: {problem}") from problem
    if header is None:
        raise LedgerError("The ledger is empty: expected a header in its first line.")
    return header, runs


def apply(runs: dict[str, RunRecord], record: Record) -> None:
    """Change ``runs`` by one record. Errors: AccountingError if the record cannot follow what went before."""
    kind = record.get("kind")
    exact_keys("record", record, _RECORD_KEYS | {"text"} if kind == "note" else _RECORD_KEYS)
    _check_date(record["t"])
    steps = integer("steps", record["steps"], minimum=0)
    if kind == "note":
        _expect(record["run"] is None and record["mech"] is None and record["parts"] == [], "an empty note")
        text("text", record["text"])
        return
    name = text("run", record["run"])
    _expect(record["parts"] == WHOLE, f"parts {WHOLE}")
    if kind == "open":
        mech = mechanism_from_dict(record["mech"])
        _expect(name not in runs and steps == mech.planned, f"a new run of {mech.planned} steps")
        runs[name] = RunRecord(mech)
        return
    _expect(name in runs and record["mech"] is None, "a run that was opened, and no mechanism")
    runs[name] = _advanced(runs[name], kind, steps)


def _advanced(run: RunRecord, kind: object, steps: int) -> RunRecord:
    if kind == "reserve":
        _expect(1 <= steps <= run.mech.planned - run.reserved, "a reservation within the plan")
        return replace(run, reserved=run.reserved + steps)
    if kind == "commit":
        _expect(1 <= steps <= run.reserved - run.committed, "a commit of reserved steps")
        return replace(run, committed=run.committed + steps)
    if kind == "abort":  # states how many reserved steps were not executed; they stay charged
        _expect(steps <= run.reserved - run.committed, "an abort of reserved steps")
        return run
    raise AccountingError(f"Expected kind open, reserve, commit, abort or note, found {kind!r:.60}.")


def _header(record: Record) -> Header:
    exact_keys("header", record, _HEADER_KEYS)
    _expect(record["kind"] == "header" and record["schema"] == SCHEMA, f"a header of schema {SCHEMA}")
    used: Mapping[str, Any] = record["versions"]
    _expect(isinstance(used, dict) and all(isinstance(v, str) for v in used.values()), "versions as text")
    budget = record["budget"]
    return Header(
        text("dataset", record["dataset"]),
        Unit.from_dict(record["unit"]),
        None if budget is None else Budget.from_dict(budget),
    )


def _check_date(value: object) -> None:
    try:
        if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
            raise ValueError
        date.fromisoformat(value)
    except ValueError:
        raise AccountingError(f"Expected t to be a date such as 2026-01-31, found {value!r:.60}.") from None


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise AccountingError(f"Expected {what}.")
