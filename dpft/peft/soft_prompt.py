"""Vectors among a model's input embeddings: where they stand, and how the model's users do not notice.

    a family whose first token stands for the whole ([CLS])      the others
    [CLS] p_1 .. p_P  token  token  [PAD]                        p_1 .. p_P  token  token  [PAD]
    [PAD] [CLS] p_1 .. p_P  token  token                         [PAD]  p_1 .. p_P  token  token

Behind the padding on the left, if there is any: the prompt then is as far from an example's tokens as it is without
padding, and nothing about an example depends on how long its neighbours are. Behind [CLS], where poolers and heads look
for it and where it was pretrained. Positions and token types go on counting through the prompt.

What comes out has the original positions only: a head, a pooler, a loss and a mask fit as they do without a prompt. Two
things keep the prompt's positions: attention weights, and the encoder of an encoder-decoder, whose decoder reads
them all (as in Lester et al. 2021).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.around import Around, by_name
from dpft.peft.families import FAMILIES, backbone, model_type

NAME = "soft_prompt"
"""The name that the part has in the model."""


class SoftPrompt(Around):
    """P vectors an example among what the ``host`` embeds. B examples, T tokens, d numbers an embedding.

    Works with a cache of keys and values: the first call puts the prompt into it, later ones count it in."""

    def __init__(self, host: nn.Module, length: int) -> None:
        super().__init__()
        self.length = length
        self.behind = int(FAMILIES[model_type(host)].first_token)
        self.padding = _padding_of_positions(host)
        self.room = _positions(host)
        self.keeps = False
        if self.room is not None and length >= self.room:
            raise InputError(
                f"Expected method.length={length} to leave room for tokens: this model has {self.room} positions."
            )

    @abstractmethod
    def vectors(self, embeds: Tensor, mask: Tensor, arguments: dict[str, Any]) -> Tensor:
        """The prompt [B,P,d] of examples with these embeddings [B,T,d] and this mask [B,T]; an argument that is the
        method's own, not the model's, is taken out of ``arguments``."""

    def feed(self, decoder: nn.Module) -> None:
        """The output goes to ``decoder``, with the prompt's positions, which its mask then covers."""
        self.keeps = True
        self._handles.append(decoder.register_forward_pre_hook(self._widen, with_kwargs=True))

    def before(self, model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
        given = [t for name in ("input_ids", "inputs_embeds") if (t := arguments.get(name)) is not None]
        if len(given) != 1:
            return arguments  # which the model refuses in words of its own
        mask = self._mask(arguments.get("attention_mask"), given[0], arguments.get("past_key_values"))
        start = self._start(mask)
        arguments["attention_mask"] = inserted(mask, mask.new_ones(len(mask), self.length), start)
        if mask.shape[1] > given[0].shape[1]:
            return self._later(arguments)
        self._number(arguments, mask, start)
        embeds: Any = arguments.get("inputs_embeds")
        if embeds is None:
            embeds = model.get_input_embeddings()(given[0])  # type: ignore[operator]
        prompt = self.vectors(embeds, mask, arguments).to(embeds.dtype)
        return {**arguments, "input_ids": None, "inputs_embeds": inserted(embeds, prompt, start)}

    def after(self, model: nn.Module, arguments: Mapping[str, Any], output: Any) -> Any:
        mask = arguments.get("attention_mask")
        if self.keeps or not isinstance(mask, Tensor):
            return output
        return without(output, self._start(mask), self.length, mask.shape[1])

    def check_room(self, tokens: int) -> None:
        """Raise :class:`InputError` unless inputs of so many tokens fit the model beside the prompt."""
        if self.room is not None and tokens + self.length > self.room:
            raise InputError(
                f"Expected inputs of at most {self.room - self.length} tokens: the model has {self.room} positions, of "
                f"which the prompt takes {self.length}. Lower data.max_length, or method.length."
            )

    def _mask(self, mask: Any, given: Tensor, cache: Any) -> Tensor:
        """[B, T]; T counts the tokens that the cache holds, too, without the prompt."""
        seen = 0 if cache is None else int(cache.get_seq_length())
        if 0 < seen < self.length:
            raise InputError("Expected past_key_values that this model made: there is no prompt in these.")
        T = given.shape[1] + (seen - self.length if seen else 0)
        if mask is None:
            mask = torch.ones(given.shape[0], T, dtype=torch.long, device=given.device)
        if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] != T:
            raise InputError(
                "Expected attention_mask to have a row an example and a column a token, without the prompt's places: "
                "they are put into it."
            )
        self.check_room(T)
        return mask

    def _later(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A call whose cache has the prompt already."""
        if arguments.get("position_ids") is not None:
            arguments["position_ids"] = arguments["position_ids"] + self.length
        return arguments

    def _start(self, mask: Tensor) -> Tensor:
        """Where each example's prompt begins, [B]: at its first token, or behind that. The same found in a mask that
        has the prompt in it already."""
        return (mask != 0).int().argmax(dim=1) + self.behind

    def _number(self, arguments: dict[str, Any], mask: Tensor, start: Tensor) -> None:
        """Put prompts into token types and positions."""
        B, T = mask.shape
        types, positions, ids = (arguments.get(name) for name in ("token_type_ids", "position_ids", "input_ids"))
        if types is not None:
            arguments["token_type_ids"] = inserted(types, types.new_zeros(B, self.length), start)
        if positions is not None:
            positions = positions.expand(B, T)
            first = positions.gather(1, (start - self.behind).unsqueeze(1)) + self.behind
            places = torch.arange(T, device=mask.device)
            later = positions + self.length * (places >= start.unsqueeze(1))
            new = first + torch.arange(self.length, device=mask.device)
            arguments["position_ids"] = inserted(later, new, start)
        elif ids is not None and self.padding is not None:
            counted = ids.ne(self.padding)
            counted = inserted(counted, counted.new_ones(B, self.length), start).long()
            arguments["position_ids"] = counted.cumsum(dim=1) * counted + self.padding

    def _widen(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The decoder's mask over the encoder's output, wherever it comes from (generate keeps the output)."""
        if not self.enabled:
            return args, kwargs
        arguments = by_name(decoder, args, kwargs)
        mask, read = arguments.get("encoder_attention_mask"), arguments.get("encoder_hidden_states")
        if mask is not None and read is not None and mask.shape[1] + self.length == read.shape[1]:
            ones = mask.new_ones(len(mask), self.length)
            arguments["encoder_attention_mask"] = inserted(mask, ones, self._start(mask))
        return (), arguments


def host_of(model: nn.Module) -> nn.Module:
    """The module that embeds the inputs: the backbone, of an encoder-decoder its encoder.

    Raises :class:`InputError` for a family that is not in the table."""
    found = backbone(model)
    if model_type(found) not in FAMILIES:
        raise InputError(
            f"Expected a model of a family that prompts are tested on ({', '.join(FAMILIES)}), found "
            f"{model_type(found)!r}."
        )
    return found.encoder if hasattr(found, "decoder") else found  # type: ignore[return-value]


def put_in(part: SoftPrompt, model: nn.Module) -> None:
    """Put ``part`` in at the model's host, and let a decoder know."""
    part.put(host_of(model), NAME)
    decoder = getattr(backbone(model), "decoder", None)
    if decoder is not None:
        part.feed(decoder)


def check_room(model: nn.Module, tokens: int) -> None:
    """Raise :class:`InputError` where inputs of so many tokens don't fit beside a prompt, if the model has one."""
    for part in model.modules():
        if isinstance(part, SoftPrompt):
            part.check_room(tokens)


def cost(model: nn.Module, length: Callable[[Any], int]) -> Callable[[Any], int]:
    """An example's tokens as they weigh on memory: its own, and the prompt's beside them."""
    beside = sum(part.length for part in model.modules() if isinstance(part, SoftPrompt))
    return lambda example: length(example) + beside


def inserted(x: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """``x`` [B, T, ...] with ``new`` [B, P, ...] put before place ``start[b]`` of each row: [B, T+P, ...]."""
    P, places = new.shape[1], torch.arange(x.shape[1] + new.shape[1], device=x.device)
    s = start.unsqueeze(1)
    index = torch.where(places < s, places + P, torch.where(places < s + P, places - s, places))
    return _gathered(torch.cat([new, x], dim=1), index)


def without(output: Any, start: Tensor, length: int, total: int) -> Any:
    """The reverse for hidden states [B, T+P, d] in a model's output, or in whatever it holds."""
    if isinstance(output, Tensor):
        if output.dim() != 3 or output.shape[1] != total:
            return output
        places = torch.arange(total - length, device=output.device)
        return _gathered(output, places + length * (places >= start.unsqueeze(1)))
    if isinstance(output, tuple):
        return tuple(without(item, start, length, total) for item in output)
    if isinstance(output, dict):  # an HF output; its fields are its items
        for key in list(output):
            output[key] = without(output[key], start, length, total)
    return output


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Row b's items at ``index[b]``."""
    index = index.reshape(*index.shape, *(1,) * (x.dim() - 2)).expand(*index.shape, *x.shape[2:])
    return x.gather(1, index)


def _padding_of_positions(host: nn.Module) -> int | None:
    """RoBERTa and MPNet count the tokens that are no padding, from the padding's id on; the others count places."""
    return getattr(getattr(host, "embeddings", None), "padding_idx", None)


def _positions(host: nn.Module) -> int | None:
    """How many positions the model has learnt; None where it needs no table of them."""
    for name, module in host.named_modules():
        if name.rpartition(".")[2] in ("position_embeddings", "wpe") and isinstance(module, nn.Embedding):
            padding = _padding_of_positions(host)
            return module.num_embeddings - (0 if padding is None else padding + 1)
    return None
