"""All but training: what each recipe promises, trains and costs, beside what was published. Reads no record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpft.config import PrivacySection, Recipe
from dpft.config.expected_section import ExpectedSection
from dpft.cost import Estimate, estimates
from dpft.engine.plan import Plan, plan_from
from dpft.errors import DpftError
from dpft.reproduce.find import readable

_SAME = 2e-3  # of an epsilon and the published one, both by PLD: grids and the digits of a rate differ

_plans: dict[PrivacySection, Plan] = {}


@dataclass(frozen=True)
class Dry:
    """One recipe before it runs. ``faults`` are sentences: anything in them makes the dry run fail."""

    path: Path
    name: str
    plan: Plan | None = None
    parameters: int | None = None
    cost: tuple[Estimate, ...] = ()
    expected: ExpectedSection | None = None
    faults: tuple[str, ...] = field(default=())

    def row(self, accountant: str) -> dict[str, Any]:
        """What one accountant says, "pld", "prv" or "rdp"; empty where it was not asked."""
        rows = self.plan.certificate["rows"] if self.plan else ()
        return next((dict(row) for row in rows if row["method"] == accountant), {})

    @property
    def holds(self) -> bool | None:
        """Whether the certified epsilon is within the claim, each at its own delta; None without a claim."""
        claim = self.expected.epsilon_claimed if self.expected else None
        return None if claim is None or self.plan is None else self.plan.epsilon.upper <= claim.value

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "recipe": self.path.as_posix(),
            "name": self.name,
            "plan": self.plan.to_dict() if self.plan else None,
            "parameters": self.parameters,
            "cost": [{"machine": one.machine, "seconds": one.seconds, "bytes": one.bytes} for one in self.cost],
            "expected": self.expected.model_dump(exclude_none=True) if self.expected else None,
            "holds": self.holds,
            "faults": list(self.faults),
        }


def dry_run(paths: list[Path], overrides: list[str]) -> Iterator[Dry]:
    """Each recipe in turn; what is wrong with one stands in its ``faults`` and stops no other."""
    for path, recipe in readable(paths, overrides):
        if isinstance(recipe, str):
            yield Dry(path, path.stem, faults=(recipe,))
            continue
        try:
            yield _one(path, recipe)
        except DpftError as error:
            yield Dry(path, recipe.name, expected=recipe.expected, faults=(str(error),))


def planned(recipe: Recipe) -> Plan:
    """The recipe's plan; equal mechanisms are certified once, since that takes a second or two."""
    key = recipe.privacy.model_copy(update={"clip": 1.0, "enabled": True})
    if key not in _plans:
        _plans[key] = plan_from(key, "record")
    made = _plans[key]
    return replace(made, clip=recipe.privacy.clip, unit=replace(made.unit, name=recipe.data.unit))


def _one(path: Path, recipe: Recipe) -> Dry:
    from dpft.reproduce.real_shape import count_trained

    plan, trained = planned(recipe), count_trained(recipe)
    made = Dry(path, recipe.name, plan, trained, estimates(recipe, plan.steps, trained=trained), recipe.expected)
    return replace(made, faults=tuple(_faults(made)))


def _faults(made: Dry) -> Iterator[str]:
    expected, plan = made.expected, made.plan
    if expected is None or plan is None:
        return
    published = expected.parameters.value if expected.parameters else made.parameters
    if made.parameters is not None and made.parameters != published:
        yield f"{made.parameters:,} numbers train, and [expected] has {published:,}."
    found = {
        "epsilon by PLD": (expected.epsilon_pld, made.row("pld").get("upper")),
        "sample rate": (expected.rate_claimed, plan.sample_rate),
        "noise multiplier": (expected.noise_claimed, plan.noise_multiplier),
    }
    for what, (figure, ours) in found.items():
        if figure is not None and (ours is None or abs(float(ours) - figure.value) > _SAME * figure.value):
            yield f"The {what} is {ours}, and [expected] has {figure.value:g}."
