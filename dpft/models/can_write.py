"""Whether a model can write what the recipe asks for, and which tokens end its texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from dpft.config.generate_section import GenerateSection
from dpft.errors import InputError
from dpft.peft.ladder_net import SideNetwork
from dpft.peft.soft_prompt import check_room


@dataclass(frozen=True)
class Ends:
    """Ids of tokens: those that end a text, and the one that pads."""

    stop: tuple[int, ...]
    pad: int


def ends_of(model: Any, tokenizer: Any, section: GenerateSection) -> Ends:
    """Where the model's texts end: its own tokens, the tokenizer's, and the recipe's."""
    found: list[int] = []
    for own in (tokenizer.eos_token_id, getattr(model.generation_config, "eos_token_id", None), section.stop):
        found += [] if own is None else [own] if isinstance(own, int) else own
    stop = tuple(dict.fromkeys(found))
    pads = (tokenizer.pad_token_id, getattr(model.generation_config, "pad_token_id", None), *stop, 0)
    return Ends(stop, next(pad for pad in pads if pad is not None))


def check_writing(model: Any, tokens: int, section: GenerateSection) -> None:
    """InputError unless the model can write after contexts of so many tokens, which the message says.

    ``tokens`` is public: ``data.max_length``, say. To be asked before training."""
    if not callable(getattr(model, "can_generate", None)) or not model.can_generate():
        raise InputError(
            'Expected a model that writes text for the [generate] table; set data.task to "causal-lm" or "seq2seq", or '
            "take the table out."
        )
    encoded = model.config.is_encoder_decoder
    if encoded and section.beams > 1 and reads_whole(model):
        raise InputError(
            "Expected generate.beams=1: the side network of a decoder attends to that of the encoder, which knows of "
            "no beams."
        )
    check_room(model, tokens if encoded else tokens + section.max_new_tokens)
    room = getattr(model.config, "max_position_embeddings", None)
    needed = max(tokens, section.max_new_tokens + 1) if encoded else tokens + section.max_new_tokens
    if room is not None and needed > room:
        raise InputError(
            f"Expected generate.max_new_tokens={section.max_new_tokens} and contexts of {tokens} tokens to fit the "
            f"model, which has {room} positions, but they take {needed}. Lower it, or data.max_length."
        )


def reads_whole(model: nn.Module) -> bool:
    """Whether the model keeps no keys and values of earlier tokens."""
    return any(isinstance(m, SideNetwork) for m in model.modules())
