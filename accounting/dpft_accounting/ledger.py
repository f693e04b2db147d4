"""The books: what was planned, charged and executed on one data set, and the ε that it adds up to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal

from . import chain
from ._check import text
from .book import Book
from .bound import Bound
from .budget import Budget
from .errors import AccountingError, BudgetExceeded, LedgerError
from .filter import RenyiFilter, filter_for
from .ledger_report import LedgerReport, ledger_report
from .ledger_run import LedgerRun
from .mechanisms import Mechanism
from .replay import Header, RunRecord, event, replay
from .spending import WHOLE, Entry, Room, Rules
from .units import Unit, check_delta
from .verify import Verification, verify


class Ledger:
    """Append-only record of every private step on one data set; ``open`` to write, ``read`` to look.

    The wall: a run is opened only if its planned steps fit the budget together with all other runs (those open in
    this session at their plan, others at what they reserved), and can reserve no more than it planned. So a
    reservation costs one comparison, and the budget holds at every step.

    Runs on the same part compose sequentially, on disjoint parts in parallel; mechanisms are composed, never
    epsilons added. In a planned ledger (the default) mechanisms must be fixed in advance or follow from public
    values, and a run that is stopped early because of private results must first reserve the rest of its plan. An
    adaptive one (``filter="adaptive_rdp"``) allows both, at a price; see ``filter.py``.
    """

    def __init__(self, book: Book, path: Path) -> None:
        self._book = book
        self._path = path
        self._sessions: dict[str, LedgerRun] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        dataset_id: str,
        unit: Unit,
        budget: Budget | None = None,
        *,
        filter: Literal["planned", "adaptive_rdp"] = "planned",
        parts: Iterable[str] = (),
    ) -> Ledger:
        """Create the ledger, or reopen it: everything must then be as its header says.

        ``parts`` names disjoint parts of the data set; which of them a unit is in may depend on that unit alone.
        Holds the lock until ``close``. Errors: LedgerError if another process has it, if the file is broken,
        belongs to something else or cannot be written; AccountingError for a meaningless δ, part or filter.
        """
        if budget is not None:
            check_delta(budget.delta, unit)
        header = Header(dataset_id, unit, budget, tuple(parts), _filter(filter, budget))
        return cls._opened(path, header)

    @classmethod
    def reopen(cls, path: str | os.PathLike[str]) -> Ledger:
        """An existing ledger, to write to, whatever its header says. Errors as for ``open``."""
        header, _ = replay(chain.read(Path(path)).records)
        return cls._opened(path, header)

    @classmethod
    def _opened(cls, path: str | os.PathLike[str], header: Header) -> Ledger:
        writer, content = chain.Writer.open(Path(path))
        try:
            found, runs = replay(content.records or [writer.append(header.to_fields())])
            _check_same(header, found)
            if content.torn:
                writer.append(event("note", None, note=f"cut an incomplete last line of {content.torn} bytes"))
        except BaseException:
            writer.close()
            raise
        return cls(Book(header, runs, writer), Path(path))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ledger:
        """The ledger as it is now, without the lock: to show and add up, not to write. Raises LedgerError."""
        header, runs = replay(chain.read(Path(path)).records)
        return cls(Book(header, runs, None), Path(path))

    @property
    def dataset_id(self) -> str:
        """Fingerprint of the data set."""
        return self._book.header.dataset

    @property
    def unit(self) -> Unit:
        """The unit of privacy of every run."""
        return self._book.header.unit

    @property
    def budget(self) -> Budget | None:
        """The most that may be spent; None for no limit but the plans."""
        return self._book.header.budget

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the disjoint parts; empty if there is only the whole."""
        return self._book.header.parts

    @property
    def adaptive(self) -> bool:
        """Whether runs may be chosen, and stopped, by what earlier ones released."""
        return self._book.header.filter is not None

    def runs(self) -> Mapping[str, RunRecord]:
        """All runs by name, in the order in which they were opened."""
        return MappingProxyType(dict(self._book.runs))

    def run(self, name: str, mech: Mechanism, parts: Iterable[str] | None = None) -> LedgerRun:
        """Open a run on ``parts`` (None: the whole data set), or resume the one of this name, unchanged.

        Errors, with nothing written: BudgetExceeded if the plan does not fit the budget, LedgerError if the
        name has another mechanism or other parts or is in use, or the ledger is not open for writing,
        AccountingError for parts that the ledger does not know.
        """
        text("name", name)
        where = self._book.header.checked_parts(parts)
        if not self._book.writable:
            raise LedgerError("This ledger is not open for writing. Use Ledger.open.")
        known = self._book.runs.get(name)
        if known is not None and known.whole != (mech, where):
            raise LedgerError(
                f"Run {name!r} was opened with {known.mech} on {', '.join(known.parts)}, found {mech} on "
                f"{', '.join(where)}. Resume it unchanged, or choose another name."
            )
        if self._is_open(name):
            raise LedgerError(f"Run {name!r} is already open. Close it first.")
        self.check(mech, where, instead_of=name)
        if known is None:
            self._book.append("open", name, mech=mech, steps=mech.planned, parts=where)
        self._sessions[name] = LedgerRun(self._book, name)
        return self._sessions[name]

    def check(self, mech: Mechanism, parts: Iterable[str] | None = None, *, instead_of: str | None = None) -> None:
        """BudgetExceeded if a run of ``mech`` would not fit the budget now. Writes nothing.

        ``instead_of``: the run of that name does not count, since it is the one that would be resumed.
        """
        where = self._book.header.checked_parts(parts)
        load = [*self._load(without=instead_of), (mech, where)]
        if self.budget is not None and not self._rules.admits(load):
            total = self._rules.spent(load, self.budget.delta)
            raise BudgetExceeded(
                f"With run {instead_of!r} the total would be epsilon={total} of {self.budget.epsilon:g} "
                f"at delta={self.budget.delta:g}. Plan fewer steps or more noise; nothing was charged."
            )

    def spent(self, delta: float, part: str | None = None) -> Bound:
        """ε at ``delta`` of everything charged so far: all runs composed, each at its reserved steps.

        ``part``: of the runs that touch this part only.
        """
        runs = self._book.runs.values()
        if part is not None:
            (name,) = self._book.header.checked_parts([part])
            runs_here = [run.charged for run in runs if name in run.parts or run.parts == WHOLE]
            return replace(self._rules, parts=()).spent(runs_here, check_delta(delta, self.unit))
        return self._rules.spent([run.charged for run in runs], check_delta(delta, self.unit))

    def remaining(self, mech: Mechanism, parts: Iterable[str] | None = None) -> int:
        """How many steps of ``mech`` a new run may plan within the budget. LedgerError without one."""
        self._need_budget()
        return self._rules.steps_left(self._load(), mech, self._book.header.checked_parts(parts))

    def room(self, q: float, steps: int, parts: Iterable[str] | None = None) -> Room | None:
        """What is left for one more run of ``steps`` Poisson steps at rate ``q``; None if nothing is.

        LedgerError without a budget.
        """
        self._need_budget()
        return self._rules.room(self._load(), q, steps, self._book.header.checked_parts(parts))

    def report(self, delta: float | None = None) -> LedgerReport:
        """Everything charged, by run and part, at ``delta`` (the budget's by default)."""
        return ledger_report(self, delta)

    def verify(self) -> Verification:
        """Check the file from its first line to its last; see ``verify``. Errors: LedgerError."""
        return verify(self._path)

    def close(self) -> None:
        """Close all runs, then the file and its lock. Closing twice does nothing."""
        try:
            for run in self._sessions.values():
                run.close()
        finally:
            self._book.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_open(self, name: str) -> bool:
        return name in self._sessions and not self._sessions[name].closed

    @property
    def _rules(self) -> Rules:
        return self._book.header.rules

    def _need_budget(self) -> None:
        if self.budget is None:
            raise LedgerError("This ledger has no budget, so nothing bounds the steps. Give one when it is created.")

    def _load(self, without: str | None = None) -> list[Entry]:
        """What counts against the budget: open runs at their plan, the others at what they reserved."""
        return [
            run.whole if self._is_open(name) else run.charged
            for name, run in self._book.runs.items()
            if name != without
        ]


def _filter(name: str, budget: Budget | None) -> RenyiFilter | None:
    if name == "planned":
        return None
    if name != "adaptive_rdp":
        raise AccountingError(f"Expected filter planned or adaptive_rdp, found {name!r:.60}.")
    if budget is None:
        raise AccountingError("Expected a budget for an adaptive ledger: the filter's limit follows from it.")
    return filter_for(budget)


def _check_same(given: Header, found: Header) -> None:
    for what in ("dataset", "unit", "budget", "parts", "filter"):
        expected, here = getattr(found, what), getattr(given, what)
        if expected != here:
            raise LedgerError(
                f"The ledger was made for {what} {expected}, found {here}. "
                "Use what it was made for, or another file for other data."
            )
