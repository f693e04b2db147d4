"""Reading and writing recipes, and ``--set``."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpft.config import Recipe, dump_recipe, load_recipe, parse_recipe
from dpft.config.load import MAX_BYTES, MAX_LINE
from dpft.errors import InputError

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.toml"
TEXT = QUICKSTART.read_text(encoding="utf-8")


def refusal(content: str | bytes, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_recipe(content, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outcome(content: str | bytes, *overrides: str) -> None:
    """Taken, or refused in one sentence; any other exception fails the test."""
    with suppress(InputError):
        parse_recipe(content, overrides)
        return
    refusal(content, *overrides)


def test_the_quickstart_recipe_is_valid(quickstart: Path) -> None:
    recipe = load_recipe(quickstart)
    assert recipe.name == quickstart.stem
    assert recipe.privacy.examples == 8605


def test_the_quickstart_recipe_explains_each_line() -> None:
    lines = TEXT.splitlines()
    assert lines[0] == "# dpft run recipes/quickstart.toml"
    assert all("#" in line for line in lines if " = " in line)


def test_importing_config_imports_no_heavy_library() -> None:
    code = "import sys, dpft.config; print([m for m in sys.argv if m in sys.modules])"
    heavy = ["torch", "transformers", "datasets"]
    found = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@settings(max_examples=150)
@given(content=st.binary(max_size=200) | st.text(max_size=200) | st.text("[]{}=\"'\n.,#abc019-", max_size=200))
def test_any_content_is_refused_in_one_sentence(content: str | bytes) -> None:
    """F4, I2: nothing but an InputError leaves the loader."""
    refusal(content)


@settings(max_examples=100)
@given(data=st.data())
def test_a_damaged_recipe_is_taken_or_refused(data: st.DataObject) -> None:
    """F4: bytes changed anywhere in a valid recipe."""
    content = bytearray(TEXT.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(content))


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe" + "name = 'a'".encode("utf-16-le"),
        b"name = '\x00'",
        "name = 'a'\0",
        b"#" * (MAX_BYTES + 1),
        b"#" * (MAX_LINE + 1),
        "a = " + "[" * 4000,
        "a = " + "{a=" * 1000,
        "a" + ".a" * 2000 + " = 1",
        "seed = " + "9" * 4090,
        TEXT.replace("epsilon = 6.7", "epsilon = [{" + ".".join("a" * 2000) + " = 1}]"),
        TEXT.replace("seed = 0 ", "seed = 0x" + "f" * 4000),
        "a = 1\na = 2",
        "[data]\n[data]",
        "name = '${HOME}'",
        "name = '$(id)'",
        "include = 'other.toml'",
        "!!python/object/apply:os.system ['id']",
        "",
    ],
)
def test_hostile_recipes_are_refused(content: str | bytes) -> None:
    """I2: object tags, duplicate keys, expansion bombs, environment interpolation."""
    assert len(refusal(content)) < 500


def test_a_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    assert parse_recipe(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()) == parse_recipe(TEXT)


@pytest.mark.parametrize("path", ["missing.toml", ".", "a\0b", "x" * 5000, "/dev/null", ""])
def test_an_unreadable_path_is_named(path: str) -> None:
    with pytest.raises(InputError, match="recipe"):
        load_recipe(path)


def test_overrides_change_one_field_and_the_last_wins() -> None:
    changed = parse_recipe(
        TEXT, ["privacy.epsilon=3", "privacy.epsilon = 8", "name=trial", "data.labels=['no', 'yes']"]
    )
    assert (changed.privacy.epsilon, changed.name, changed.data.labels) == (8.0, "trial", ("no", "yes"))
    assert changed.optimizer == parse_recipe(TEXT).optimizer


def test_an_empty_override_removes_the_field() -> None:
    changed = parse_recipe(TEXT, ["privacy.epsilon=", "privacy.noise_multiplier=1.1", "model.feature_norm="])
    assert (changed.privacy.epsilon, changed.privacy.noise_multiplier) == (None, 1.1)
    assert changed.model.feature_norm is None


def test_an_override_may_open_a_section() -> None:
    text = TEXT.partition("[train]")[0]
    assert parse_recipe(text, ["train.token_budget=512"]).train.token_budget == 512


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("privacy.epsilom=3", 'did you mean "privacy.epsilon"?'),
        ("privacy.epsilon=three", "privacy.epsilon"),
        ("privacy.epsilon=1\nprivacy.clip=1e9", "privacy.epsilon"),
        ("privacy.epsilon", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("privacy.epsilon.x=3", "expected key=value"),
        ("name.x=3", "is no table"),
        ("data.trust_remote_code=true", "can't be set from a recipe"),
        ("name=" + "x" * 5000, "at most 4096"),
        ("x" * 5000 + "=1", "is not a field"),
        ("data.labels=" + "[" * 4000, "data.labels"),
        ("seed=" + "9" * 4090, "seed"),
        ("name=\udcff", "name"),
    ],
)
def test_a_wrong_override_names_its_field(override: str, part: str) -> None:
    """F4: overrides are checked like the recipe itself."""
    assert part in refusal(TEXT, override)


@settings(max_examples=200)
@given(
    key=st.sampled_from(["name", "seed", "data.labels", "privacy.epsilon", "data", "x"]) | st.text(max_size=10),
    value=st.text(max_size=30) | st.text("[]{}='\"0123456789.e+-_tf\n", max_size=30),
)
def test_any_override_is_taken_or_refused(key: str, value: str) -> None:
    outcome(TEXT, f"{key}={value}")


def test_overriding_leaves_no_trace_between_calls() -> None:
    before = parse_recipe(TEXT)
    parse_recipe(TEXT, ["data.heldout=0.5"])
    assert parse_recipe(TEXT) == before


not_surrogates = st.characters(exclude_categories=("Cs",))
words = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=30).filter(
    lambda s: s == s.strip()
)


@settings(max_examples=100)
@given(
    unit=words,
    labels=st.lists(words, min_size=2, max_size=2, unique=True),
    lr=st.floats(1e-300, 1e38),
    seed=st.integers(0, 2**63 - 1),
    literal=st.text(not_surrogates, max_size=20),
)
def test_a_written_recipe_reads_back_the_same(unit: str, labels: list[str], lr: float, seed: int, literal: str) -> None:
    """E6, F5: ``run.toml`` says exactly what ran."""
    recipe = parse_recipe(TEXT)
    escaped = (
        "".join(c for c in literal if (c >= " " and c != "\x7f") or c in "\n\t").replace("{", "{{").replace("}", "}}")
    )
    data = recipe.data.model_copy(update={"unit": unit, "labels": tuple(labels), "template": escaped + "{text}"})
    optimizer = recipe.optimizer.model_copy(update={"lr": lr})
    recipe = recipe.model_copy(update={"seed": seed, "data": data, "optimizer": optimizer})
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert dump_recipe(parse_recipe(dump_recipe(recipe))) == dump_recipe(recipe)


def test_absent_values_stay_absent_when_written() -> None:
    recipe = parse_recipe(TEXT, ["model.feature_norm=", "method.alpha="])
    assert "feature_norm" not in dump_recipe(recipe)
    assert isinstance(parse_recipe(dump_recipe(recipe)), Recipe)
