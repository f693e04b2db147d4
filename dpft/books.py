"""The data set's own ledger, which all runs on it share. The run's ledger stays as it is; this one bounds them all.

A run is charged its whole plan there before the first record is read, in one short visit, so that several runs can
go on at once. Each folder has a charge of its own, and confirms it once, before anything is released: a copy of a
folder cannot be finished on the charge of the first.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpft_accounting import Ledger, LedgerBusy

from dpft.config import LedgerSection
from dpft.engine.plan import Plan
from dpft.errors import PrivacyError
from dpft.files import read_json, write_json

_PATIENCE = 60.0  # seconds to wait while another run is visiting; a visit takes milliseconds


class DataSetBooks:
    """One folder's charge in the data set's ledger. All errors come before anything is released."""

    def __init__(self, section: LedgerSection, plan: Plan, folder: Path, name: str) -> None:
        self._section = section
        self._plan = plan
        self._marker = folder / "private" / "charge.json"
        known = read_json(self._marker) if self._marker.exists() else None
        self.run: str = known["run"] if known else f"{name}-{secrets.token_hex(4)}"
        self._confirming = bool(known and known["confirming"])

    def check(self) -> None:
        """PrivacyError for another data set or unit, BudgetExceeded if the plan does not fit. Writes nothing."""
        ledger = Ledger.read(self._section.file)
        self._same(ledger)
        ledger.check(self._plan.mechanism, self._parts, instead_of=self.run)

    def charge(self) -> None:
        """Reserve the whole plan, durably. A folder that has done so before is not charged again."""
        if not self._marker.exists():  # on disk before the charge, so that a resumed run finds its own
            write_json(self._marker, {"run": self.run, "confirming": False}, private=True)
        with self._visit() as ledger, ledger.run(self.run, self._plan.mechanism, self._parts) as run:
            if run.remaining:
                run.reserve(run.remaining)

    def confirm(self) -> None:
        """Note that the plan was executed. Errors: PrivacyError if this charge has already paid for a result."""
        with self._visit() as ledger:
            done = ledger.runs()[self.run].committed
            if done and not self._confirming:
                raise PrivacyError(
                    f"The charge {self.run!r} in {self._section.file} has already paid for a finished run, so this "
                    "folder is a copy of another. Nothing was released; start a new run."
                )
            write_json(self._marker, {"run": self.run, "confirming": True}, private=True)
            self._confirming = True
            if not done:
                with ledger.run(self.run, self._plan.mechanism, self._parts) as run:
                    run.confirm(run.planned)

    @property
    def _parts(self) -> tuple[str, ...] | None:
        return None if self._section.part is None else (self._section.part,)

    def _same(self, ledger: Ledger) -> None:
        if ledger.dataset_id != self._section.dataset:
            raise PrivacyError(
                f"ledger.dataset is {self._section.dataset!r}, but {self._section.file} keeps the books of "
                f"{ledger.dataset_id!r}. Name the file of this data set."
            )
        ours, theirs = self._plan.unit, ledger.unit
        if (ours.name, ours.adjacency) != (theirs.name, theirs.adjacency):
            raise PrivacyError(
                f"The ledger {self._section.file} protects each {theirs.name} under {theirs.adjacency}, this plan each "
                f"{ours.name} under {ours.adjacency}. Both must mean the same; change data.unit or privacy.examples."
            )
        if (ours.n_public or 0) > (theirs.n_public or 0):
            raise PrivacyError(
                f"The plan has {ours.n_public} records, the data set of {self._section.file} only {theirs.n_public}. "
                "Correct privacy.examples, or name the right ledger."
            )

    @contextmanager
    def _visit(self) -> Iterator[Ledger]:
        start = time.monotonic()
        while True:
            try:
                ledger = Ledger.reopen(self._section.file)
                break
            except LedgerBusy:
                if time.monotonic() - start > _PATIENCE:
                    raise
                time.sleep(0.05)
        with ledger:
            self._same(ledger)
            yield ledger
