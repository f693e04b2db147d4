"""A batch that looks like a real one and holds nothing of it, for the preflight.

What it takes from the real one is its structure: names, number types, lengths, on which side a shorter example is
padded, and with what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpft.engine.microbatch import Collate
from dpft.engine.padding import MASK, PADDED, has_decoder
from dpft.models.labels import NO_LABEL
from dpft.peft.new_tokens import TokenTable
from dpft.per_sample.batches import mapped, tensors

IDS = "input_ids"


def like_one_record(record: Any, collate: Collate, model: nn.Module) -> Any:
    """A synthetic batch of what ``collate`` makes of one record; its shape is read and nothing else of it.

    To see how ``collate`` pads, the record is collated beside a cut copy of itself, where it can be."""
    batch = None
    if isinstance(record, Mapping) and IDS in record and len(record[IDS]) > 1:
        try:
            batch = collate([record, _cut(record)])
        except Exception:  # it takes records of one length alone, or wants more of them than this copy has
            batch = None
    return synthetic_like(collate([record]) if batch is None else batch, model=model)


def synthetic_like(batch: Any, examples: int = 3, model: nn.Module | None = None) -> Any:
    """A batch of the same structure, dtypes and lengths, with made-up contents: nothing of ``batch`` remains.

    Token ids are drawn from the vocabulary of ``model`` without its special tokens (rows that train by themselves
    among them), other integers are 0 or 1 (valid labels for any model), floats standard normal. The second example
    of texts under an ``attention_mask`` is half as long, padded on the side where ``batch`` is, on the right where
    it shows none. Lengths that equal ``examples`` are avoided: they could hide a lost axis."""
    generator = torch.Generator().manual_seed(20211013)
    lengths = {n for t in tensors(batch) for n in t.shape[1:2]}
    B = examples if examples not in lengths else examples + 1

    def make(t: Tensor) -> Tensor:
        shape = (B, *t.shape[1:])
        if t.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(t)
        return torch.randint(0, 2, shape, generator=generator).to(t)

    made = mapped(batch, make)
    if not isinstance(made, dict):
        return made
    fills = _fills(batch, model)
    words = _Vocabulary(model, {int(fills[IDS])})
    for key, t in made.items():
        if isinstance(t, Tensor) and key.endswith(MASK):
            made[key] = torch.ones_like(t)
        elif isinstance(t, Tensor) and key.endswith(IDS) and not t.is_floating_point():
            made[key] = _drawn(words, t, generator)
        elif key == "token_type_ids" and getattr(_config(model), "type_vocab_size", 2) < 2:
            made[key] = torch.zeros_like(t)
    return _padded(made, batch, fills)


class _Vocabulary:
    """Which token ids a model has: how many (by its configuration, or the smallest of its tables; 2 where there is
    neither), which of them are ``special``, and which train alone."""

    def __init__(self, model: nn.Module | None, special: set[int]) -> None:
        config = _config(model)
        modules = list(model.modules()) if model is not None else []
        size = getattr(config, "vocab_size", None)
        tables = [m.num_embeddings for m in modules if isinstance(m, nn.Embedding)]
        self.size: int = size if isinstance(size, int) else min(tables, default=2)
        named = [value for key, value in vars(config).items() if key.endswith("_token_id")] if config else []
        self.special = special | {i for value in named for i in (value if isinstance(value, list) else [value])}
        self.own = [i for m in modules if isinstance(m, TokenTable) for i in m.ids]

    def usual(self) -> list[int]:
        """Ids that text is made of; all of them in a vocabulary that has hardly any others."""
        found = [i for i in range(self.size) if i not in self.special]
        return found if len(found) > 1 else list(range(self.size))


def _drawn(words: _Vocabulary, like: Tensor, generator: torch.Generator) -> Tensor:
    usual = torch.tensor(words.usual())
    ids = usual[torch.randint(len(usual), like.shape, generator=generator)]
    if words.own:
        own = torch.tensor(words.own)
        some = torch.rand(like.shape, generator=generator) < 0.5
        ids = torch.where(some, own[torch.randint(len(own), like.shape, generator=generator)], ids)
    return ids.to(like)


def _padded(made: dict[str, Any], seen: Mapping[str, Any], fills: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the second example padded."""
    mask, ids = made.get(MASK), made.get(IDS, made.get("inputs_embeds"))
    if not isinstance(mask, Tensor) or not isinstance(ids, Tensor) or mask.dim() != 2 or mask.shape[1] < 2:
        return made
    T = mask.shape[1]
    if ids.shape[:2] != mask.shape:
        return made
    places = torch.arange(T) < T // 2 if _on_the_left(seen[MASK]) else torch.arange(T) >= (T + 1) // 2
    for key, t in made.items():
        if isinstance(t, Tensor) and key in fills and t.shape[:2] == mask.shape:
            made[key] = t.clone()
            made[key][1, places] = fills[key]
    return made


def _on_the_left(mask: Tensor) -> bool:
    """Whether examples under this mask [B, T] begin with padding and end with a token."""
    rows = mask[(mask != 0).any(dim=1)]
    return bool(((rows[:, 0] == 0) & (rows[:, -1] != 0)).any())


def _fills(seen: Mapping[str, Any], model: nn.Module | None) -> dict[str, Any]:
    """What stands at padding: as in ``seen``, or else as in transformers."""
    pad = getattr(_config(model), "pad_token_id", None)
    fills: dict[str, Any] = dict.fromkeys(PADDED, 0) | {IDS: pad if isinstance(pad, int) and pad >= 0 else 0}
    if model is None or not has_decoder(model):
        fills["labels"] = NO_LABEL
    mask = seen.get(MASK)
    if isinstance(mask, Tensor) and mask.dim() == 2 and bool((mask == 0).any()):
        row, place = (mask == 0).nonzero()[-1].tolist()
        alike = {key: t for key in fills if isinstance(t := seen.get(key), Tensor) and t.shape[:2] == mask.shape}
        fills.update({key: t[row, place].clone() for key, t in alike.items()})
    return fills


def _cut(record: Mapping[str, Any]) -> dict[str, Any]:
    """The first half of a record's tokens, and of all that has one entry a token."""
    T = len(record[IDS])

    def half(value: Any) -> Any:
        sized = (
            hasattr(value, "__len__") and not isinstance(value, str) and (not isinstance(value, Tensor) or value.dim())
        )
        return value[: (T + 1) // 2] if sized and len(value) == T else value

    return {key: half(value) for key, value in record.items()}


def _config(model: nn.Module | None) -> Any:
    """The configuration of the outermost module that has one, or None."""
    modules: Iterator[nn.Module] = model.modules() if model is not None else iter(())
    return next((config for m in modules if (config := getattr(m, "config", None)) is not None), None)
