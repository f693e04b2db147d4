"""From records to token ids, each record on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from dpft.config import DataSection
from dpft.data.records import Label, Record, render
from dpft.errors import InputError

NOT_LEARNT = -100
"""The label of a token that is not to be predicted, as in transformers."""

_RECORDS_AT_ONCE = 1024


class Example(TypedDict):
    """One record as a model takes it: a plain dict, unpadded.

    ``label``: a class id, a number, 0 or 1 for each label name, or an id for each token (of the input, or of the text
    to write), where ``NOT_LEARNT`` marks what is not to be predicted."""

    input_ids: NDArray[np.int32]  # [t], 1 <= t <= section.tokens
    token_type_ids: NotRequired[NDArray[np.int32]]  # [t]
    label: int | float | NDArray[np.int32]


def tokenise(tokenizer: Any, records: Sequence[Record], section: DataSection) -> Iterator[Example]:
    """Example i is a function of record i, the recipe and the tokenizer alone.

    Records go through the tokenizer in slices, which is faster, but unpadded and cut at the recipe's public
    lengths, so that none sees another. InputError if the tokenizer makes no token of one.
    """
    encode = _ENCODERS.get(section.task, _classified)
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        examples = encode(tokenizer, records[start : start + _RECORDS_AT_ONCE], section)
        for number, example in enumerate(examples, start=start + 1):
            if len(example["input_ids"]) == 0:
                raise InputError(
                    f"Record {number} has no token after tokenising; remove it, or use a template "
                    "with some text of its own."
                )
            yield example


def _classified(tokenizer: Any, records: Sequence[Record], section: DataSection) -> Iterator[Example]:
    """For a head on the whole text, or on a pair."""
    encoding = _inputs(tokenizer, records, section)
    for i, record in enumerate(records):
        yield _example(encoding, i, _own(record.label))


def _own(label: Label) -> int | float | NDArray[np.int32]:
    assert label is not None  # the task has one
    return np.asarray(label, dtype=np.int32) if isinstance(label, tuple) else label


def _tagged(tokenizer: Any, records: Sequence[Record], section: DataSection) -> Iterator[Example]:
    """For a head on each word: the first token of a word bears its tag, the others none."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "Expected a model with a fast tokenizer for token classification; choose another model.source."
        )
    words = [record.text.split() for record in records]
    encoding = _cut(tokenizer, words, section.max_length, is_split_into_words=True)
    for i, record in enumerate(records):
        assert isinstance(record.label, tuple)
        places, labels = encoding.word_ids(i), []
        for before, word in zip([None, *places], places, strict=False):
            labels.append(NOT_LEARNT if word is None or word == before else record.label[word])
        yield _example(encoding, i, np.asarray(labels, dtype=np.int32))


def _continued(tokenizer: Any, records: Sequence[Record], section: DataSection) -> Iterator[Example]:
    """For a model that goes on writing: context, separator, target, end; the loss is on what follows the separator's
    special tokens. Without a target the whole text is learnt."""
    end = end_token(tokenizer)
    contexts = _without_end(tokenizer, [render(record, section.template)[0] for record in records], section)
    if section.target is None:
        for context in contexts:
            whole = np.asarray([*context[: section.max_length - 1], end], dtype=np.int32)
            yield Example(input_ids=whole, label=whole)
        return
    texts = [section.separator + (record.target or "") for record in records]
    targets = _cut(tokenizer, texts, section.target_length - 1, add_special_tokens=False)["input_ids"]
    for context, target in zip(contexts, targets, strict=True):
        given = _special_first(tokenizer, target)
        ids = np.asarray([*context, *target, end], dtype=np.int32)
        label = ids.copy()
        label[: len(context) + given] = NOT_LEARNT
        yield Example(input_ids=ids, label=label)


def _translated(tokenizer: Any, records: Sequence[Record], section: DataSection) -> Iterator[Example]:
    """For an encoder and a decoder: the label is the target's tokens, which the decoder writes."""
    encoding = _inputs(tokenizer, records, section)
    targets = _cut(tokenizer, [record.target or "" for record in records], section.target_length)["input_ids"]
    for i, target in enumerate(targets):
        yield _example(encoding, i, np.asarray(target, dtype=np.int32))


_ENCODERS: Mapping[str, Callable[[Any, Sequence[Record], DataSection], Iterator[Example]]] = {
    "token-classification": _tagged,
    "causal-lm": _continued,
    "seq2seq": _translated,
}


def contexts_of(tokenizer: Any, rendered: Sequence[str], section: DataSection) -> list[list[int]]:
    """What a model that writes is given of each rendered text, as in training: all that comes before what is learnt."""
    if section.task == "seq2seq":
        return [list(ids) for ids in _cut(tokenizer, list(rendered), section.max_length)["input_ids"]]
    contexts = _without_end(tokenizer, rendered, section)
    if section.target is None:
        return contexts
    between = tokenizer(section.separator, add_special_tokens=False)["input_ids"] if section.separator else []
    return [[*context, *between[: _special_first(tokenizer, between)]] for context in contexts]


def _without_end(tokenizer: Any, rendered: Sequence[str], section: DataSection) -> list[list[int]]:
    """Ids of each text, without the end that some tokenizers put there."""
    end, found = end_token(tokenizer), _cut(tokenizer, list(rendered), section.max_length)["input_ids"]
    return [list(ids[:-1] if len(ids) > 1 and ids[-1] == end else ids) for ids in found]


def _special_first(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many special tokens there are before the first other one."""
    special = set(tokenizer.all_special_ids)
    return next((i for i, token in enumerate(ids) if token not in special), len(ids))


def end_token(tokenizer: Any) -> int:
    """The id that ends a text; :class:`InputError` for a tokenizer without any."""
    ids = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    found = next((token for token in ids if token is not None), None)
    if found is None:
        raise InputError("Expected a tokenizer with an end token for a task that writes text; choose another model.")
    return int(found)


def _inputs(tokenizer: Any, records: Sequence[Record], section: DataSection) -> Any:
    rendered = [render(record, section.template) for record in records]
    pairs = [pair for _, pair in rendered if pair is not None]
    # The recipe decides: either every record has a second sequence or none has.
    return _cut(tokenizer, [first for first, _ in rendered], section.max_length, text_pair=pairs or None)


def _cut(tokenizer: Any, texts: Sequence[Any], length: int, **options: Any) -> Any:
    return tokenizer(
        list(texts), truncation=True, max_length=length, padding=False, return_attention_mask=False, **options
    )


def _example(encoding: Any, i: int, label: int | float | NDArray[np.int32]) -> Example:
    example = Example(input_ids=np.asarray(encoding["input_ids"][i], dtype=np.int32), label=label)
    types = encoding.get("token_type_ids")
    if types is not None:
        example["token_type_ids"] = np.asarray(types[i], dtype=np.int32)
    return example
