"""The state that a ledger file adds up to, kept in step with the file."""

from __future__ import annotations

from .chain import Writer
from .errors import LedgerError
from .mechanisms import Mechanism
from .replay import Header, RunRecord, apply, event


class Book:
    """Header and runs of one ledger; with a ``writer``, records can be added."""

    def __init__(self, header: Header, runs: dict[str, RunRecord], writer: Writer | None) -> None:
        self.header = header
        self.runs = runs
        self._writer = writer

    @property
    def writable(self) -> bool:
        """False for a reader, and after ``close`` or a failed write."""
        return self._writer is not None and not self._writer.closed

    def append(
        self, kind: str, run: str, *, mech: Mechanism | None = None, steps: int, parts: tuple[str, ...] | None = None
    ) -> None:
        """Add one record, durably; ``parts`` of a new run, later records have the same.

        LedgerError if it cannot be written; the ledger is then closed.
        """
        if self._writer is None:
            raise LedgerError("This ledger is not open for writing. Use Ledger.open.")
        try:
            # Disk first: if the write fails, the books in memory are as before.
            where = self.runs[run].parts if parts is None else parts
            apply(self.header, self.runs, self._writer.append(event(kind, run, mech=mech, steps=steps, parts=where)))
        except BaseException:
            # A signal may come between disk and memory, and the next record would then overwrite the last
            # one or pass the plan. Nothing more is written; the next session reads what the disk holds.
            self._writer.close()
            raise

    def close(self) -> None:
        """Release the file and its lock. Closing twice does nothing."""
        if self._writer is not None:
            self._writer.close()
