"""One training run and its entries in the ledger."""

from __future__ import annotations

from types import TracebackType

from ._check import integer
from .book import Book
from .errors import BudgetExceeded, LedgerError
from .mechanisms import Mechanism


class LedgerRun:
    """A run that was opened or resumed by ``Ledger.run``. Reserve, then draw the noise, then ``step``.

    Guarantee: at every moment, also after a crash, the ledger on disk charges at least the steps whose noise
    was drawn.
    """

    def __init__(self, book: Book, name: str) -> None:
        self._book = book
        self._name = name
        self._available = 0  # reserved in this session, not yet executed
        self._executed = 0  # executed in this session, not yet committed
        self._closed = False

    @property
    def name(self) -> str:
        """The name given to ``Ledger.run``."""
        return self._name

    @property
    def mech(self) -> Mechanism:
        """The mechanism, at its planned number of steps."""
        return self._book.runs[self._name].mech

    @property
    def planned(self) -> int:
        """Steps of the whole run."""
        return self.mech.planned

    @property
    def charged(self) -> int:
        """Steps reserved so far over all sessions, also those that a crash left uncommitted."""
        return self._book.runs[self._name].reserved

    @property
    def remaining(self) -> int:
        """Steps that may still be reserved."""
        return self.planned - self.charged

    @property
    def closed(self) -> bool:
        """Whether this session of the run has ended."""
        return self._closed

    def reserve(self, k: int = 1) -> None:
        """Charge the next ``k`` steps, durably; call it before their noise is drawn.

        Errors, with nothing charged: BudgetExceeded if this would pass the plan, LedgerError if it cannot be
        written.
        """
        self._check_open()
        integer("k", k, minimum=1)
        if k > self.remaining:
            raise BudgetExceeded(
                f"Run {self._name!r} has {self.remaining} of {self.planned} planned steps left, found {k}. "
                "Stop here, or open a new run within the budget."
            )
        self._book.append("reserve", self._name, steps=k)
        self._available += k

    def step(self) -> None:
        """Count one reserved step as executed, in memory. LedgerError if none is left that was reserved."""
        self._check_open()
        if self._available == 0:
            raise LedgerError(f"Run {self._name!r} executed a step that it had not reserved before.")
        self._available -= 1
        self._executed += 1

    def commit(self) -> None:
        """Write down the steps executed since the last commit, durably; does nothing if there are none."""
        self._check_open()
        if self._executed:
            self._book.append("commit", self._name, steps=self._executed)
            self._executed = 0

    def confirm(self, k: int) -> None:
        """Note that ``k`` steps reserved in **earlier** sessions were executed; it changes no charge.

        For a run whose steps are counted elsewhere, such as one that reserved its whole plan before it began.
        Errors: LedgerError if there are not so many reserved steps.
        """
        self._check_open()
        integer("k", k, minimum=1)
        record = self._book.runs[self._name]
        if k > record.reserved - record.committed - self._available - self._executed:
            raise LedgerError(
                f"Run {self._name!r} has not reserved {k} steps in earlier sessions that are uncommitted."
            )
        self._book.append("commit", self._name, steps=k)

    def close(self) -> None:
        """Commit and end this session of the run; it can be resumed by name. Closing twice does nothing."""
        self._end(aborted=False)

    def __enter__(self) -> LedgerRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(aborted=kind is not None)

    def _end(self, *, aborted: bool) -> None:
        if self._closed:
            return
        try:
            if self._book.writable:  # else a write failed before, and what was reserved stays charged
                self.commit()
                if aborted:
                    self._book.append("abort", self._name, steps=self._available)
        finally:
            self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise LedgerError(f"Run {self._name!r} is closed. Resume it with Ledger.run.")
