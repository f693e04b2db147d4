"""Privacy claims of published papers, accounted again: what is claimed, and what can be shown.

The settings are data (``data/NAME.json``), each with its provenance; every ε is computed here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from . import rdp
from ._check import exact_keys
from .accountants import epsilon
from .bound import Bound
from .certify import Certificate, certify
from .compose import compose
from .errors import AccountingError
from .mechanisms import Gaussian, PoissonGaussian, ShuffledGaussian
from .units import Unit, check_delta

PAPERS = ("yu2022",)

_DATA = Path(__file__).parent / "data"
_UNIT = Unit("example")


@dataclass(frozen=True)
class Paper:
    """Where a table of claims comes from, and what must be said beside it."""

    name: str
    source: str
    notes: tuple[str, ...]
    provenance: dict[str, str]  # what each mark of a noise multiplier's origin means


@dataclass(frozen=True)
class PaperRow:
    """One published setting and its claim.

    ``noise_multiplier``: noise standard deviation over clip norm; where it was found stands in its
    ``_provenance``. ``steps`` and ``epochs`` describe the same run. ``epsilon_claimed`` is None where the
    authors print no number for this ``delta``, ``claimed_accountant`` where they do not name one.
    """

    setting: str
    dataset: str
    train_size: int
    batch_size: int
    epochs: int
    noise_multiplier: float
    noise_multiplier_provenance: str
    steps: int
    delta: float
    epsilon_claimed: float | None
    claimed_accountant: str | None
    remark: str | None

    @property
    def q(self) -> float:
        """Sampling rate that the accounting of the paper supposes."""
        return self.batch_size / self.train_size

    def account(self) -> PaperAccount:
        """Every accountant's ε of this row, in about a second."""
        mechanism = PoissonGaussian(self.q, self.noise_multiplier, self.steps)
        (composition,) = compose([mechanism], _UNIT)
        return PaperAccount(
            row=self,
            certificate=certify(mechanism, _UNIT, self.delta),
            rdp_classic=_classic(rdp.curve(composition), self.delta),
            no_amplification=_without_amplification(self),
        )


@dataclass(frozen=True)
class PaperAccount:
    """What can be shown for one row.

    ``certificate``: Poisson batches under add_remove, every accountant. ``rdp_classic``: the ε of the moments
    accountant with the conversion of Abadi et al. 2016, which older code prints. ``no_amplification``: shuffled
    batches that everybody may know, the number of records public: what holds for such code as it stands.
    """

    row: PaperRow
    certificate: Certificate
    rdp_classic: float
    no_amplification: Bound

    def by(self, method: str) -> Bound:
        """The answer of one accountant, "pld", "prv" or "rdp", for Poisson batches."""
        return next(bound for bound in self.certificate.rows if bound.method == method)

    @property
    def holds_with_poisson(self) -> bool | None:
        """Whether the certified ε for Poisson batches is within the claim; None without a claim."""
        return _within(self.certificate.bound, self.row.epsilon_claimed)

    @property
    def holds_without_amplification(self) -> bool | None:
        """Whether the claim is shown for shuffled batches too; None without a claim."""
        return _within(self.no_amplification, self.row.epsilon_claimed)

    @cached_property
    def refused(self) -> str | None:
        """Why this δ says nothing about the row's number of records, or None if it does."""
        delta, n = self.row.delta, self.row.train_size
        try:
            check_delta(delta, _public(self.row))
        except AccountingError:
            return f"Delta {delta:.3g} is not below 1/{n} = {1 / n:.3g}: it allows a record to be published whole."
        return None

    @property
    def verdict(self) -> str:
        """The row in words."""
        claim = self.row.epsilon_claimed
        shown = f"epsilon {self.certificate.bound}"
        if claim is None:
            poisson = f"No epsilon is claimed; with Poisson sampling {shown} can be shown."
        elif self.holds_with_poisson:
            poisson = f"With Poisson sampling the claim of {claim:g} holds: {shown}."
        else:
            poisson = f"Even with Poisson sampling the claim of {claim:g} does not hold: {shown}."
        shuffled = "As published, without Poisson sampling, "
        shuffled += f"epsilon {self.no_amplification} is what can be shown."
        return " ".join(filter(None, (poisson, shuffled, self.refused)))

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the row, the accountants' numbers, the verdict."""
        return {
            **asdict(self.row),
            "q": self.row.q,
            "certificate": self.certificate.to_dict(),
            "rdp_classic": self.rdp_classic,
            "no_amplification": self.no_amplification.to_dict(),
            "holds_with_poisson": self.holds_with_poisson,
            "holds_without_amplification": self.holds_without_amplification,
            "verdict": self.verdict,
        }


def paper(name: str = "yu2022") -> Paper:
    """What a table of claims says about itself. Errors: AccountingError for a name that is not in ``PAPERS``."""
    found = _read(name)
    return Paper(name, found["source"], tuple(found["notes"]), dict(found["provenance"]))


def rows(name: str = "yu2022") -> list[PaperRow]:
    """The settings of a paper, in its order. Errors: AccountingError for a name that is not in ``PAPERS``."""
    keys = {field.name for field in fields(PaperRow)}
    return [PaperRow(**exact_keys("row", row, keys)) for row in _read(name)["rows"]]


def account_all(found: Sequence[PaperRow], *, processes: int = 1) -> Iterator[PaperAccount]:
    """``account()`` of each row, in order, as they are done; with several processes where a script allows it."""
    if processes <= 1:
        yield from map(PaperRow.account, found)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Spawned, not forked: whoever calls may have threads, and a fork would copy their locks.
    with ProcessPoolExecutor(min(processes, len(found)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(PaperRow.account, found)


def _read(name: str) -> dict[str, Any]:
    if name not in PAPERS:
        near = get_close_matches(name, PAPERS, 1, 0.5)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise AccountingError(f"Expected the name of a paper, one of {', '.join(PAPERS)}, found {name!r:.60}.{hint}")
    value: dict[str, Any] = json.loads((_DATA / f"{name}.json").read_text(encoding="utf-8"))
    return value


def _public(row: PaperRow) -> Unit:
    return Unit("example", "zero_out", n_public=row.train_size)


def _within(bound: Bound, claim: float | None) -> bool | None:
    return None if claim is None else bound.upper <= claim


def _without_amplification(row: PaperRow) -> Bound:
    try:
        return epsilon(ShuffledGaussian(row.epochs, row.noise_multiplier), _public(row), row.delta)
    except AccountingError:
        # δ >= 1/n. The number of the same Gaussian is still of use beside the others; the verdict says the rest.
        return epsilon(Gaussian(row.noise_multiplier, row.epochs), _UNIT, row.delta)


def _classic(divergences: Sequence[float], delta: float) -> float:
    """min over orders 2 to 32 of R(α) − ln δ/(α − 1); the orders are 0.1 apart up to 11, where the least is found."""
    return min(
        (
            divergence - math.log(delta) / (order - 1)
            for order, divergence in zip(rdp.ORDERS, divergences, strict=True)
            if 2 <= order <= 32
        ),
    )
