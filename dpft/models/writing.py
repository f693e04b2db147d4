"""Text from a language model, as token ids: by greedy or beam search, or sampled.

    decoder alone       [PAD PAD c_1 .. c_t] ─► w_1 .. w_n           padded on the left, so that all go on at one place
    encoder-decoder     encoder [c_1 .. c_t PAD PAD], decoder [start] ─► w_1 .. w_n

What the recipe says is all there is: settings that a model was saved with (a repetition penalty, a least length) are
left out, except for which tokens begin and end a text. Writing reads no training record, so it is post-processing;
contexts of private records make private texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpft.config.generate_section import GenerateSection
from dpft.errors import InputError
from dpft.models.can_write import Ends, reads_whole
from dpft.models.no_repeat import NoRepeat
from dpft.models.precision import products_in
from dpft.models.source import quiet

ROWS = 64
"""Sequences that go through the model together, beams counted."""

_TOKENS = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


def write(
    model: Any,
    contexts: Sequence[Sequence[int]],
    section: GenerateSection,
    ends: Ends,
    compute: torch.dtype = torch.float32,
) -> list[list[int]]:
    """The most likely text after each context, without the context and the token that ends it.

    Greedy, or by ``section.beams``, whose scores are log p / length^``length_penalty``. Text i depends on context i
    only, up to rounding. Products run in ``compute``."""
    settings = {
        "num_beams": section.beams,
        "length_penalty": section.length_penalty if section.beams > 1 else None,
        "do_sample": False,
    }
    written: list[list[int]] = [[] for _ in contexts]
    with _ready(model, compute):
        for rows in _batches(contexts, max(1, ROWS // section.beams)):
            texts = _generate(model, [contexts[i] for i in rows], section, ends, settings)
            for i, text in zip(rows, texts, strict=True):
                written[i] = text
    return written


def sample(
    model: Any,
    contexts: Sequence[Sequence[int]],
    section: GenerateSection,
    ends: Ends,
    seed: int,
    compute: torch.dtype = torch.float32,
) -> list[list[list[int]]]:
    """``section.samples`` texts after each context, drawn at its temperature from its top_p, one list a context.

    ``seed`` is public. Texts depend on their own context and the seed only; the state of the process's generators
    stays as it is."""
    settings = {
        "do_sample": True,
        "temperature": section.temperature,
        "top_p": section.top_p,
        "top_k": 0,
        "num_return_sequences": section.samples,
    }
    device = next(model.parameters()).device
    drawn = []
    with _ready(model, compute):
        for context in contexts:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                drawn.append(_generate(model, [context], section, ends, settings))
    return drawn


def _generate(
    model: Any, contexts: list[Sequence[int]], section: GenerateSection, ends: Ends, settings: dict[str, Any]
) -> list[list[int]]:
    """All texts of all contexts, in their order."""
    from transformers import GenerationConfig, LogitsProcessorList

    encoded = model.config.is_encoder_decoder
    ids, mask = _padded(contexts, ends.pad, next(model.parameters()).device, left=not encoded)
    first = 1 if encoded else ids.shape[1]  # an encoder-decoder's texts come after its start token
    once = [NoRepeat(section.no_repeat_ngram, first)] if section.no_repeat_ngram else []
    out: Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=section.max_new_tokens,
            eos_token_id=list(ends.stop) or None,
            pad_token_id=ends.pad,
            use_cache=not reads_whole(model),
            **settings,
        ),
        logits_processor=LogitsProcessorList(once),
    )
    return [_before(row, ends.stop) for row in out[:, first:].tolist()]


def _before(row: list[int], stop: tuple[int, ...]) -> list[int]:
    """What comes before the first token that ends a text."""
    return row[: next((i for i, token in enumerate(row) if token in stop), len(row))]


def _padded(contexts: list[Sequence[int]], pad: int, device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T]."""
    if not all(contexts):
        raise InputError("Expected contexts of at least one token each; begin them with a token of the model's.")
    T = max(map(len, contexts))
    ids = torch.full((len(contexts), T), pad, device=device)
    mask = torch.zeros_like(ids)
    for row, context in enumerate(contexts):
        place = slice(T - len(context), T) if left else slice(len(context))
        ids[row, place], mask[row, place] = torch.tensor(context, device=device), 1
    return ids, mask


def _batches(contexts: Sequence[Sequence[int]], rows: int) -> Iterator[list[int]]:
    """Places of all contexts, like lengths together."""
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    for start in range(0, len(order), rows):
        yield order[start : start + rows]


@contextmanager
def _ready(model: Any, compute: torch.dtype) -> Iterator[None]:
    """In eval mode, without gradients, and with no other settings for writing than ours; then as it was."""
    from transformers import GenerationConfig

    saved, modes = model.generation_config, {m: m.training for m in model.modules()}
    with ExitStack() as stack:
        for context in (torch.no_grad(), quiet(), products_in(compute, next(model.parameters()).device)):
            stack.enter_context(context)
        stack.callback(_set_back, model, saved, modes)
        model.eval()
        model.generation_config = GenerationConfig(**{name: getattr(saved, name, None) for name in _TOKENS})
        yield


def _set_back(model: Any, saved: Any, modes: dict[nn.Module, bool]) -> None:
    model.generation_config = saved
    for module, training in modes.items():
        module.training = training
