"""What is written is the most likely text of the model alone, whatever the batch, the padding and the method."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from dpft.config.generate_section import GenerateSection
from dpft.errors import InputError
from dpft.models.can_write import Ends, check_writing, ends_of
from dpft.models.writing import sample, write
from dpft.peft import Ladder, LoRA, PrefixTuning, PromptTuning, attach

V, NO_END = 23, Ends((), 0)
CONTEXTS = ([5, 9, 7, 3], [4], [8, 8, 3, 4, 17, 6], [11, 3])
_ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": V}
_BART = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
         "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "d_model": 16, "decoder_start_token_id": 1,
         "forced_eos_token_id": None}  # fmt: skip
MODELS: dict[str, tuple[str, Any]] = {
    "gpt2": ("GPT2LMHeadModel", hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **_ENDS)),
    "llama": (
        "LlamaForCausalLM",
        hf.LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                       intermediate_size=24, max_position_embeddings=32, **_ENDS),
    ),
    "t5": (
        "T5ForConditionalGeneration",
        hf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, **_ENDS),
    ),
    "bart": ("BartForConditionalGeneration", hf.BartConfig(**_BART, max_position_embeddings=32, **_ENDS)),
}  # fmt: skip
every_model = pytest.mark.parametrize("name", MODELS)
Section = partial(GenerateSection, max_new_tokens=6)


def made(name: str) -> Any:
    """Random weights in float64, so large that what is likely differs from token to token."""
    cls, config = MODELS[name]
    torch.manual_seed(0)
    model = getattr(hf, cls)._from_config(deepcopy(config)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.5)
    return model


@torch.no_grad()
def next_scores(model: Any, context: list[int], written: list[int]) -> Tensor:
    """log p [V] of the next token, from the whole text at once, unpadded, without a cache."""
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id, *written]
        inputs = {"input_ids": torch.tensor([context]), "decoder_input_ids": torch.tensor([start])}
    else:
        inputs = {"input_ids": torch.tensor([context + written])}
    logits: Tensor = model(**inputs, use_cache=False).logits[0, -1]
    return logits.log_softmax(-1)


def greedy(model: Any, context: list[int], tokens: int = 6, n: int = 0) -> list[int]:
    written: list[int] = []
    for _ in range(tokens):
        scores = next_scores(model, context, written)
        if n:
            tail = written[len(written) + 1 - n :] if n > 1 else []
            runs = [written[i : i + n] for i in range(len(written) + 1 - n)]
            scores[[run[-1] for run in runs if run[:-1] == tail]] = -torch.inf
        written.append(int(scores.argmax()))
    return written


@every_model
def test_greedy_writes_what_a_loop_over_whole_texts_writes(name: str) -> None:
    model = made(name)
    expected = [greedy(model, context) for context in CONTEXTS]
    assert len({tuple(text) for text in expected}) > 1
    assert write(model, CONTEXTS, Section(), NO_END) == expected


@every_model
def test_a_batch_equals_one_at_a_time(name: str) -> None:
    model = made(name)
    section, ends = Section(beams=3, length_penalty=0.8, no_repeat_ngram=2), Ends((2, 7), 0)
    alone = [write(model, [context], section, ends)[0] for context in CONTEXTS]
    assert write(model, CONTEXTS, section, ends) == alone
    assert write(model, [], section, ends) == []


@pytest.mark.parametrize("method", [LoRA(), PromptTuning(length=3), PrefixTuning(length=3, init_std=2.0), Ladder(2)])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_method_writes_as_its_model_computes(name: str, method: Any) -> None:
    model = attach(made(name), method)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    expected = [greedy(model, context) for context in CONTEXTS]
    assert expected != [greedy(made(name), context) for context in CONTEXTS]
    assert write(model, CONTEXTS, Section(), NO_END) == expected


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_as_many_beams_as_tokens_find_the_best_of_all_texts(name: str) -> None:
    model, context = made(name), CONTEXTS[0]
    first = next_scores(model, context, [])
    end = int(first.argmax())  # so that the text of this token alone is the most likely of all, not divided by length
    second = {a: next_scores(model, context, [a]) for a in range(V) if a != end}
    scores = {(a, b): float(first[a] + second[a][b]) for a in second for b in range(V)} | {(end,): float(first[end])}
    for penalty, length in ((0.0, 1), (3.0, 2)):
        best = max((score / len(text) ** penalty, text) for text, score in scores.items())[1]
        assert len(best) == length
        expected = [token for token in best if token != end]
        section = GenerateSection(max_new_tokens=2, beams=V, length_penalty=penalty)
        assert write(model, [context], section, Ends((end,), 0)) == [expected]


@every_model
def test_a_stop_token_ends_the_text_and_is_not_in_it(name: str) -> None:
    model = made(name)
    whole = write(model, CONTEXTS, Section(), NO_END)
    stop = whole[0][2]
    expected = [text[: text.index(stop)] if stop in text else text for text in whole]
    assert expected[0] != whole[0]
    assert write(model, CONTEXTS, Section(), Ends((stop,), 0)) == expected


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_no_run_comes_twice_but_the_context_may_be_copied(name: str, n: int) -> None:
    model, everything = made(name), list(range(3, V))
    contexts = [everything, [*everything[::-1], 5]]
    expected = [greedy(model, context, 8, n) for context in contexts]
    found = write(model, contexts, GenerateSection(max_new_tokens=8, no_repeat_ngram=n), NO_END)
    assert found == expected
    if n == 1:
        assert all(len(set(text)) == 8 for text in found)


def test_what_a_model_was_saved_with_changes_nothing_and_stays() -> None:
    model = made("gpt2")
    expected = write(model, CONTEXTS, Section(), NO_END)
    saved = hf.GenerationConfig(repetition_penalty=9.0, min_new_tokens=6, suppress_tokens=[expected[0][0]], num_beams=2)
    model.generation_config = saved
    model.train()
    model.transformer.drop.eval()
    assert write(model, CONTEXTS, Section(), NO_END) == expected
    assert model.generation_config is saved
    assert model.training
    assert not model.transformer.drop.training


def test_samples_depend_on_the_seed_and_their_own_context_only() -> None:
    model, section = made("gpt2"), Section(samples=3, temperature=2.0)
    state = torch.get_rng_state()
    one = sample(model, CONTEXTS, section, NO_END, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(texts) for texts in one] == [3] * len(CONTEXTS)
    assert len({tuple(text) for text in one[0]}) > 1
    assert sample(model, CONTEXTS[1:], section, NO_END, seed=1) == one[1:]
    assert sample(model, CONTEXTS, section, NO_END, seed=2) != one


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_samples_are_drawn_as_often_as_they_are_likely(name: str) -> None:
    """The first token, from the smallest set of the most likely that has ``top_p``, at the temperature."""
    model, context = made(name), CONTEXTS[0]
    p = (next_scores(model, context, []) / 2).softmax(-1)
    ordered, place = p.sort(descending=True)
    kept = place[(ordered.cumsum(0) - ordered) < 0.8]
    assert 1 < len(kept) < V
    section = GenerateSection(max_new_tokens=1, samples=100, temperature=2.0, top_p=0.8)
    rounds = 20
    drawn = [text[0] for seed in range(rounds) for text in sample(model, [context], section, NO_END, seed)[0]]
    share = torch.bincount(torch.tensor(drawn), minlength=V) / len(drawn)
    expected = torch.zeros(V, dtype=p.dtype).index_copy(0, kept, p[kept] / p[kept].sum())
    assert set(drawn) <= set(kept.tolist())
    assert float((share - expected).abs().max()) < 5 * (0.25 / len(drawn)) ** 0.5


def test_samples_come_from_the_whole_vocabulary() -> None:
    """transformers' own default is the 50 most likely tokens."""
    config = hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, **{**_ENDS, "vocab_size": 100})
    model = hf.GPT2LMHeadModel._from_config(config).eval()
    torch.nn.init.zeros_(model.transformer.wte.weight)  # tied to the head: all tokens are as likely
    drawn = sample(model, [[5]], GenerateSection(max_new_tokens=8, samples=100, top_p=1.0), NO_END, seed=0)
    assert {token for text in drawn[0] for token in text} == set(range(100))


