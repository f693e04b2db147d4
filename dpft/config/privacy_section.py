"""The ``[privacy]`` table: the promise, before the planner turns it into a Plan."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dpft.config.base import Count, Positive, Section, wrong

Clipping = Literal["flat", "auto-s"]
"""How one record's gradient is brought within the clip: cut where it is longer, or scaled to about the clip always."""

ONE_OF = (("epsilon", "noise_multiplier"), ("examples", "sample_rate"), ("epochs", "steps"))
"""Fields of which a recipe has one."""


class PrivacySection(Section):
    """Budget or noise; public size or sampling rate; epochs or steps: exactly one of each pair."""

    enabled: bool = Field(default=True, description="false trains WITHOUT privacy, for comparison on public records")
    epsilon: Positive | None = Field(default=None, description="the privacy budget to calibrate the noise to")
    noise_multiplier: Positive | None = Field(
        default=None, description="the standard deviation of the noise on the sum, in units of clip"
    )
    delta: float = Field(gt=0, lt=1, description="the probability that the epsilon does not hold")
    examples: Count | None = Field(default=None, description="the public number of training records (zero-out)")
    sample_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="each record's chance to be in a batch, where the number of records is secret (add/remove)",
    )
    expected_batch: Count = Field(description="the expected number of records in a batch, a public constant")
    epochs: Positive | None = Field(default=None, description="expected passes over the data")
    steps: Count | None = Field(default=None, description="the number of noisy steps")
    clip: Positive = Field(default=1.0, description="the L2 bound on one record's gradient")
    clipping: Clipping = Field(
        default="flat", description="whether a longer gradient is cut to clip (flat), or each scaled to it (auto-s)"
    )

    @property
    def adjacency(self) -> Literal["zero_out", "add_remove"]:
        """Zero-out where the number of records is public, add/remove where it is secret."""
        return "zero_out" if self.examples is not None else "add_remove"

    @model_validator(mode="after")
    def _exactly_one_of_each_pair(self) -> Self:
        for one, other in ONE_OF:
            given = [name for name in (one, other) if getattr(self, name) is not None]
            if len(given) != 1:
                found = "both; leave one out" if given else "neither; set one"
                raise wrong(one, f"expected exactly one of {one} and {other}, found {found}")
        return self

    @model_validator(mode="after")
    def _fits_the_number_of_records(self) -> Self:
        if self.examples is None:
            return self
        if self.expected_batch > self.examples:
            raise wrong("expected_batch", f"expected at most privacy.examples = {self.examples} records")
        if self.delta * self.examples >= 1:
            # A mechanism that publishes one record at random has delta = 1/N: such a delta promises nothing.
            raise wrong("delta", f"expected less than 1/examples = {1 / self.examples:.3g}; make it smaller")
        return self
