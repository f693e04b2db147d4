"""A recipe: one TOML file that says everything about a run. Data, never code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dpft.config.base import Count, OptionalWord, Positive, Section, Word, wrong
from dpft.config.cache_section import CacheSection
from dpft.config.data_section import DataSection
from dpft.config.expected_section import ExpectedSection
from dpft.config.generate_section import GenerateSection
from dpft.config.method_section import BesideSection, MethodSection, with_preset
from dpft.config.optimizer_section import OptimizerSection
from dpft.config.privacy_section import PrivacySection
from dpft.config.public_section import PublicSection, check_apart
from dpft.config.start_section import StartSection
from dpft.config.task_fields import LANGUAGE_TASKS

DEFAULT_BUDGET = 4096


class ModelSection(Section):
    """The pretrained model and how its token features become one vector."""

    source: Word = Field(description='"package:NAME", a hub name, a local folder, or "config:FILE" without weights')
    revision: OptionalWord = Field(default=None, description="the hub model's commit, tag or branch")
    tokenizer: OptionalWord = Field(
        default=None, description="where the tokenizer comes from, as source; absent = it is the model's own"
    )
    pooling: Literal["cls", "mean", "last"] = Field(default="mean", description="how token features become one vector")
    feature_norm: Positive | None = Field(
        default=None, description="the L2 norm that pooled features are scaled to; absent = not scaled"
    )
    dropout: bool = Field(default=False, description="whether the model's dropout is active in training")

    @model_validator(mode="after")
    def _revision_is_the_hubs(self) -> Self:
        if self.revision is not None and self.source.startswith(("package:", "config:", "/", "./", "../", "~")):
            raise wrong("revision", "only a hub model has one; leave it out")
        if self.source == "package:":
            raise wrong("source", 'expected the package\'s name after "package:"')
        if self.source == "config:":
            raise wrong("source", 'expected the path of a JSON file after "config:"')
        return self


class TrainSection(Section):
    """How the work is done; no setting here changes what is promised."""

    token_budget: Count | Literal["auto"] = Field(
        default=DEFAULT_BUDGET,
        description="tokens in a micro-batch, padding included; auto = a fast number, found within the first steps",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="number type of the matrix products; auto = bfloat16 where the hardware has it",
    )
    recompute: bool = Field(
        default=False,
        description="run layers again in the backward pass, in place of keeping what they made: half as much time "
        "again, a fraction of the memory (activation checkpointing)",
    )
    checkpoint_every: int = Field(default=10, ge=0, le=10**12, description="steps between checkpoints; 0 = never")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="the share of a target token's probability spread over all tokens"
    )

    @property
    def tokens(self) -> int:
        """Of a micro-batch where nothing is searched: outside the private steps."""
        return DEFAULT_BUDGET if self.token_budget == "auto" else self.token_budget


class EvaluateSection(Section):
    """What may be said of the held-out records."""

    public: bool = Field(default=False, description="whether the held-out records are public, accuracy included")


class LedgerSection(Section):
    """The data set's own books, shared by all runs on it; made by ``dpft ledger create``."""

    file: Word = Field(description="the data set's ledger, relative to the working directory")
    dataset: Word = Field(description="the data set's name, as the ledger has it")
    part: OptionalWord = Field(default=None, description="the disjoint part that is trained on; absent = all of it")


