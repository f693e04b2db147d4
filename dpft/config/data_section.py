"""The ``[data]`` table: where records come from and what one record is."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dpft.config.base import Numbers, OptionalWord, Section, Text, Word, Words, wrong
from dpft.config.template import parse_template, uses_pair

FILE_SOURCES = ("csv", "json", "parquet")
TEXT_FIELDS = ("text", "text_pair", "template", "max_length")
IMAGE_FIELDS = ("image", "mean", "std")

# Beyond plain names: slices such as train[:100] would depend on how many records there are, so that one
# record more or less would move the others.
_SPLIT = re.compile(r"\w+(\.\w+)*")
_OF_FILES = ("path", "config", "revision", "eval_split", "eval_path")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


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


class DataSection(Section):
    """Which records, which columns, which split, and the unit of privacy."""

    source: Literal["movie-reviews", "digits", "hub", "csv", "json", "parquet"] = Field(
        description="where the records come from"
    )
    path: OptionalWord = Field(
        default=None,
        description="the hub's data set name, or a file path or glob relative to the working directory",
    )
    config: OptionalWord = Field(default=None, description="the hub data set's configuration")
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
    image: OptionalWord = Field(default=None, description="the column of the image; absent = the records are texts")
    mean: Numbers = Field(
        default=(0.5,), description="what is taken from pixels of 0 to 1, one for all channels or one each"
    )
    std: Numbers = Field(default=(0.5,), description="what they are then divided by, one for all channels or one each")
    label: Word = Field(default="label", description="the column of the label")
    labels: Words = Field(min_length=2, max_length=10_000, description="the label names, in the order of the class ids")
    max_length: int = Field(default=64, ge=1, le=1_000_000, description="tokens kept of a record, a public constant")
    unit: Word = Field(description="what one record is: the unit of privacy")

    @property
    def images(self) -> bool:
        """Whether the records are images; texts if not."""
        return self.source == "digits" or self.image is not None

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields that say nothing about such records."""
        return TEXT_FIELDS if self.images else IMAGE_FIELDS

    @model_validator(mode="after")
    def _fields_of_the_records(self) -> Self:
        for field in self.unused:
            if getattr(self, field) != type(self).model_fields[field].default:
                raise wrong(field, f"not used with {'images' if self.images else 'texts'}; leave it out")
        if not all(value > 0 for value in self.std):
            raise wrong("std", "expected numbers above 0")
        return self

    @model_validator(mode="after")
    def _columns_and_labels(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise wrong("labels", "expected unique names; each class has one")
        if self.images:
            if self.image == self.label:
                raise wrong("label", "expected image and label to be different columns")
            return self
        if self.text_pair in (self.text, self.label) or self.label == self.text:
            raise wrong(
                "text_pair" if self.text_pair else "label",
                "expected text, text_pair and label to be different columns",
            )
        if uses_pair(parse_template(self.template)) and self.text_pair is None:
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
        refused = {
            "movie-reviews": (*_OF_FILES, "image"),
            "digits": (*_OF_FILES, "image"),
            "hub": ("eval_path",),
        }.get(self.source, ("config", "revision", "eval_split"))
        for field in refused:
            if getattr(self, field) is not None:
                raise wrong(field, f'not used with source = "{self.source}"; leave it out')
        if self.source != "hub" and self.split != "train":
            raise wrong("split", f'only "train" exists with source = "{self.source}"; leave it out')
        if self.source == "movie-reviews":
            if len(self.labels) != 2:
                raise wrong("labels", "expected the names of two classes, the negative one first")
        elif self.source == "digits":
            if len(self.labels) != 10:
                raise wrong("labels", "expected the names of the ten digits, 0 first")
            if self.label != "label":
                raise wrong("label", 'not used with source = "digits"; leave it out')
        elif self.path is None:
            what = "the name of a data set" if self.source == "hub" else "a file path or a glob"
            raise wrong("path", f'expected {what} with source = "{self.source}"; set data.path')
        elif self.source == "hub":
            _check_hub_name(self.path)
        else:
            _check_local("path", self.path)
            _check_local("eval_path", self.eval_path)
        return self


def _check_hub_name(path: str) -> None:
    if not _HUB_NAME.fullmatch(path) or ".." in path:
        raise wrong(
            "path",
            'expected a hub name such as "nyu-mll/glue"; for files use source = "csv", "json" or "parquet"',
        )


def _check_local(field: str, path: str | None) -> None:
    # "://" and "::" would be read by file-system libraries as addresses; private data stays local.
    if path is not None and ("://" in path or "::" in path):
        raise wrong(field, "expected a local file path or glob, no address; fetch the file first")
