"""The ``[method]`` table: the same fields as the methods' own, good errors in a union, presets, and ``--set``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dpft.config.explain as explain_module
import dpft.config.method_section as module
from dpft.config import MethodSection, Recipe, dump_recipe, parse_recipe, validate
from dpft.config.base import Section
from dpft.config.explain import field_descriptions
from dpft.config.presets import PRESETS
from dpft.errors import InputError

TEXT = (Path(__file__).parents[2] / "recipes" / "quickstart.toml").read_text(encoding="utf-8")
SECTIONS: dict[str, type[Section]] = {
    get_args(section.model_fields["name"].annotation)[0]: section for section in get_args(get_args(MethodSection)[0])
}
LEAST: dict[str, dict[str, object]] = {name: {"name": name} for name in SECTIONS}
LEAST["tokens"]["tokens"] = [5]
FIELDS = [(name, field) for name, section in SECTIONS.items() for field in section.model_fields]
LEAVE_LORA = ["method.rank=", "method.alpha=", "method.targets="]


def recipe_values(**method: object) -> dict[str, Any]:
    from dpft.config.load import _toml

    return {**_toml(TEXT), "method": method}


def message(**method: object) -> str:
    with pytest.raises(InputError) as caught:
        validate(Recipe, recipe_values(**method))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def checked(method: dict[str, Any]) -> None:
    """Taken, or refused in one sentence about ``[method]``; any other exception fails the test."""
    refusal = ""
    try:
        validate(Recipe, recipe_values(**method))
    except InputError as error:
        refusal = str(error)
    assert (refusal or "method").startswith("method")
    assert "\n" not in refusal
    assert len(refusal) < 400


def refusal(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_recipe(TEXT, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_its_methods_dataclass(name: str) -> None:
    """The recipe's fields and defaults, and those of the library, are the same."""
    from dpft.peft.registry import METHODS, method_from, section_of

    method = METHODS[name]
    assert dataclasses.is_dataclass(method)
    fields = {f.name: f.default for f in dataclasses.fields(method)}
    section = {key: f.default for key, f in SECTIONS[name].model_fields.items() if key != "name"}
    assert section == fields
    # And what a recipe resolves to builds the method that says the same of itself.
    made = validate(Recipe, recipe_values(**LEAST[name])).method.model_dump()
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in made.items()}
    assert section_of(method_from(made)) == plain


def test_every_method_has_a_section() -> None:
    from dpft.peft.registry import METHODS

    assert set(SECTIONS) == set(METHODS)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_field_says_what_it_is(name: str) -> None:
    assert all(dict(field_descriptions(SECTIONS[name])).values())
    assert SECTIONS[name].__doc__


@pytest.mark.parametrize("name", SECTIONS)
def test_a_written_recipe_reads_back_the_same(name: str) -> None:
    recipe = validate(Recipe, recipe_values(**LEAST[name]))
    assert recipe.method.name == name
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(("name", "field"), FIELDS)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(position=st.integers(0, 30), letter=st.sampled_from("xq_7"))
def test_a_misspelt_key_is_refused_and_the_nearest_is_named(name: str, field: str, position: int, letter: str) -> None:
    """F4."""
    position %= len(field) + 1
    misspelt = field[:position] + letter + field[position:]
    expected = f'method.{misspelt} is not a field of a recipe; did you mean "method.{field}"?'
    assert message(**LEAST[name], **{misspelt: 1}) == expected


@pytest.mark.parametrize(("name", "field"), FIELDS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
        max_leaves=4,
    )
)
def test_any_value_is_taken_or_refused_in_one_sentence(name: str, field: str, value: object) -> None:
    """F4."""
    checked({**LEAST[name], field: value})


@settings(max_examples=60)
@given(section=st.dictionaries(st.sampled_from(sorted({f for _, f in FIELDS})), st.integers() | st.text(), max_size=6))
def test_any_mixture_of_fields_is_taken_or_refused_in_one_sentence(section: dict[str, object]) -> None:
    checked(section)


@pytest.mark.parametrize("value", [5, "lora", [], True])
def test_a_method_that_is_no_table_is_refused(value: object) -> None:
    values = {**recipe_values(), "method": value}
    with pytest.raises(InputError, match=r"^method \(.*\): expected a table, found"):
        validate(Recipe, values)


def test_an_unknown_method_names_the_nearest() -> None:
    text = message(name="bitfti")
    assert text.startswith("method.name (the parameters that are added and trained): expected one of lora, bitfit,")
    assert text.endswith('found the text "bitfti"; did you mean "bitfit"?')
    assert message(name="zzzz").endswith('found the text "zzzz".')
    assert message(name=5).endswith("found 5.")


def test_a_method_without_a_name_lists_them() -> None:
    assert "is missing; add one of lora, bitfit" in message(rank=4)


