"""From records to token ids, each record on its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from dpft.config import DataSection
from dpft.data.records import Record, render
from dpft.errors import InputError

_RECORDS_AT_ONCE = 1024


class Example(TypedDict):
    """One record as a model takes it: a plain dict, unpadded."""

    input_ids: NDArray[np.int32]  # [t], 1 <= t <= max_length
    token_type_ids: NotRequired[NDArray[np.int32]]  # [t]
    label: int


def tokenise(tokenizer: Any, records: Sequence[Record], section: DataSection) -> list[Example]:
    """Example i is a function of record i, the recipe and the tokenizer alone.

    Records go through the tokenizer in slices, which is faster, but unpadded and cut at the public
    ``section.max_length``, so that none sees another. InputError if the tokenizer makes no token of one.
    """
    examples: list[Example] = []
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        examples.extend(_encoded(tokenizer, records[start : start + _RECORDS_AT_ONCE], section))
    for number, example in enumerate(examples, start=1):
        if len(example["input_ids"]) == 0:
            raise InputError(
                f"Record {number} has no token after tokenising; remove it, or use a template "
                "with some text of its own."
            )
    return examples


def _encoded(tokenizer: Any, records: Sequence[Record], section: DataSection) -> Iterator[Example]:
    rendered = [render(record, section.template) for record in records]
    pairs = [pair for _, pair in rendered if pair is not None]
    encoding = tokenizer(
        [first for first, _ in rendered],
        pairs or None,  # the recipe decides: either every record has a second sequence or none has
        truncation=True,
        max_length=section.max_length,
        padding=False,
        return_attention_mask=False,
    )
    types = encoding.get("token_type_ids")
    for i, record in enumerate(records):
        example = Example(input_ids=np.asarray(encoding["input_ids"][i], dtype=np.int32), label=record.label)
        if types is not None:
            example["token_type_ids"] = np.asarray(types[i], dtype=np.int32)
        yield example