def test_texts_end_where_model_tokenizer_and_recipe_say() -> None:
    model = made("gpt2")
    section = Section(stop=(5, 2))
    assert ends_of(model, SimpleNamespace(eos_token_id=3, pad_token_id=None), section) == Ends((3, 2, 5), 0)
    model.generation_config = hf.GenerationConfig(eos_token_id=[4, 6])
    assert ends_of(model, SimpleNamespace(eos_token_id=None, pad_token_id=None), section) == Ends((4, 6, 5, 2), 4)
    assert ends_of(model, SimpleNamespace(eos_token_id=None, pad_token_id=9), Section()) == Ends((4, 6), 9)


def test_what_can_not_write_is_refused() -> None:
    encoder = hf.BertModel._from_config(hf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    for model in (encoder, torch.nn.Linear(2, 2)):
        with pytest.raises(InputError, match="Expected a model that writes text"):
            check_writing(model, 4, Section())
    for name in ("gpt2", "llama"):
        check_writing(made(name), 26, Section())
        with pytest.raises(InputError, match=r"max_new_tokens=6 and contexts of 27 tokens.*32 positions.*take 33"):
            check_writing(made(name), 27, Section())
    with pytest.raises(InputError, match="at most 29 tokens"):
        check_writing(attach(made("gpt2"), PromptTuning(length=3)), 26, Section())
    check_writing(made("bart"), 32, Section())
    with pytest.raises(InputError, match="32 positions"):
        check_writing(made("bart"), 4, Section(max_new_tokens=32))
    check_writing(made("t5"), 500, Section(max_new_tokens=500))
    check_writing(attach(made("t5"), Ladder(2)), 4, Section())
    with pytest.raises(InputError, match="beams=1"):
        check_writing(attach(made("t5"), Ladder(2)), 4, Section(beams=2))
    with pytest.raises(InputError, match="at least one token"):
        write(made("gpt2"), [[]], Section(), NO_END)


def test_products_run_in_bfloat16_where_asked() -> None:
    model, seen = made("gpt2").float(), []
    model.lm_head.register_forward_hook(lambda _m, _a, out: seen.append(out.dtype))
    write(model, CONTEXTS[:1], Section(), NO_END, torch.bfloat16)
    assert set(seen) == {torch.bfloat16}