class Recipe(Section):
    """Everything about a run; see ``recipes/quickstart.toml`` for a commented one."""

    name: str = Field(
        max_length=100,
        pattern=r"^[a-z0-9_-][a-z0-9._-]*\z",
        description="the run's name and folder: a-z, 0-9, dot, underscore, hyphen; no dot first",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="initialisation of added parameters only; never noise or sampling",
    )
    data: DataSection = Field(description="the records")
    model: ModelSection = Field(description="the pretrained model")
    method: MethodSection = Field(description="the parameters that are added and trained")
    privacy: PrivacySection = Field(description="the privacy promise")
    optimizer: OptimizerSection = Field(default=OptimizerSection(), description="the optimiser")
    train: TrainSection = Field(default=TrainSection(), description="how the work is cut up")
    evaluate: EvaluateSection = Field(default=EvaluateSection(), description="what may be said of held-out records")

    beside: BesideSection | None = Field(
        default=None, discriminator="name", description="a second method next to the first; absent = none"
    )
    ledger: LedgerSection | None = Field(default=None, description="the data set's own ledger; absent = none")
    cache: CacheSection | None = Field(default=None, description="the frozen backbone's outputs, kept; absent = none")
    start: StartSection | None = Field(default=None, description="the run to go on from; absent = none")
    generate: GenerateSection | None = Field(
        default=None, description="what the trained model writes for the report; absent = nothing"
    )
    public: PublicSection | None = Field(
        default=None, description="declared public records for a method that looks at some; absent = none"
    )
    expected: ExpectedSection | None = Field(
        default=None, description="published figures of such a run, to stand beside its own; absent = none"
    )

    @model_validator(mode="before")
    @classmethod
    def _presets_in_full(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {**values, **{key: with_preset(values[key]) for key in ("method", "beside") if key in values}}

    @model_validator(mode="after")
    def _model_fits_the_records(self) -> Self:
        if self.data.images and self.model.pooling == "last":
            raise wrong("model.pooling", 'expected "cls" or "mean" with images')
        drawn = self.model.source.startswith("config:")
        if not self.data.images and drawn and self.model.tokenizer is None:
            raise wrong("model.tokenizer", "a configuration brings no tokenizer; name a model whose tokenizer to take")
        if self.data.images and self.model.tokenizer is not None:
            raise wrong("model.tokenizer", "not used with images; leave it out")
        return self

    @model_validator(mode="after")
    def _fields_of_language_tasks(self) -> Self:
        language, model = self.data.task in LANGUAGE_TASKS, self.model
        if not language and self.generate is not None:
            raise wrong("generate", f'nothing is written with data.task = "{self.data.task}"; leave the table out')
        if not language and self.train.label_smoothing:
            raise wrong("train.label_smoothing", f'not used with data.task = "{self.data.task}"; leave it out')
        if language and (model.pooling != "mean" or model.feature_norm is not None):
            field = "pooling" if model.pooling != "mean" else "feature_norm"
            raise wrong(f"model.{field}", "a language model has no pooled features; leave it out")
        if language and self.optimizer.head_lr is not None:
            raise wrong("optimizer.head_lr", "a language model gets no new head; leave it out")
        if self.generate is not None and self.generate.metrics and self.data.target is None:
            raise wrong("generate.metrics", "what is written is compared with data.target; set it, or leave them out")
        return self

    @model_validator(mode="after")
    def _what_is_kept_is_the_same_at_every_step(self) -> Self:
        if self.cache is not None and self.model.dropout:
            raise wrong("cache", "with model.dropout = true no output stays the same between steps; leave one out")
        if self.cache is not None and self.data.task in ("token-classification", *LANGUAGE_TASKS):
            raise wrong(
                "cache", f'not for data.task = "{self.data.task}", which reads every token; leave the table out'
            )
        return self

    @model_validator(mode="after")
    def _something_is_recomputed(self) -> Self:
        if self.train.recompute and (self.cache is not None or self.method.name == "lst"):
            reason = "with [cache]" if self.cache is not None else 'with method.name = "lst"'
            raise wrong("train.recompute", f"{reason} the pretrained layers keep nothing anyway; leave it out")
        return self

    @model_validator(mode="after")
    def _phases_share_the_books(self) -> Self:
        if self.start is not None and self.ledger is None:
            raise wrong(
                "start",
                "both phases spend on the same records, so the data set's own ledger must hold both; add [ledger], and "
                "name it in the first phase too",
            )
        if self.start is not None and self.start.prunes and self.method.name != "dsee":
            raise wrong("start.prune", "only the method dsee keeps masks over frozen weights; leave it out")
        return self

    @model_validator(mode="after")
    def _nothing_is_charged_without_privacy(self) -> Self:
        if not self.privacy.enabled and (self.ledger is not None or self.method.model_dump().get("mask_steps")):
            field = "ledger" if self.ledger is not None else "method.mask_steps"
            raise wrong(field, "a run without privacy (privacy.enabled = false) charges nothing; leave it out")
        return self

    @model_validator(mode="after")
    def _public_records_are_others(self) -> Self:
        if self.public is not None:
            check_apart(self.public, self.data)
        return self

    @model_validator(mode="after")
    def _longest_record_fits(self) -> Self:
        if not self.data.images and self.train.token_budget != "auto" and self.train.token_budget < self.data.tokens:
            raise wrong(
                "train.token_budget",
                f"expected at least {self.data.tokens} tokens, so that the longest record fits a micro-batch "
                f"(data.max_length = {self.data.max_length})",
            )
        return self
