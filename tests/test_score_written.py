"""From held-out sources and public prompts to figures and samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from dpft.config.generate_section import GenerateSection
from dpft.score_written import Source, grouped, samples, written_scores

SENTINEL = "private-sentinel-7261"
SECTION = GenerateSection(max_new_tokens=7, metrics=("bleu", "rouge-l", "cider"), samples=2)
CONTEXTS = ((5, 9, 7), (4, 6), (8, 8, 3), (12,))


class Letters:
    """A tokenizer whose tokens are words of one letter; 0 to 2 are special."""

    eos_token_id, pad_token_id, bos_token_id = 2, 0, 1

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(word) - ord("a") for word in text.split()]}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return " " + " ".join(chr(ord("a") + i) for i in ids if i > 2 or not skip_special_tokens)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=23, eos_token_id=2)
    model: Any = hf.GPT2LMHeadModel._from_config(config).eval()
    torch.nn.init.normal_(model.transformer.wte.weight, 0, 1.0)
    return model


def texts(model: Any) -> list[str]:
    """What it writes, by transformers alone, one source at a time."""
    found = []
    for context in CONTEXTS:
        ids = torch.tensor([context])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False, pad_token_id=0
        )
        found.append(Letters().decode(out[0, len(context) :].tolist(), skip_special_tokens=True).strip())
    return found


def test_sources_are_told_apart_by_their_rendered_context() -> None:
    records = [("a", [1, 2], "x"), ("b", [3], "y"), ("a", [1, 2], "z"), ("a c", [1, 2], "x"), ("b", [3], "y")]
    assert grouped(records) == [
        Source((1, 2), ("x", "z")),
        Source((3,), ("y", "y")),
        Source((1, 2), ("x",)),
    ]
    assert SENTINEL not in repr(grouped([(SENTINEL, [7261], SENTINEL)]))
    assert "7261" not in repr(grouped([(SENTINEL, [7261], SENTINEL)]))


def test_a_model_that_writes_a_reference_of_each_source_has_the_most(model: Any) -> None:
    sources = [Source(c, ("w w w w w", text)) for c, text in zip(CONTEXTS, texts(model), strict=True)]
    found = written_scores(model, Letters(), sources, SECTION)
    assert found["bleu"] == pytest.approx(100)
    assert found["rouge-l"] == pytest.approx(100)
    assert isinstance(found["cider"], float)
    turned = [Source(s.context_ids, t.references) for s, t in zip(sources, sources[1:] + sources[:1], strict=True)]
    worse = written_scores(model, Letters(), turned, SECTION)
    assert all(worse[name] < found[name] for name in SECTION.metrics)  # type: ignore[operator]


def test_the_first_sources_count_where_there_is_a_limit(model: Any) -> None:
    sources = [Source(c, (text,)) for c, text in zip(CONTEXTS, texts(model), strict=True)]
    wrong = [Source(s.context_ids, ("w w w w w",)) for s in sources]
    limited = SECTION.model_copy(update={"limit": 2})
    assert written_scores(model, Letters(), [*sources[:2], *wrong[2:]], limited)["bleu"] == pytest.approx(100)
    assert written_scores(model, Letters(), [*wrong[:1], *sources[1:]], limited)["bleu"] != pytest.approx(100)


def test_without_metrics_nothing_is_written() -> None:
    section = GenerateSection()
    assert written_scores(None, None, [Source((1,), ("a",))], section) == {}


def test_samples_come_with_their_prompts(model: Any) -> None:
    found = samples(model, Letters(), ["e f g", "", "h"], SECTION, seed=3)
    assert [prompt for prompt, _ in found] == ["e f g", "", "h"]
    assert all(len(written) == 2 for _, written in found)
    assert found == samples(model, Letters(), ["e f g", "", "h"], SECTION, seed=3)
    turned = samples(model, Letters(), ["e f g"], SECTION, seed=3, encode=lambda p: Letters()(p)["input_ids"][::-1])
    assert turned == [("e f g", samples(model, Letters(), ["g f e"], SECTION, seed=3)[0][1])]
    assert found[1][1] == samples(model, Letters(), ["b"], SECTION, seed=3)[0][1]  # which is the first token of a text
