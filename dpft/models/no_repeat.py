"""No run of n tokens twice in what a model writes."""

from __future__ import annotations

from torch import Tensor


class NoRepeat:
    """A logits processor for ``generate``: [B, T] ids, [B, V] scores -> scores, -inf for tokens that would end a run of
    ``n`` tokens that was written before.

    Of places from ``first`` on only, unlike transformers' own: names may be copied from the context, and a decoder's
    padding is no run."""

    def __init__(self, n: int, first: int) -> None:
        from transformers import NoRepeatNGramLogitsProcessor

        self.within, self.first = NoRepeatNGramLogitsProcessor(n), first

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        kept: Tensor = self.within(ids[:, self.first :], scores)
        return kept
