"""The part that lies in a stack: it hears the stack's blocks, runs the side network, and adds to the output.

B examples, T tokens, d numbers a token in the stack and d/r in the side network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.around import Around
from dpft.peft.ladder_side import Stack, fed
from dpft.per_sample import expand

_SHARPNESS = 0.1
_PASSED = ("attention_mask", "position_ids", "encoder_attention_mask")


class SideNetwork(Around):
    """``side`` with what connects it: ``down`` are W_first and a D_i for each kept block, ``gates`` the alpha_i, ``up``
    the way back, None in an encoder that a decoder reads. ``joins``: the output is added to the stack's. ``reads``: the
    part of the encoder, whose side network this one attends to.

    The outputs it hears are detached: nothing of the stack is kept for a backward pass."""

    def __init__(
        self, stack: Stack, kept: Sequence[int], side: nn.Module, down: Sequence[nn.Linear],
        gates: Sequence[nn.Parameter], up: nn.Linear | None, *, joins: bool, reads: SideNetwork | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.side, self.down, self.gates = side, nn.ModuleList(down), nn.ParameterList(gates)
        self.up = up
        self._kept, self._joins, self._family = tuple(kept), joins, stack.family
        self._list = stack.list
        self._encoder = (reads,)  # a tuple, since it is no part of this one
        needed = {*kept, len(stack.blocks) - 1} if joins and up is not None else set(kept)
        self.reads = (stack.embedded, *(f"{stack.list}.{i}" for i in sorted(needed)))
        self._heard: dict[int, Tensor] = {}
        self._encoded: tuple[Tensor, Tensor] | None = None

    def put(self, model: nn.Module, name: str) -> None:
        super().put(model, name)
        blocks = list(model.get_submodule(self._list).children())
        self._handles.append(blocks[0].register_forward_pre_hook(self._hear_first, with_kwargs=True))
        for place, i in enumerate(self._kept):
            self._handles.append(blocks[i].register_forward_hook(partial(self._hear, place)))
        for place, block in enumerate(self.side.get_submodule(self._list).children()):
            block.register_forward_pre_hook(partial(self._mix, place), with_kwargs=True)

    def before(self, model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
        past = arguments.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            raise InputError(
                "A side network reads whole sequences and keeps no keys and values of earlier tokens; "
                "call the model, or generate, with use_cache=False."
            )
        return arguments

    def after(self, model: nn.Module, arguments: Mapping[str, Any], output: Any) -> Any:
        hidden: Tensor = output[0]
        z = self._run(arguments)
        if self.up is None:
            self._encoded = hidden, z
            return output
        risen: Tensor = self.up(z)
        return _with_hidden(model, output, hidden + risen if self._joins else risen.to(hidden.dtype))

    def encoded(self, hidden: Any) -> Tensor:
        """What the side network made of the inputs that the encoder turned into ``hidden``."""
        if self._encoded is None or self._encoded[0] is not hidden:
            raise InputError(
                "A side decoder attends to the side encoder, which has to run just before it, on the same inputs: "
                "leave encoder_outputs out, and generate with num_beams=1."
            )
        z = self._encoded[1]
        if torch.is_grad_enabled():
            self._encoded = None  # generation decodes many times, training once
        return z

    def _run(self, arguments: Mapping[str, Any]) -> Tensor:
        passed = {name: t for name in _PASSED if (t := arguments.get(name)) is not None}
        encoder = self._encoder[0]
        if encoder is not None:
            passed["encoder_hidden_states"] = encoder.encoded(arguments.get("encoder_hidden_states"))
        try:
            return fed(self.side, self._family, self.down[0](self._heard[-1]), passed)
        finally:
            self._heard.clear()

    def _hear_first(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.enabled:
            self._heard[-1] = (args[0] if args else kwargs["hidden_states"]).detach()

    def _hear(self, place: int, block: nn.Module, args: Any, output: Any) -> None:
        if self.enabled:
            self._heard[place] = (output[0] if isinstance(output, tuple) else output).detach()

    def _mix(self, place: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The gated sum goes into a side block, in place of what the block before it gives out."""
        z: Tensor = args[0]
        read = self.down[place + 1](self._heard.pop(place))
        g = torch.sigmoid(expand(self.gates[place], z.shape[0]) / _SHARPNESS).view(-1, 1, 1)
        return (g * z + (1 - g) * read, *args[1:]), kwargs


def _with_hidden(model: nn.Module, output: Any, hidden: Tensor) -> Any:
    """``output`` with another last hidden state, and the pooler's work done anew on it."""
    pooler = getattr(model, "pooler", None)
    new = (hidden,) if pooler is None else (hidden, pooler(hidden))
    if isinstance(output, tuple):
        return (*new, *output[len(new) :])
    for name, value in zip(("last_hidden_state", "pooler_output"), new, strict=False):
        output[name] = value
    return output
