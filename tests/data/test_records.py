"""Keys, rendering, the held-out split and the fingerprint."""

from __future__ import annotations

import hashlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpft.data import Record, fingerprint, is_held_out, record_key, render, split_held_out

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
records = st.builds(Record, texts, st.none() | texts, st.integers(0, 3))
SENTINEL = "private-sentinel-7261"


@given(one=records, other=records)
def test_keys_differ_exactly_where_texts_differ(one: Record, other: Record) -> None:
    same = (one.text, one.text_pair) == (other.text, other.text_pair)
    assert (record_key(one) == record_key(other)) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", None), ("a", "")),
        (("", "a"), ("a", "")),
        (("a\0", "b"), ("a", "\0b")),
    ],
)
def test_texts_that_run_together_have_different_keys(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert record_key(Record(*one, 0)) != record_key(Record(*other, 0))


def test_the_key_ignores_the_label_and_is_domain_separated() -> None:
    assert record_key(Record("a", None, 0)) == record_key(Record("a", None, 1))
    assert record_key(Record("a", None, 0)) != hashlib.sha256(b"a").digest()


def test_the_key_and_the_split_never_change() -> None:
    """A pinned value: another one would silently move records between training and evaluation."""
    key = record_key(Record("A fine film.", None, 1))
    assert key.hex() == "bf6d9e3b7ebd265136c4a26a562d3572f34253ef36e6dc9648113fd2fb5afc38"
    held = [is_held_out(Record(f"sentence {i}", None, 0), 0.3) for i in range(12)]
    assert [i for i, side in enumerate(held) if side] == [0, 4, 5, 6]


def test_a_record_does_not_show_its_text() -> None:
    """F2: nothing private in logs or tracebacks that print a record."""
    record = Record(SENTINEL, SENTINEL, 1)
    assert SENTINEL not in f"{record!r} {record}"
    assert pickle.loads(pickle.dumps(record)) == record


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{text}", ("a{text_pair}", "b")),
        ("Q: {text}\nA:", ("Q: a{text_pair}\nA:", "b")),
        ("{text} [{text_pair}]", ("a{text_pair} [b]", None)),
        ("{{{text}}}", ("{a{text_pair}}", "b")),
    ],
)
def test_rendering(template: str, expected: tuple[str, str | None]) -> None:
    """I2: braces inside a record's text are text."""
    assert render(Record("a{text_pair}", "b", 0), template) == expected


@given(data=st.lists(records, max_size=30), fraction=st.floats(0, 0.99), index=st.integers(0, 29))
def test_removing_a_record_moves_no_other(data: list[Record], fraction: float, index: int) -> None:
    """F1: prepared D and D minus one record differ in one item."""
    train, heldout = split_held_out(data, fraction)
    assert len(train) + len(heldout) == len(data)
    if index < len(data):
        fewer_train, fewer_heldout = split_held_out(data[:index] + data[index + 1 :], fraction)
        side, fewer = (heldout, fewer_heldout) if is_held_out(data[index], fraction) else (train, fewer_train)
        other, other_before = (fewer_train, train) if side is heldout else (fewer_heldout, heldout)
        assert other == other_before
        assert len(fewer) == len(side) - 1
        assert sorted(map(hash, (*fewer, data[index]))) == sorted(map(hash, side))


@given(record=records, fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)), label=st.integers(0, 3))
def test_sides_are_nested_and_shared_by_duplicates(record: Record, fractions: tuple[float, float], label: int) -> None:
    low, high = sorted(fractions)
    assert is_held_out(record, high) or not is_held_out(record, low)
    duplicate = Record(record.text, record.text_pair, label)
    assert is_held_out(duplicate, low) == is_held_out(record, low)


def test_nothing_is_held_out_at_zero_and_about_the_fraction_otherwise() -> None:
    data = [Record(f"sentence {i}", None, 0) for i in range(4000)]
    assert split_held_out(data, 0.0) == (tuple(data), ())
    # Binomial(4000, 0.25): mean 1000, standard deviation 27; the draw is fixed, five deviations are generous.
    assert abs(len(split_held_out(data, 0.25)[1]) - 1000) < 5 * 28


@given(data=st.lists(records, min_size=1, max_size=6, unique_by=record_key), index=st.integers(0, 5))
def test_the_fingerprint_sees_text_label_order_and_count(data: list[Record], index: int) -> None:
    """E2: a changed data fingerprint is noticed on resume."""
    index %= len(data)
    record = data[index]
    relabelled = Record(record.text, record.text_pair, record.label + 1)
    original = fingerprint(data)
    assert fingerprint(list(data)) == original
    assert fingerprint(data[:index] + data[index + 1 :]) != original
    assert fingerprint([*data[:index], relabelled, *data[index + 1 :]]) != original
    assert (fingerprint(data[::-1]) == original) == (len(data) == 1)
