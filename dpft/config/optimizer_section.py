"""The ``[optimizer]`` table: how noisy gradients become updates. All of it is post-processing, free of privacy cost."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpft.config.base import Count, Positive, Section, wrong

Schedule = Literal["linear", "constant", "cosine"]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def _to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class OptimizerSection(Section):
    """What the optimizer is, its rates over the steps, and which of its iterates is released.

    ``scale`` comes before the noise, and yet is free: it is computed from earlier noised gradients."""

    name: Literal["adam", "adamw", "adam-bc", "sgd"] = Field(
        default="adam", description="the optimiser; adam-bc takes the noise's variance out of Adam's second moment"
    )
    lr: Positive = Field(default=1e-3, le=1e38, description="the learning rate")
    head_lr: Positive | None = Field(default=None, le=1e38, description="the head's own learning rate; absent = lr")
    betas: Annotated[tuple[Decay, Decay], BeforeValidator(_to_tuple)] | None = Field(
        default=None, description="the decay of Adam's first and second moment; absent = 0.9 and 0.999"
    )
    eps: Positive | None = Field(
        default=None, le=1.0, description="what Adam adds to the root of the second moment; absent = 1e-8"
    )
    noise_floor: Positive | None = Field(
        default=None, le=1e6, description="adam-bc's least divisor, in standard deviations of the noise; absent = 1"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="the weight decay coefficient")
    schedule: Schedule = Field(default="linear", description="how the rate falls over the steps")
    warmup: float = Field(default=0.0, ge=0, lt=1, description="the fraction of steps over which the rate rises")
    scale: Literal["none", "privatised"] = Field(
        default="none", description="whether gradients are scaled, by earlier noised ones, before they are clipped"
    )
    scale_every: Count | None = Field(default=None, description="steps after which the scale is renewed; absent = 5")
    average: Literal["none", "ema", "tail"] = Field(
        default="none", description="whether an average of the steps' values is released instead of the last"
    )
    average_decay: Decay | None = Field(default=None, description="the decay of ema, per step; absent = 0.9")
    average_tail: Share | None = Field(
        default=None, description="the fraction of steps, at the end, that tail averages over; absent = 0.25"
    )

    @model_validator(mode="after")
    def _fields_of_other_choices(self) -> Self:
        for field, used, needs in (
            ("betas", self.name != "sgd", "an optimizer of Adam's kind"),
            ("eps", self.name != "sgd", "an optimizer of Adam's kind"),
            ("noise_floor", self.name == "adam-bc", 'name = "adam-bc"'),
            ("scale_every", self.scale != "none", 'scale = "privatised"'),
            ("average_decay", self.average == "ema", 'average = "ema"'),
            ("average_tail", self.average == "tail", 'average = "tail"'),
        ):
            if getattr(self, field) is not None and not used:
                raise wrong(field, f"expected only with {needs}; leave it out")
        if self.name == "adam-bc" and self.scale != "none":
            raise wrong("scale", "gives each coordinate a noise of its own, and adam-bc knows one for all; choose one")
        return self
