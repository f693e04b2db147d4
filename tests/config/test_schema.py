"""What a recipe may say, field by field and between fields."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from dpft.config import OptimizerSection, PrivacySection, Recipe, validate
from dpft.config.base import Section
from dpft.config.explain import explain, field_descriptions
from dpft.config.method_section import LoRASection
from dpft.errors import InputError

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
VALUES = tomllib.loads(QUICKSTART.read_text(encoding="utf-8"))
# The sections that the quickstart goes without.
VALUES["ledger"] = {"file": "books.jsonl", "dataset": "films"}
VALUES["beside"] = {"name": "lora"}
VALUES["start"] = {"run": "runs/first"}
VALUES["public"] = {"source": "csv", "path": "public.csv", "labels": VALUES["data"]["labels"], "max_length": 64}
FIGURES = (
    "private", "nonprivate", "same_method", "epsilon_claimed", "delta_claimed", "rate_claimed", "noise_claimed",
    "epsilon_pld", "parameters",
)  # fmt: skip
VALUES["expected"] = {
    "source": "a paper",
    "metric": "accuracy",
    **{name: {"value": 1, "provenance": "computed"} for name in FIGURES},
    **{name: {"provenance": "computed"} for name in ("also_private", "also_nonprivate")},
}
DESCRIBED = dict(field_descriptions(Recipe, tag="lora"))  # the other methods: test_method_section.py
FIELDS = [name for name in DESCRIBED if "." in name]
PRIVACY = {"epsilon": 8, "delta": 1e-5, "examples": 1000, "expected_batch": 100, "epochs": 3}


def bent(place: str, value: object) -> dict[str, Any]:
    values = copy.deepcopy(VALUES)
    *sections, leaf = place.split(".")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
    table[leaf] = value
    return values


def message(values: dict[str, Any], model: type[Section] = Recipe, prefix: str = "") -> str:
    with pytest.raises(InputError) as caught:
        validate(model, values, prefix)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return text


def outcome(model: type[Section], values: dict[str, Any], prefix: str = "") -> str:
    """The refusal, or nothing where the values are taken; any other exception fails the test."""
    try:
        validate(model, values, prefix)
    except InputError as error:
        return str(error)
    return ""


def without(values: dict[str, Any], *names: str, **more: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names} | more


def test_every_field_says_what_it_is() -> None:
    assert all(DESCRIBED.values())


@pytest.mark.parametrize("place", DESCRIBED)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(position=st.integers(0, 30), letter=st.sampled_from("xq_7"))
def test_a_misspelt_key_is_refused_and_the_nearest_is_named(place: str, position: int, letter: str) -> None:
    """F4: misspell every key."""
    section, _, leaf = place.rpartition(".")
    position %= len(leaf) + 1
    misspelt = leaf[:position] + letter + leaf[position:]
    wrong_place = f"{section}.{misspelt}" if section else misspelt
    assert message(bent(wrong_place, 1)) == f'{wrong_place} is not a field of a recipe; did you mean "{place}"?'


@pytest.mark.parametrize(("key", "nearest"), [("lr", "optimizer.lr"), ("data.epsilon", "privacy.epsilon")])
def test_a_key_in_the_wrong_section_is_pointed_to_its_own(key: str, nearest: str) -> None:
    assert f'did you mean "{nearest}"?' in message(bent(key, 1))


def test_a_key_like_no_other_lists_the_fields_there() -> None:
    assert message(bent("zzz", 1)).endswith(
        "the fields here are: name, seed, data, model, method, privacy, optimizer, train, evaluate, "
        "beside, ledger, cache, start, generate, public, expected."
    )


@pytest.mark.parametrize("section", ["data", "model", "method"])
@pytest.mark.parametrize("key", ["trust_remote_code", "trust-remote-code", "Trust_Remote_Code"])
def test_remote_code_cannot_be_asked_for(section: str, key: str) -> None:
    """I3: no remote code from a config."""
    assert "can't be set from a recipe" in message(bent(f"{section}.{key}", True))


@pytest.mark.parametrize("place", FIELDS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
        max_leaves=4,
    )
)
def test_any_value_is_taken_or_refused_in_one_sentence(place: str, value: object) -> None:
    """F4: bad configuration is an error that names its field's section."""
    refusal = outcome(Recipe, bent(place, value))
    assert place.partition(".")[0] in (refusal or place)
    assert "\n" not in refusal
    assert len(refusal) < 400


@pytest.mark.parametrize("place", [*FIELDS, "seed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1, -0.5])
def test_nan_infinities_and_negatives_are_refused(place: str, value: float) -> None:
    """F4: NaN, negatives, C = inf."""
    assert message(bent(place, value)).startswith(place)


@pytest.mark.parametrize(
    "place",
    [
        "privacy.clip",
        "privacy.epsilon",
        "privacy.delta",
        "privacy.epochs",
        "privacy.expected_batch",
        "optimizer.lr",
        "data.max_length",
    ],
)
def test_zero_is_refused_where_it_would_switch_privacy_or_learning_off(place: str) -> None:
    """F4: sigma = 0 and its like."""
    assert message(bent(place, 0)).startswith(place)


def test_zero_noise_is_refused() -> None:
    """F4: sigma = 0."""
    values = without(PRIVACY, "epsilon", noise_multiplier=0.0)
    assert message(values, PrivacySection, "privacy").startswith("privacy.noise_multiplier")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("data.max_length", "8"),
        ("seed", "8"),
        ("seed", 1.0),
        ("seed", True),
        ("privacy.epsilon", "8"),
        ("privacy.epsilon", True),
        ("name", 8),
        ("model.dropout", 0),
        ("model.dropout", "false"),
    ],
)
def test_a_value_of_another_type_is_not_converted(place: str, value: object) -> None:
    assert message(bent(place, value)).startswith(place)


