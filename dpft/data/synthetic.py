"""Random examples of the right shapes, for preflights that must not touch private data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpft.config import DataSection
from dpft.data.tokenise import NOT_LEARNT, Example


def synthetic_examples(
    section: DataSection,
    vocab_size: int,
    count: int,
    lengths: tuple[int, int],
    generator: np.random.Generator,
    token_types: bool = False,
) -> list[Example]:
    """``count`` examples with uniform token ids in [0, vocab_size) and labels of the section's task.

    ``lengths`` = (shortest, longest), both included: the first example has the longest and the second the
    shortest length, the rest lie between. The generator needs no secrecy: nothing here is noise or sampling.
    """
    shortest, longest = lengths
    drawn = generator.integers(shortest, longest + 1, size=count)
    drawn[:2] = (longest, shortest)[:count]
    examples: list[Example] = []
    for length in drawn:
        ids = generator.integers(0, vocab_size, size=length, dtype=np.int32)
        example = Example(input_ids=ids, label=_label(section, ids, vocab_size, generator))
        if token_types:
            example["token_type_ids"] = np.zeros_like(ids)
        examples.append(example)
    return examples


def _label(
    section: DataSection, ids: NDArray[np.int32], vocab_size: int, generator: np.random.Generator
) -> int | float | NDArray[np.int32]:
    """What such an example could teach; of tokens, the first of several teaches nothing, as a context's would not."""
    if section.task == "regression":
        return float(generator.normal())
    if section.task == "multilabel":
        return generator.integers(2, size=section.outputs, dtype=np.int32)
    if section.task == "seq2seq":
        size = generator.integers(1, min(section.target_length, 8) + 1)
        return generator.integers(0, vocab_size, size=size, dtype=np.int32)
    if section.task == "classification":
        return int(generator.integers(section.outputs))
    tags = section.task == "token-classification"
    label = generator.integers(section.outputs, size=len(ids), dtype=np.int32) if tags else ids.copy()
    label[: 1 if len(ids) > 2 else 0] = NOT_LEARNT
    return label
