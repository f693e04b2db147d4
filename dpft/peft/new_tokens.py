"""Token rows: chosen rows of the input embedding train, for words that the model does not know yet.

    ids ──► table [V, d] (frozen) ──────────►┐
      └───► rows [n, d] at the chosen ids ──►┴──► embeddings [B, T, d]

``rows`` starts as a copy of the chosen rows, so the model starts unchanged. It is an embedding of its own, so one
example's gradient is a few rows and never a table, and Opacus knows how to sample it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.families import backbone
from dpft.peft.inject import replace_module
from dpft.peft.method import Method, Wrapper


@dataclass(frozen=True)
class TokenRows(Method):
    """``tokens``: the ids of the rows that train. Which they are is public, like every field of a recipe."""

    name: ClassVar[str] = "tokens"
    what: ClassVar[str] = "chosen rows of the input embedding, for new tokens"
    merges: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("tokens",)

    tokens: tuple[int, ...] = ()

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """Wrap the input embedding, wherever the model keeps it; one small table trains."""
        table = _input_embedding(model)
        self._check(table)
        holders = {
            name: module
            for name, module in model.named_modules(remove_duplicate=False)
            if any(p is table.weight for p in module.parameters(recurse=False))
        }
        tied = next((name for name, m in holders.items() if type(m) is not nn.Embedding), None)
        if tied is not None:
            raise InputError(
                f"The output layer {tied} of this model is tied to its input embedding and would not see the rows of "
                "method.tokens; untie them, or use another method."
            )
        rows = nn.Parameter(table.weight.detach()[list(self.tokens)].clone())
        for name, module in holders.items():
            replace_module(model, name, TokenTable(cast(nn.Embedding, module), self.tokens, rows))
        return [rows]

    def _check(self, table: nn.Embedding) -> None:
        size = table.num_embeddings
        if not self.tokens:
            raise InputError("Expected method.tokens to name at least one token id, such as tokens = [30522].")
        for token in self.tokens:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
                raise InputError(f"Expected method.tokens to hold whole numbers from 0 to {size - 1}, found {token!r}.")
        if len(set(self.tokens)) < len(self.tokens):
            raise InputError("Expected method.tokens to name each token id once; leave out the repeated ones.")
        if table.padding_idx in self.tokens:
            raise InputError(f"method.tokens names {table.padding_idx}, the padding token, which never trains.")


class TokenTable(Wrapper):
    """An Embedding whose rows ``tokens`` come from ``rows`` [n, d]. ids [B, T] -> [B, T, d].

    The parameter is in a module apart: Opacus refuses one that has both parameters and buffers."""

    def __init__(self, base: nn.Embedding, tokens: tuple[int, ...], rows: nn.Parameter) -> None:
        super().__init__(base)
        self.rows = nn.Embedding(rows.shape[0], rows.shape[1], device="meta")
        self.rows.weight = rows  # one parameter, also where several modules hold the table
        chosen = torch.tensor(tokens, device=rows.device)
        place = torch.full((base.num_embeddings,), -1, device=rows.device)  # id -> row of ``rows``, or -1
        place[chosen] = torch.arange(len(tokens), device=rows.device)
        # Both follow from the method's field, so neither is saved.
        self.register_buffer("chosen", chosen, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        place = cast(Tensor, self.place)[ids]
        # A token that is not chosen looks up row 0 too, and its gradient there is exactly zero.
        trained: Tensor = self.rows(place.clamp_min(0))
        frozen: Tensor = self.base_layer(ids)
        return torch.where((place >= 0).unsqueeze(-1), trained, frozen)

    @property
    def ids(self) -> list[int]:
        """The tokens whose rows train."""
        found: list[int] = cast(Tensor, self.chosen).tolist()
        return found

    def merged(self) -> nn.Module:
        cast(Tensor, self.base_layer.weight).data[cast(Tensor, self.chosen)] = self.rows.weight.detach()
        return self.base_layer


def _input_embedding(model: nn.Module) -> nn.Embedding:
    get = getattr(backbone(model), "get_input_embeddings", None)
    table = get() if callable(get) else None
    if type(table) is not nn.Embedding or table.max_norm is not None:
        raise InputError(
            "method.name = tokens needs a Hugging Face model whose input goes through a plain embedding table; "
            f"found {type(table).__name__}. Use another method."
        )
    return table
