"""A prompt of real tokens computes what these tokens compute when they stand in the text: for every family, padded on
either side, in a task model, in a cache and in generate()."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.interop.peft_tuner import DPFTConfig
from dpft.models.classifier import TextClassifier
from dpft.peft import PromptTuning, attach
from dpft.peft.families import FAMILIES, backbone
from dpft.peft.soft_prompt import SoftPrompt, check_room, cost, host_of, inserted, without

TEXT = [f for f in FAMILIES if FAMILIES[f].tokens]
PLAIN = {"deberta-v2": "eager"}  # has no other
WORDS = torch.tensor([7, 3, 11])
LENGTHS = (6, 4, 2, 3)


def batch(side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask [4, 6]; no id is 0 or 1, which are padding in some family, except for padding."""
    ids = torch.randint(3, 23, (4, 6), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    return ids, mask


def padded(ids: Tensor, mask: Tensor, host: nn.Module) -> Tensor:
    """Padding as the family's tokenizer writes it, since RoBERTa and MPNet tell it by its id."""
    pad = getattr(getattr(host, "embeddings", None), "padding_idx", None)
    return ids.masked_fill(mask == 0, 0 if pad is None else pad)


def with_words(ids: Tensor, mask: Tensor, behind: int) -> tuple[Tensor, Tensor, Tensor]:
    """The words written into each text, before or behind its first token; and where its own tokens are now."""
    rows, places = [], []
    for row, m in zip(ids.tolist(), mask.tolist(), strict=True):
        at = m.index(1) + behind
        rows.append(row[:at] + WORDS.tolist() + row[at:])
        places.append([j + (len(WORDS) if j >= at else 0) for j in range(len(row))])
    new = torch.tensor(rows)
    wide = torch.stack([torch.tensor(m[: m.index(1)] + [1] * 3 + m[m.index(1) :]) for m in mask.tolist()])
    return new, wide, torch.tensor(places)


def of_words(model: nn.Module) -> SoftPrompt:
    """Attach a prompt and set it to the embeddings of the words."""
    attach(model, PromptTuning(length=len(WORDS)))
    part: Any = next(m for m in model.modules() if isinstance(m, SoftPrompt))
    part.prompt.data.copy_(host_of(model).get_input_embeddings().weight[WORDS])  # type: ignore[operator]
    return part  # type: ignore[no-any-return]


def same_where(mask: Tensor, found: Tensor, expected: Tensor) -> None:
    """At the tokens; what stands at padding is nobody's."""
    at = mask.bool()
    torch.testing.assert_close(found[at], expected[at], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "attention", "side"),
    [
        (family, attention, side)
        for family in TEXT
        for attention in ("eager", "sdpa")
        for side in ("right", "left")
        if family != "t5" and (attention, family) not in (("sdpa", "deberta-v2"), ("sdpa", "mpnet"))
        # Its eager softmax is in float32, where float64's masked value is -inf: nan where all before is padding.
        if (attention, family, side) != ("eager", "llama", "left")
    ],
)
def test_it_computes_what_its_words_do(
    family: str, side: str, attention: str, tiny_encoder: Callable[..., Any]
) -> None:
    """T5 is seen with its decoder below."""
    model = tiny_encoder(family, attention)
    ids, mask = batch(side)
    ids = padded(ids, mask, model)
    more, wide, places = with_words(ids, mask, int(FAMILIES[family].first_token))
    with torch.no_grad():
        expected = model(input_ids=more, attention_mask=wide, output_hidden_states=True)
        of_words(model)
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        plain = model(input_ids=ids, attention_mask=mask, return_dict=False)
    own = expected.last_hidden_state.gather(1, places.unsqueeze(-1).expand(-1, -1, 16))
    same_where(mask, out.last_hidden_state, own)
    assert torch.equal(plain[0], out.last_hidden_state)
    assert all(h.shape[:2] == ids.shape for h in out.hidden_states)
    if getattr(expected, "pooler_output", None) is not None and side == "right":
        torch.testing.assert_close(out.pooler_output, expected.pooler_output, rtol=1e-9, atol=1e-9)
        pooled = model.pooler(out.last_hidden_state)
        torch.testing.assert_close(out.pooler_output, pooled, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoder_reads_the_prompt_too(side: str, task: Callable[..., Any]) -> None:
    """T5: the mask of cross-attention covers what the encoder gives out, prompt included."""
    model = task("t5").model
    ids, mask = batch(side)
    more, wide, _ = with_words(ids, mask, 0)
    start = torch.randint(3, 23, (4, 5), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = model(input_ids=more, attention_mask=wide, decoder_input_ids=start).logits
        written = model.generate(input_ids=more, attention_mask=wide, max_new_tokens=6, do_sample=False)
        beams = model.generate(input_ids=more, attention_mask=wide, max_new_tokens=6, num_beams=2)
        of_words(model)
        found = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start)
        assert found.encoder_last_hidden_state.shape[1] == 9
        torch.testing.assert_close(found.logits, expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(
            model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False), written
        )
        assert torch.equal(model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, num_beams=2), beams)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("cached", [True, False])