def test_a_whole_number_is_a_number() -> None:
    assert validate(Recipe, bent("privacy.epsilon", 8)).privacy.epsilon == 8.0


def test_a_recipe_is_frozen() -> None:
    recipe = validate(Recipe, VALUES)
    with pytest.raises(ValidationError):
        recipe.privacy.epsilon = 1e9  # type: ignore[misc]
    assert isinstance(recipe.method.targets, tuple)
    hash(recipe)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "A", "a b", "a\n", "é", "a\0", "x" * 101])
def test_hostile_run_names_are_refused(name: str) -> None:
    """I4: traversal, absolute and NUL names."""
    assert message(bent("name", name)).startswith("name")


def test_required_fields_are_asked_for() -> None:
    assert message(without(VALUES, "data")) == "data (the records) is missing; add it to the recipe."
    assert "data.unit" in message({**VALUES, "data": without(VALUES["data"], "unit")})
    assert "privacy.delta" in message({**VALUES, "privacy": without(VALUES["privacy"], "delta")})


@pytest.mark.parametrize(
    ("one", "other"), [("epsilon", "noise_multiplier"), ("examples", "sample_rate"), ("epochs", "steps")]
)
def test_exactly_one_of_each_pair(one: str, other: str) -> None:
    neither = message(without(PRIVACY, one), PrivacySection, "privacy")
    both = message({**PRIVACY, other: 1}, PrivacySection, "privacy")
    assert neither == f"privacy.{one}: expected exactly one of {one} and {other}, found neither; set one."
    assert both == f"privacy.{one}: expected exactly one of {one} and {other}, found both; leave one out."


def test_delta_must_promise_something() -> None:
    """E6: delta >= 1/N refused."""
    assert "privacy.delta" in message({**PRIVACY, "delta": 1e-3}, PrivacySection, "privacy")
    validate(PrivacySection, {**PRIVACY, "delta": 0.999e-3})


def test_adjacency_follows_from_what_is_public() -> None:
    """D5, E6: which adjacency treats the number of records as public."""
    assert validate(PrivacySection, PRIVACY).adjacency == "zero_out"
    assert validate(PrivacySection, without(PRIVACY, "examples", sample_rate=0.1)).adjacency == "add_remove"


def test_a_batch_is_no_larger_than_the_data() -> None:
    assert "privacy.expected_batch" in message({**PRIVACY, "expected_batch": 1001}, PrivacySection, "privacy")


@pytest.mark.parametrize(
    "change",
    [
        {"targets": ["a.b"]},
        {"targets": ["a", "a"]},
        {"rank": 0},
        {"targets": "query"},
        {"alpha": 0},
    ],
)
def test_lora_refuses_what_does_not_fit(change: dict[str, object]) -> None:
    assert message({"name": "lora", **change}, LoRASection, "method").startswith(f"method.{next(iter(change))}")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("betas", {"name": "sgd", "betas": [0.9, 0.99]}),
        ("eps", {"name": "sgd", "eps": 1e-6}),
        ("noise_floor", {"noise_floor": 1.0}),
        ("scale_every", {"scale_every": 5}),
        ("average_decay", {"average": "tail", "average_decay": 0.9}),
        ("average_tail", {"average": "ema", "average_tail": 0.5}),
        ("betas", {"betas": [0.9, 1.0]}),
        ("betas", {"betas": [0.9]}),
    ],
)
def test_a_setting_of_another_optimizer_or_average_is_refused(field: str, values: dict[str, object]) -> None:
    assert message(values, OptimizerSection, "optimizer").startswith(f"optimizer.{field}")


def test_a_noise_for_each_coordinate_and_one_for_all_exclude_each_other() -> None:
    values = {"name": "adam-bc", "scale": "privatised"}
    assert message(values, OptimizerSection, "optimizer").startswith("optimizer.scale")


def test_a_local_model_has_no_revision() -> None:
    assert message(bent("model.revision", "main")).startswith("model.revision")


def test_the_longest_record_fits_a_micro_batch() -> None:
    assert message(bent("train.token_budget", 63)).startswith("train.token_budget: expected at least")


def test_a_near_choice_is_suggested() -> None:
    assert message(bent("optimizer.name", "adamm")).endswith('did you mean "adam"?')


@pytest.mark.parametrize("other", [{"cache": {}}, {"method": {"name": "lst"}}])
def test_nothing_is_recomputed_that_is_not_kept(other: dict[str, object]) -> None:
    assert message({**bent("train.recompute", True), **other}).startswith("train.recompute: ")


class _Other(Section):
    name: Literal["other"]
    width: int = Field(description="a width")


class _TwoMethods(Section):
    method: Annotated[LoRASection | _Other, Field(discriminator="name", description="the method")]


@pytest.mark.parametrize(
    ("method", "start"),
    [
        ({"name": "other", "width": "1"}, "method.width (a width): expected a whole number"),
        ({"name": "other", "widht": 1, "width": 1}, "method.widht is not a field of a recipe; did you mean"),
        ({"name": "lora", "targets": ["a.b"]}, "method.targets: expected last components"),
        ({"name": "else"}, 'method.name (the method): expected one of lora, other, found the text "else".'),
        (
            {"name": "othr"},
            'method.name (the method): expected one of lora, other, found the text "othr"; did you mean',
        ),
        ({"name": ["lora"]}, "method.name (the method): expected one of lora, other, found an array."),
        ({}, "method.name (the method) is missing; add one of lora, other."),
    ],
)
def test_errors_read_the_same_once_there_are_two_methods(method: dict[str, object], start: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _TwoMethods.model_validate({"method": method})
    assert str(explain(caught.value, _TwoMethods)).startswith(start)
