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
from .filter import RenyiFilter
from .mechanisms import Mechanism, mechanism_from_dict
from .spending import WHOLE, Entry, Rules
from .units import Unit
from .versions import __version__, versions

SCHEMA = "dpft-ledger/2"
_FIRST_SCHEMA = "dpft-ledger/1"

_CHAIN_KEYS = {"seq", "prev_sha256"}
_HEADER_KEYS = _CHAIN_KEYS | {"kind", "schema", "dataset", "unit", "budget", "parts", "filter", "versions"}
_MOST_PARTS = 100
_RECORD_KEYS = _CHAIN_KEYS | {"run", "kind", "mech", "steps", "parts", "t"}


@dataclass(frozen=True)
class Header:
    """What all runs of a ledger share. ``dataset`` is a name or fingerprint chosen by the caller, never data.

    ``parts``: names of disjoint parts of the data set; which of them a unit is in follows from that unit alone.
    """

    dataset: str
    unit: Unit
    budget: Budget | None
    parts: tuple[str, ...] = ()
    filter: RenyiFilter | None = None

    def __post_init__(self) -> None:
        text("dataset_id", self.dataset)
        names = [text("part", name) for name in self.parts]
        if len(set(names)) != len(names) or WHOLE[0] in names or len(names) > _MOST_PARTS:
            raise AccountingError(f"Expected at most {_MOST_PARTS} different parts other than {WHOLE[0]!r}.")
        if self.filter is not None and self.budget is None:
            raise AccountingError("Expected a budget for an adaptive ledger: the filter's limit follows from it.")

    @property
    def rules(self) -> Rules:
        """How the entries add up."""
        return Rules(self.unit, self.budget, self.parts, self.filter)

    def checked_parts(self, parts: Iterable[str] | None) -> tuple[str, ...]:
        """``parts`` as a run has them: declared ones in declared order, or the whole. AccountingError otherwise."""
        if parts is None:
            return WHOLE
        asked = list(parts)
        unknown = [part for part in asked if part not in self.parts]
        if asked == list(WHOLE):
            return WHOLE
        if unknown or not asked or len(set(asked)) != len(asked):
            known = ", ".join(self.parts) or "none"
            raise AccountingError(
                f"Expected parts among those that the ledger was created with ({known}), found {asked!r:.60}. Only "
                "parts known to be disjoint compose in parallel; leave parts out for the whole data set."
            )
        return tuple(part for part in self.parts if part in asked)

    def to_fields(self) -> Record:
        """The header's record, without the chain."""
        return {
            "kind": "header",
            "schema": SCHEMA,
            "dataset": self.dataset,
            "unit": self.unit.to_dict(),
            "budget": self.budget and self.budget.to_dict(),
            "parts": list(self.parts),
            "filter": self.filter and self.filter.to_dict(),
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
    parts: tuple[str, ...] = WHOLE

    @property
    def charged(self) -> Entry:
        """What the run is charged, as an entry to add up."""
        return self.mech.with_steps(self.reserved), self.parts

    @property
    def whole(self) -> Entry:
        """What the run would be charged if it used up its plan."""
        return self.mech, self.parts


def event(
    kind: str,
    run: str | None,
    *,
    mech: Mechanism | None = None,
    steps: int = 0,
    parts: Iterable[str] = (),
    note: str = "",
) -> Record:
    """A record without the chain.

    ``t`` is the UTC date and nothing finer: a step takes as long as its batch is large, so the time of each
    step would publish the batch sizes, which must stay secret.
    """
    fields: dict[str, Any] = {
        "run": run,
        "kind": kind,
        "mech": mech and mech.to_dict(),
        "steps": steps,
        "parts": list(parts),
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
                apply(header, runs, record)
        except AccountingError as problem:
            raise LedgerError(f"Line {number} of the ledger makes no sense: {problem}") from problem
    if header is None:
        raise LedgerError("The ledger is empty: expected a header in its first line.")
    return header, runs


def apply(header: Header, runs: dict[str, RunRecord], record: Record) -> None:
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
    _expect(isinstance(record["parts"], list), "parts as a list")
    parts = header.checked_parts(record["parts"])
    if kind == "open":
        mech = mechanism_from_dict(record["mech"])
        _expect(name not in runs and steps == mech.planned, f"a new run of {mech.planned} steps")
        runs[name] = RunRecord(mech, parts=parts)
        return
    _expect(name in runs and record["mech"] is None, "a run that was opened, and no mechanism")
    _expect(runs[name].parts == parts, "the parts that the run was opened with")
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
    if record.get("schema") == _FIRST_SCHEMA:  # had neither parts nor a filter, and is else the same
        record = {**exact_keys("header", record, _HEADER_KEYS - {"parts", "filter"}), "parts": [], "filter": None}
    else:
        exact_keys("header", record, _HEADER_KEYS)
        _expect(record["schema"] == SCHEMA, f"a header of schema {SCHEMA}")
    _expect(record["kind"] == "header", "a header")
    used: Mapping[str, Any] = record["versions"]
    _expect(isinstance(used, dict) and all(isinstance(v, str) for v in used.values()), "versions as text")
    budget, rule, parts = record["budget"], record["filter"], record["parts"]
    _expect(isinstance(parts, list), "parts as a list")
    return Header(
        text("dataset", record["dataset"]),
        Unit.from_dict(record["unit"]),
        None if budget is None else Budget.from_dict(budget),
        tuple(parts),
        None if rule is None else RenyiFilter.from_dict(rule),
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
