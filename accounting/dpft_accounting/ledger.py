"""The books: what was planned, charged and executed on one data set, and the ε that it adds up to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

from . import chain
from ._check import text
from .accountants import epsilon_of
from .book import Book
from .bound import Bound
from .budget import Budget
from .calibrate import fits, steps_within
from .compose import compose
from .errors import BudgetExceeded, LedgerError
from .ledger_run import LedgerRun
from .mechanisms import Mechanism
from .replay import Header, RunRecord, event, replay
from .units import Unit, check_delta


class Ledger:
    """Append-only record of every private step on one data set; ``open`` to write, ``read`` to look.

    The wall: a run is opened only if its planned steps fit the budget together with all other runs (those
    open in this session at their plan, others at what they reserved), and can reserve no more than it
    planned. So a reservation costs one comparison, and the budget holds at every step.

    Runs compose sequentially. Their mechanisms must be fixed in advance or follow from public values; a run
    that is stopped early because of private results must first reserve the rest of its plan.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._sessions: dict[str, LedgerRun] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str], dataset_id: str, unit: Unit, budget: Budget | None = None) -> Ledger:
        """Create the ledger, or reopen it: data set, unit and budget must then be those of its header.

        Holds the lock until ``close``. Errors: LedgerError if another process has it, if the file is broken,
        belongs to something else or cannot be written; AccountingError for a meaningless δ.
        """
        header = Header(text("dataset_id", dataset_id), unit, budget)
        if budget is not None:
            check_delta(budget.delta, unit)
        writer, content = chain.Writer.open(Path(path))
        try:
            found, runs = replay(content.records or [writer.append(header.to_fields())])
            _check_same(header, found)
            if content.torn:
                writer.append(event("note", None, note=f"cut an incomplete last line of {content.torn} bytes"))
        except BaseException:
            writer.close()
            raise
        return cls(Book(header, runs, writer))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ledger:
        """The ledger as it is now, without the lock: to show and add up, not to write. Raises LedgerError."""
        header, runs = replay(chain.read(Path(path)).records)
        return cls(Book(header, runs, None))

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

    def runs(self) -> Mapping[str, RunRecord]:
        """All runs by name, in the order in which they were opened."""
        return MappingProxyType(dict(self._book.runs))

    def run(self, name: str, mech: Mechanism) -> LedgerRun:
        """Open a run, or resume the one of this name with the same mechanism and number of steps.

        Errors, with nothing written: BudgetExceeded if the plan does not fit the budget, LedgerError if the
        name has another mechanism or is in use, or the ledger is not open for writing.
        """
        text("name", name)
        if not self._book.writable:
            raise LedgerError("This ledger is not open for writing. Use Ledger.open.")
        known = self._book.runs.get(name)
        if known is not None and known.mech != mech:
            raise LedgerError(
                f"Run {name!r} was opened with {known.mech}, found {mech}. Resume it unchanged, or choose another name."
            )
        if self._is_open(name):
            raise LedgerError(f"Run {name!r} is already open. Close it first.")
        self._check_budget(name, mech)
        if known is None:
            self._book.append("open", name, mech=mech, steps=mech.planned)
        self._sessions[name] = LedgerRun(self._book, name)
        return self._sessions[name]

    def spent(self, delta: float) -> Bound:
        """ε at ``delta`` of everything charged so far: all runs composed, each at its reserved steps."""
        charged = [run.mech.with_steps(run.reserved) for run in self._book.runs.values()]
        return epsilon_of(compose(charged, self.unit), check_delta(delta, self.unit))

    def remaining(self, mech: Mechanism) -> int:
        """How many steps of ``mech`` a new run may plan within the budget. LedgerError without one."""
        if self.budget is None:
            raise LedgerError("This ledger has no budget, so nothing bounds the steps. Give one when it is created.")
        return steps_within(mech, self._load(), self.unit, self.budget)

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

    def _load(self, without: str | None = None) -> list[Mechanism]:
        """What counts against the budget: open runs at their plan, the others at what they reserved."""
        return [
            run.mech if self._is_open(name) else run.mech.with_steps(run.reserved)
            for name, run in self._book.runs.items()
            if name != without
        ]

    def _check_budget(self, name: str, mech: Mechanism) -> None:
        if self.budget is None:
            return
        load = [*self._load(without=name), mech]
        if not fits(load, self.unit, self.budget):
            total = epsilon_of(compose(load, self.unit), self.budget.delta)
            raise BudgetExceeded(
                f"With run {name!r} the total would be epsilon={total} of {self.budget.epsilon:g} "
                f"at delta={self.budget.delta:g}. Plan fewer steps or more noise; nothing was charged."
            )


def _check_same(given: Header, found: Header) -> None:
    for what in ("dataset", "unit", "budget"):
        expected, here = getattr(found, what), getattr(given, what)
        if expected != here:
            raise LedgerError(
                f"The ledger was made for {what} {expected}, found {here}. "
                "Use what it was made for, or another file for other data."
            )
