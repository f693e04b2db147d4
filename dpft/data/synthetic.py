"""Random examples of the right shapes, for preflights that must not touch private data."""

from __future__ import annotations

import numpy as np

from dpft.data.tokenise import Example


def synthetic_examples(
    vocab_size: int,
    count: int,
    lengths: tuple[int, int],
    num_labels: int,
    generator: np.random.Generator,
    token_types: bool = False,
) -> list[Example]:
    """``count`` examples with uniform token ids in [0, vocab_size) and labels in [0, num_labels).

    ``lengths`` = (shortest, longest), both included: the first example has the longest and the second the
    shortest length, the rest lie between. The generator needs no secrecy: nothing here is noise or sampling.
    """
    shortest, longest = lengths
    drawn = generator.integers(shortest, longest + 1, size=count)
    drawn[:2] = (longest, shortest)[:count]
    examples: list[Example] = []
    for length in drawn:
        ids = generator.integers(0, vocab_size, size=length, dtype=np.int32)
        example = Example(input_ids=ids, label=int(generator.integers(num_labels)))
        if token_types:
            example["token_type_ids"] = np.zeros_like(ids)
        examples.append(example)
    return examples