@pytest.mark.parametrize(
    ("method", "start"),
    [
        ({"name": "last-k", "k": "1"}, "method.k (how many of the last transformer blocks train): expected a whole"),
        ({"name": "last-k", "k": 0}, "method.k (how many of the last transformer blocks train): expected a value of"),
        ({"name": "last-k", "k": True}, "method.k (how many"),
        ({"name": "full", "targets": ["query:q"]}, "method.targets: expected whole layers"),
        ({"name": "full", "targets": ["a.b"]}, "method.targets: expected last components"),
        ({"name": "full", "targets": ["all-linear", "b"]}, 'method.targets: expected "all-linear" by itself'),
        ({"name": "full", "biases": 1}, "method.biases (whether biases train too): expected true or false"),
        ({"name": "lora", "targets": ["c_attn:z"]}, "method.targets: expected q, k or v after the colon"),
        ({"name": "lora", "rslora": True}, "method.rslora: scales by alpha/sqrt(rank)"),
        ({"name": "lora", "init": "kaimin"}, "method.init (how A starts): expected 'kaiming' or 'xavier'"),
        ({"name": "ia3", "targets": ["key"]}, "method.targets: needs method.feedforward beside it"),
        ({"name": "ia3", "feedforward": ["wo"]}, "method.feedforward: needs method.targets beside it"),
        ({"name": "tokens"}, "method.tokens: expected at least one token id"),
        ({"name": "tokens", "tokens": [3, 3]}, "method.tokens: expected each"),
        ({"name": "tokens", "tokens": [3, -1]}, "method.tokens[1] (the ids of the tokens whose rows train): expected"),
        ({"name": "tokens", "tokens": ["a"]}, "method.tokens[0] (the ids of the tokens whose rows train): expected"),
        ({"name": "tokens", "tokens": [3], "token": 3}, "method.token is not a field of a recipe; did you mean"),
        ({"name": "adapter", "bottleneck": 8, "reduction": 4}, "method.bottleneck: expected either bottleneck or"),
        ({"name": "adapter", "init": "private"}, "method.init (how the added layers start): expected 'zero', 'normal'"),
        ({"name": "compacter", "n": 0}, "method.n (the number of Kronecker terms"),
        ({"name": "bitfit", "zzz": 3}, "method.zzz is not a field of a recipe; the fields here are: name."),
    ],
)
def test_a_fault_within_the_union_reads_as_in_any_section(method: dict[str, object], start: str) -> None:
    assert message(**method).startswith(start)


def test_a_part_of_a_fused_projection_may_be_named() -> None:
    assert parse_recipe(TEXT, ["method.targets=['c_attn:q', 'c_attn:v']"]).method.targets == ("c_attn:q", "c_attn:v")  # type: ignore[union-attr]


def test_another_method_on_the_command_line() -> None:
    """What the recipe's own method left over is named, with the way to take it out; then it works."""
    assert refusal("method.name=bitfit") == (
        "method.rank, method.alpha, method.targets are no fields of the method bitfit; remove them "
        "(on the command line: --set method.rank= --set method.alpha= --set method.targets=)."
    )
    assert refusal("method.name=full").startswith("method.rank, method.alpha are no fields of the method full")
    assert refusal("method.name=bitfit", *LEAVE_LORA[1:]).startswith("method.rank is no field of the method bitfit; ")
    assert parse_recipe(TEXT, ["method.name=bitfit", *LEAVE_LORA]).method.name == "bitfit"


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> str:
    """A preset of the tests' own, beside the published ones."""
    made = {**PRESETS, "tests-own": {"name": "lora", "rank": 3, "alpha": 6.0, "targets": ["query"]}}
    monkeypatch.setattr(module, "PRESETS", made)
    monkeypatch.setattr(explain_module, "PRESETS", made)
    return "tests-own"


def test_a_preset_is_resolved_and_own_fields_win(preset: str) -> None:
    recipe = validate(Recipe, recipe_values(name=preset, rank=16))
    assert recipe.method.model_dump()["rank"] == 16
    written = dump_recipe(recipe)
    assert 'name = "lora"\nrank = 16\nalpha = 6.0\ntargets = ["query"]' in written
    assert preset not in written
    assert parse_recipe(written) == recipe


def test_faults_beside_a_preset_speak_of_its_method(preset: str) -> None:
    assert message(name=preset, rnk=16).endswith('did you mean "method.rank"?')
    assert message(name=preset, k=16).startswith("method.k is no field of the method lora; remove it")
    assert message(name=preset[:-1]).endswith(f'did you mean "{preset}"?')


SIZED = [n for n, s in PRESETS.items() if {"bottleneck", "reduction"} & s.keys() and s["name"] != "lst"]


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize(("own", "other"), [("bottleneck", "reduction"), ("reduction", "bottleneck")])
def test_a_size_of_its_own_takes_the_place_of_the_presets(name: str, own: str, other: str) -> None:
    made = validate(Recipe, recipe_values(name=name, **{own: 8})).method.model_dump()
    assert (made[own], made[other]) == (8, None)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_method(name: str) -> None:
    made = validate(Recipe, recipe_values(name=name)).method
    assert made.name == PRESETS[name]["name"]
    assert name not in SECTIONS
