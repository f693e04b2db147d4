"""How side blocks start: as the most important rows and columns of the blocks that they stand beside.

    what is chosen                          once for            by the sum of importance over
    S, d/r of the d residual numbers        the whole stack     all weights that read or write one
    a head's numbers of query and key       an attention        rows of query and key
    a head's numbers of value               an attention        rows of value, columns of the projection behind
    numbers inside the feed-forward         a block             rows of what is before, columns of what is behind

Every head keeps its share, so that heads stay heads, and what is added to one residual number stays with it; the
published code selects each layer's rows by themselves. Queries and keys that positions turn in pairs keep every r-th
pair: the side network turns those by just the angles that the backbone does. Norms and biases follow their numbers.

The importance of a weight is its size, or its empirical Fisher information: the sum of the squared gradients on single
records.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.ladder_side import Stack, head_width
from dpft.peft.ladder_weights import Attention, Block, Weights, as_rows, block_of, sizes


def narrowed(
    stack: Stack, side: nn.Module, kept: tuple[int, ...], importance: Weights, *,
    reads: Stack, reads_importance: Weights | None = None,
) -> None:  # fmt: skip
    """Fill ``side`` from the stack's weights. ``reads``: the stack whose side network is attended to (itself, if none),
    of which ``reads_importance`` is, where it is not by sizes."""
    read = None if reads is stack else _Choice(reads, side, kept, reads_importance or sizes(reads, kept)).residual
    own = _Choice(stack, side, kept, importance, read)
    for name, p in side.named_parameters():
        with torch.no_grad():
            p.copy_(own.of(name, p.shape))


class _Choice:
    """What is chosen of a stack, and the part of each parameter that remains. ``read``: the residual numbers that are
    chosen of the stack which cross-attention reads."""

    def __init__(
        self, stack: Stack, side: nn.Module, kept: tuple[int, ...], importance: Weights, read: Tensor | None = None
    ) -> None:
        self.stack, self.kept, self.importance = stack, kept, importance
        self.reduction = stack.width // int(getattr(side.config, stack.widths[0]))
        blocks = [block_of(stack, i) for i in kept]
        self.residual = self._top(torch.stack([self._residual_scores(block) for block in blocks]).sum(0))
        self.read = self.residual if read is None else read
        # The rows and columns that remain of each layer.
        self.layers: dict[str, tuple[Tensor, Tensor]] = {}
        for block in blocks:
            for attention in block.attentions:
                self._choose_heads(attention)
            self._choose_inside(block)

    def of(self, name: str, shape: torch.Size) -> Tensor:
        """What remains of the backbone's parameter that stands where the side network has ``name``."""
        source, module = self._source(name), self._source(name).rpartition(".")[0]
        found = self.stack.host.get_parameter(source).detach()
        if module in self.layers:
            rows, columns = self.layers[module]
            if found.dim() == 1:
                return found[rows]
            return as_rows(self.stack.host, module, as_rows(self.stack.host, module, found)[rows][:, columns])
        for dim, (before, after) in enumerate(zip(found.shape, shape, strict=True)):
            if before != after and before == self.stack.width:
                found = found.index_select(dim, self.residual)
        if found.shape != shape:
            raise InputError(
                f'The weights of {source} have no known place in a narrower model; set method.init="random".'
            )
        return found

    def _source(self, name: str) -> str:
        start = self.stack.list + "."
        if not name.startswith(start):
            return name
        place, _, inner = name.removeprefix(start).partition(".")
        # T5 has one table of relative positions a stack, in its first block, kept or not.
        i = self.kept[int(place)] if "relative_attention_bias" not in inner else 0
        return f"{start}{i}.{inner}"

    def _residual_scores(self, block: Block) -> Tensor:
        score = self.importance[block.ffn_proj].sum(1)
        for name in block.ffn_in:
            score = score + self.importance[name].sum(0)
        for attention in block.attentions:
            score = score + self.importance[attention.proj].sum(1)
            reads = {attention.query} if attention.crosses else {attention.query, attention.key, attention.value}
            for name in sorted(reads):
                score = score + self.importance[name].sum(0)
        return score

    def _choose_heads(self, attention: Attention) -> None:
        projections = (attention.query, attention.key, attention.value)
        q, k, v = (self._rows(name, part) for part, name in enumerate(projections))
        groups, head = self.stack.heads // self.stack.kv_heads, head_width(self.stack)
        if self.stack.turns:
            inside = self._every_rth_pair(head).expand(self.stack.kv_heads, -1)
        else:
            by_query = q.sum(1).view(self.stack.kv_heads, groups, head).sum(1)
            inside = self._top(by_query + k.sum(1).view(-1, head))
        behind = self.importance[attention.proj].sum(0).view(self.stack.kv_heads, groups, head).sum(1)
        values = self._top(v.sum(1).view(-1, head) + behind)
        queries, columns = _of_heads(inside, groups, head), _of_heads(values, groups, head)
        keys, rows = _of_heads(inside, 1, head), _of_heads(values, 1, head)
        S, read = self.residual, self.read if attention.crosses else self.residual
        if attention.query == attention.key:
            width = len(q)
            self.layers[attention.query] = torch.cat([queries, keys + width, rows + 2 * width]), S
        else:
            self.layers[attention.query] = queries, S
            self.layers[attention.key] = keys, read
            self.layers[attention.value] = rows, read
        self.layers[attention.proj] = S, columns
        for name in ("pos_key_proj", "pos_query_proj"):  # DeBERTa's, for the table of relative positions
            self.layers[f"{attention.query.rpartition('.')[0]}.{name}"] = queries, S

    def _choose_inside(self, block: Block) -> None:
        behind = self.importance[block.ffn_proj].sum(0)
        before = torch.cat([self.importance[name].sum(1) for name in block.ffn_in])  # a gate may be there, too
        inside = self._top(behind + before.view(-1, len(behind)).sum(0))
        for name in block.ffn_in:
            starts = range(0, len(self.importance[name]), len(behind))  # it may lie in the same weight
            self.layers[name] = torch.cat([inside + start for start in starts]), self.residual
        self.layers[block.ffn_proj] = self.residual, inside

    def _rows(self, name: str, part: int) -> Tensor:
        found, fused = self.importance[name], self.stack.family.fused
        return found if fused == 1 else found.view(fused, -1, found.shape[1])[part]

    def _top(self, score: Tensor) -> Tensor:
        """The places of the highest scores along the last dimension, an r-th of all, in rising order."""
        count = score.shape[-1] // self.reduction
        return torch.argsort(score, dim=-1, descending=True, stable=True)[..., :count].sort(-1).values

    def _every_rth_pair(self, head: int) -> Tensor:
        first = torch.arange(0, head // 2, self.reduction, device=self.residual.device)
        return torch.cat([first, first + head // 2])


def _of_heads(inside: Tensor, groups: int, head: int) -> Tensor:
    """Places [heads x n] of all query heads, from those within a head [kv heads, n] that ``groups`` of them share."""
    each = inside.repeat_interleave(groups, 0)
    return (each + head * torch.arange(len(each), device=each.device)[:, None]).flatten()
