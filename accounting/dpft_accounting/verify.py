"""Check a ledger file and say what it holds."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import chain
from .replay import replay


@dataclass(frozen=True)
class Verification:
    """A ledger whose chain and meaning hold.

    ``head_sha256`` is the hash of the last line. Publish it with a result: a hash chain alone cannot show
    that records were dropped from its end. ``torn_bytes`` counts an incomplete last line.
    """

    records: int
    runs: int
    reserved: int
    committed: int
    head_sha256: str
    torn_bytes: int

    def __str__(self) -> str:
        torn = f"; an incomplete last line of {self.torn_bytes} bytes does not count" if self.torn_bytes else ""
        return (
            f"chain intact, {self.records} records, {self.runs} runs, {self.reserved} steps reserved, "
            f"{self.committed} executed, head {self.head_sha256}{torn}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def verify(path: str | os.PathLike[str]) -> Verification:
    """Check chain and meaning of a ledger file, without a lock; changes nothing. Errors: LedgerError."""
    content = chain.read(Path(path))
    _, runs = replay(content.records)
    return Verification(
        records=len(content.records),
        runs=len(runs),
        reserved=sum(run.reserved for run in runs.values()),
        committed=sum(run.committed for run in runs.values()),
        head_sha256=content.last_hash,
        torn_bytes=content.torn,
    )