def test_generate_writes_what_it_writes_after_the_words(family: str, cached: bool, task: Callable[..., Any]) -> None:
    """Padded on the left, as generate() wants it; greedy, sampled and by beams."""
    model = task(family, "sdpa").model
    ids, mask = batch("left")
    more, wide, _ = with_words(ids, mask, 0)
    for how in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 2, "do_sample": False}):
        settings: Any = {"max_new_tokens": 5, "use_cache": cached, "min_new_tokens": 5, **how}
        torch.manual_seed(0)
        expected = model.generate(input_ids=more, attention_mask=wide, **settings)[:, 9:]
        prompted = copy.deepcopy(model)
        of_words(prompted)
        torch.manual_seed(0)
        assert torch.equal(prompted.generate(input_ids=ids, attention_mask=mask, **settings)[:, 6:], expected)


def test_a_cache_of_another_model_is_refused(task: Callable[..., Any]) -> None:
    model = task("gpt2").model
    ids, mask = batch("right")
    cache = model(input_ids=ids[:, :2], use_cache=True).past_key_values
    of_words(model)
    with pytest.raises(InputError, match="there is no prompt in these"):
        model(input_ids=ids[:, 2:], past_key_values=cache)
    with pytest.raises(InputError, match="a row an example and a column a token"):
        model(input_ids=ids, attention_mask=mask[:, None, None])
    with pytest.raises(InputError, match="a row an example and a column a token"):
        model(input_ids=ids, attention_mask=torch.ones(4, 9))


@pytest.mark.parametrize("family", ["llama", "t5", "roberta", "deberta-v2", "modernbert"])
def test_padding_on_the_left_moves_nothing(family: str, tiny_encoder: Callable[..., Any]) -> None:
    """Families for which it moves nothing without a prompt: an example is the same alone as beside a longer one."""
    model = tiny_encoder("t5").encoder if family == "t5" else tiny_encoder(family, PLAIN.get(family, "sdpa"))
    ids, mask = batch("left")
    ids = padded(ids, mask, model)
    attach(model, PromptTuning(length=3))
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).last_hidden_state
        for i, n in enumerate(LENGTHS):
            row = slice(6 - n, None)
            alone = model(input_ids=ids[i : i + 1, row], attention_mask=mask[i : i + 1, row]).last_hidden_state
            torch.testing.assert_close(together[i, row], alone[0], rtol=1e-9, atol=1e-9)


