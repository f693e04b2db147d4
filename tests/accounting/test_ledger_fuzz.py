"""Hostile and damaged ledger files: the only answer besides a correct one is LedgerError."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import Budget, Gaussian, Ledger, LedgerError, PoissonGaussian, Unit, chain, replay
from hypothesis import given, settings
from hypothesis import strategies as st


def sample() -> bytes:
    """A ledger with every kind of record but a note."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        with Ledger.open(path, "data", Unit("example", "zero_out", 10**6), Budget(50, 1e-7)) as ledger:
            first = ledger.run("a", PoissonGaussian(0.01, 1.0, 30))
            first.reserve(3)
            first.step()
            first.close()
            second = ledger.run("b", Gaussian(20.0, 2))
            second.reserve()
            second.__exit__(KeyError, None, None)
        return path.read_bytes()


SAMPLE = sample()
LAST = SAMPLE[:-1].rfind(b"\n") + 1
RECORDS = [json.loads(line) for line in SAMPLE.splitlines()]


def load(data: bytes) -> dict[str, replay.RunRecord]:
    return replay.replay(chain.parse(data).records)[1]


def chained(records: list[dict[str, Any]]) -> bytes:
    """``records`` with a correct chain, as a forger would write them."""
    data, last = b"", "0" * 64
    for seq, record in enumerate(records):
        line = json.dumps({**record, "seq": seq, "prev_sha256": last}).encode()
        data, last = data + line + b"\n", hashlib.sha256(line).hexdigest()
    return data


def test_the_sample_is_sound() -> None:
    assert [record["kind"] for record in RECORDS] == [
        *("header", "open", "reserve", "commit", "open", "reserve", "abort"),
    ]
    assert load(SAMPLE) == load(chained(RECORDS))


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_empty(data: bytes) -> None:
    """I1, I2: parsers meet bytes from anywhere."""
    with pytest.raises(LedgerError):
        load(data)


@given(st.integers(0, LAST - 1), st.integers(1, 255))
def test_a_change_of_any_byte_before_the_last_line_is_detected(position: int, flip: int) -> None:
    """F5: the books cannot be altered unseen."""
    data = bytearray(SAMPLE)
    data[position] ^= flip
    with pytest.raises(LedgerError):
        load(bytes(data))


def test_every_single_byte_flip_is_detected() -> None:
    """F5: all positions before the last line, one bit each."""
    for position in range(LAST):
        data = bytearray(SAMPLE)
        data[position] ^= 1
        with pytest.raises(LedgerError):
            load(bytes(data))


@given(st.integers(LAST, len(SAMPLE) - 1), st.integers(1, 255))
def test_a_change_in_the_last_line_never_lowers_the_charges_of_earlier_lines(position: int, flip: int) -> None:
    data = bytearray(SAMPLE)
    data[position] ^= flip
    try:
        runs = load(bytes(data))
    except LedgerError:
        return
    assert {name: run.reserved for name, run in runs.items()} == {"a": 3, "b": 1}


@given(st.data())
def test_deleted_doubled_and_swapped_pieces_are_detected(data: st.DataObject) -> None:
    """F5."""
    start = data.draw(st.integers(0, LAST - 1))
    end = data.draw(st.integers(start + 1, LAST))
    piece = SAMPLE[start:end]
    for changed in (SAMPLE[:start] + SAMPLE[end:], SAMPLE[:end] + piece + SAMPLE[end:]):
        with pytest.raises(LedgerError):
            load(changed)


def test_dropped_and_reordered_lines_are_detected() -> None:
    """F5."""
    lines = SAMPLE.splitlines(keepends=True)
    for index in range(len(lines) - 1):
        with pytest.raises(LedgerError):
            load(b"".join(lines[:index] + lines[index + 1 :]))
        swapped = [*lines[:index], lines[index + 1], lines[index], *lines[index + 2 :]]
        with pytest.raises(LedgerError):
            load(b"".join(swapped))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@settings(max_examples=300)
@given(st.integers(0, len(RECORDS) - 1), st.sampled_from(sorted({key for r in RECORDS for key in r})), values)
def test_a_forged_field_gives_an_error_or_a_consistent_ledger(index: int, key: str, value: Any) -> None:
    """I2, F4: well-chained nonsense; whatever is accepted obeys the rules that the writer obeys."""
    forged = [dict(record) for record in RECORDS]
    forged[index][key] = value
    try:
        runs = load(chained(forged))
    except LedgerError:
        return
    for run in runs.values():
        assert 0 <= run.committed <= run.reserved <= run.mech.steps


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, {"schema": "dpft-ledger/3"}),
        (0, {"kind": "open"}),
        (0, {"unit": {"name": "example"}}),
        (0, {"budget": {"epsilon": 1}}),
        (0, {"versions": {"numpy": 2}}),
        (0, {"extra": 1}),
        (1, {"steps": 31}),
        (1, {"mech": None}),
        (1, {"run": ""}),
        (2, {"kind": "release"}),
        (2, {"steps": 0}),
        (2, {"steps": 31}),
        (2, {"steps": 3.0}),
        (2, {"run": "c"}),
        (2, {"mech": RECORDS[1]["mech"]}),
        (2, {"parts": ["train"]}),
        (2, {"t": "2026-01-31T12:00:00"}),
        (2, {"t": "2026-02-31"}),
        (2, {"t": "٢٠٢٦-01-31"}),
        (3, {"steps": 4}),
        (4, {"run": "a"}),
        (6, {"steps": 2}),
        (6, {"kind": "note"}),
    ],
)
def test_records_that_cannot_follow_are_refused(index: int, change: dict[str, Any]) -> None:
    """E2, F4: a later program's records, or a forger's, are never half understood."""
    forged = [dict(record) for record in RECORDS]
    forged[index].update(change)
    with pytest.raises(LedgerError, match=f"Line {index + 1} "):
        load(chained(forged))


@pytest.mark.parametrize(
    "line",
    [
        b'{"seq":0,"seq":0,"prev_sha256":"%s"}' % (b"0" * 64),
        b'{"seq":NaN,"prev_sha256":"%s"}' % (b"0" * 64),
        b'{"seq":0,"prev_sha256":"%s","x":Infinity}' % (b"0" * 64),
        b'{"seq":0.0,"prev_sha256":"%s"}' % (b"0" * 64),
        b'{"seq":false,"prev_sha256":"%s"}' % (b"0" * 64),
        b'{"seq":0,"prev_sha256":null}',
        b'{"seq":0,"prev_sha256":"%s","x":%s}' % (b"0" * 64, b"9" * 5000),
        b'{"seq":0,"prev_sha256":"%s","x":"%s"}' % (b"0" * 64, b"x" * 70000),
        b"[" * 60000,
        b'[{"seq":0}]',
        b'"text"',
        b"7",
        b"",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
    ],
)
def test_hostile_lines_are_refused(line: bytes) -> None:
    """I2: duplicate keys, constants outside JSON, huge numbers and lines, nesting, no objects."""
    with pytest.raises(LedgerError, match=r"(?i)\bline 1\b"):
        chain.parse(line + b"\n")


def test_infinity_written_as_a_number_is_refused() -> None:
    """I2: 1e999 is valid JSON and reads as infinity."""
    forged = [RECORDS[0], {**RECORDS[1], "mech": {**RECORDS[1]["mech"], "sigma": float("inf")}}]
    with pytest.raises(LedgerError, match="Line 2 of the ledger makes no sense"):
        load(chained(forged).replace(b"Infinity", b"1e999"))