def test_positions_that_are_given_go_on_behind_the_prompt(tiny_encoder: Callable[..., Any]) -> None:
    """GPT-2 with positions that don't count padding: an example is the same alone."""
    model = tiny_encoder("gpt2")
    ids, mask = batch("left")
    attach(model, PromptTuning(length=3))
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        alone = model(input_ids=ids[2:3, 4:], position_ids=torch.arange(2)[None]).last_hidden_state
    torch.testing.assert_close(together[2, 4:], alone[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_images_get_it_behind_their_first_token(attention: str, tiny_encoder: Callable[..., Any]) -> None:
    model = tiny_encoder("vit", attention)
    pixels = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    base = copy.deepcopy(model)
    attach(model, PromptTuning(length=3))
    part: Any = model.soft_prompt
    with torch.no_grad():
        h = base.embeddings(pixels)
        h = torch.cat([h[:, :1], part.prompt.expand(3, -1, -1), h[:, 1:]], dim=1)
        for layer in base.layers:
            h = layer(h)
        h = base.layernorm(h)
        out = model(pixels, output_hidden_states=True)
        torch.testing.assert_close(out.last_hidden_state, torch.cat([h[:, :1], h[:, 4:]], dim=1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out.pooler_output, base.pooler(h), rtol=1e-9, atol=1e-9)
        assert all(layer.shape == (3, 5, 16) for layer in out.hidden_states)
        part.enabled = False
        assert torch.equal(model(pixels).last_hidden_state, base(pixels).last_hidden_state)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft of transformers
def test_wherever_the_backbone_stands(tiny_encoder: Callable[..., Any], task: Callable[..., Any]) -> None:
    """By itself, under a classifier, under a task head, under HF peft: the same part in the same place."""
    bare, t = tiny_encoder("bert"), task("bert")
    head: nn.Module = TextClassifier(tiny_encoder("bert"), 2, "mean", None)
    tuned = get_peft_model(tiny_encoder("bert"), DPFTConfig(method=PromptTuning(length=3)))
    for model in (
        attach(bare, PromptTuning(3)),
        attach(head, PromptTuning(3)),
        attach(t.model, PromptTuning(3)),
        tuned,
    ):
        (part,) = (m for m in model.modules() if isinstance(m, SoftPrompt))
        assert backbone(model).soft_prompt is part
        assert next(n for n, p in model.named_parameters() if p.requires_grad).endswith("soft_prompt.prompt")
    ids, mask = batch("right")
    with torch.no_grad():
        assert torch.equal(tuned(ids, mask).last_hidden_state, bare(ids, mask).last_hidden_state)
        with tuned.disable_adapter():
            assert torch.equal(tuned(ids, mask)[0], tiny_encoder("bert")(ids, mask)[0])
        unloaded = tuned.unload()
        assert torch.equal(unloaded(ids, mask)[0], tiny_encoder("bert")(ids, mask)[0])
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in unloaded.modules())


def test_a_bare_capture_sees_every_example(tiny_encoder: Callable[..., Any], agree: Callable[..., Any]) -> None:
    """Without a preflight."""
    model = attach(tiny_encoder("bert"), PromptTuning(length=3))
    ids, mask = batch("right")

    def loss(model: Any, b: dict[str, Tensor]) -> Tensor:
        hidden: Tensor = model(**b).last_hidden_state
        return (hidden[:, 0].sin() * torch.arange(16)).sum(dim=1)

    grads = agree(model, loss, {"input_ids": ids, "attention_mask": mask})
    assert grads["soft_prompt.prompt"].dense().shape == (4, 3, 16)


@pytest.mark.parametrize(("family", "room"), [("bert", 16), ("roberta", 15), ("mpnet", 14), ("gpt2", 16)])
def test_inputs_that_do_not_fit_beside_it_are_refused(family: str, room: int, tiny_encoder: Callable[..., Any]) -> None:
    """Of 16 positions RoBERTa leaves those of the padding's id (0 here) and below unused, MPNet always two."""
    with pytest.raises(InputError, match=f"this model has {room} positions"):
        attach(tiny_encoder(family), PromptTuning(length=room))
    model = attach(tiny_encoder(family), PromptTuning(length=3))
    ids = torch.full((2, room - 3), 5)
    model(input_ids=ids)
    check_room(model, room - 3)
    with pytest.raises(InputError, match=f"at most {room - 3} tokens"):
        model(input_ids=torch.full((2, room - 2), 5))
    with pytest.raises(InputError, match=r"Lower data\.max_length"):
        check_room(model, room - 2)
    check_room(attach(tiny_encoder("llama"), PromptTuning(length=3)), 10_000)


def test_it_weighs_on_memory(tiny_encoder: Callable[..., Any]) -> None:
    """A micro-batch is cut by tokens and the prompt's vectors."""
    assert cost(attach(tiny_encoder("bert"), PromptTuning(length=3)), len)([1, 2]) == 5
    assert cost(tiny_encoder("bert"), len)([1, 2]) == 2


def test_starts(tiny_encoder: Callable[..., Any]) -> None:
    """Rows of the vocabulary, each once while there are enough; or normal; the same for the same seed."""
    table = tiny_encoder("bert").embeddings.word_embeddings.weight
    prompts = [attach(tiny_encoder("bert"), PromptTuning(12), seed=s).soft_prompt.prompt for s in (0, 0, 1)]
    assert torch.equal(prompts[0], prompts[1])
    assert not torch.equal(prompts[0], prompts[2])
    found = [int((table == row).all(dim=1).nonzero()) for row in prompts[0]]
    assert len(set(found)) == 12
    many = attach(tiny_encoder("llama"), PromptTuning(30, init="vocabulary")).soft_prompt.prompt
    assert len(many) == 30
    normal = attach(tiny_encoder("llama"), PromptTuning(400, init="normal", init_std=0.5)).soft_prompt.prompt
    assert float(normal.detach().std()) == pytest.approx(0.5, rel=0.05)
    with pytest.raises(InputError, match="has no vocabulary"):
        attach(tiny_encoder("vit"), PromptTuning(init="vocabulary"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"length": 0}, "length=0"), ({"length": True}, "length=True"), ({"init": "zero"}, "init='zero'"),
     ({"init_std": 0.0}, "init_std=0.0"), ({"init_std": float("inf")}, "init_std=inf")],
)  # fmt: skip
def test_fields_are_checked(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        PromptTuning(**fields)


def test_a_family_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(InputError, match="a family that prompts are tested on"):
        attach(nn.Sequential(nn.Linear(2, 2)), PromptTuning())


@pytest.mark.parametrize("examples", [3, 0])
@pytest.mark.parametrize("start", [0, 1, 4])
def test_insertion_is_cut_and_paste(start: int, examples: int) -> None:
    """And is undone."""
    x, new, at = torch.randn(examples, 4, 2), torch.randn(examples, 2, 2), torch.full((examples,), start)
    expected = torch.cat([x[:, :start], new, x[:, start:]], dim=1)
    assert torch.equal(inserted(x, new, at), expected)
    assert torch.equal(without(expected, at, 2, 6), x)
