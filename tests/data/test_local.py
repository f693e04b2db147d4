"""Local files: what is read, what is refused, what is left behind."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpft.config import DataSection, validate
from dpft.data import Record, TextData, load_text_data, public_id
from dpft.data.rows import MAX_CHARACTERS, LabelIds
from dpft.errors import InputError

SENTINEL = "private-sentinel-7261"
NAMES_ONLY = 'data.text: a.csv has no column "text"; it has the columns words, label.'
BAD_LABEL = "row 2 of a.csv: the label is none of data.labels (neg, pos)"
BAD_LABELS = [b"2", b"-1", b"true", b"1.0", b"null", b"NaN", b'"Pos"', b'"1 "', b'"01"', b"[1]", b"9" * 20]
ROWS = [
    {"text": "a fine film", "label": "pos"},
    {"text": 'dull, "really"\nlong', "label": "neg"},
    {"text": "NA", "label": "1"},
    {"text": "007", "label": "0"},
    {"text": "é–½", "label": "pos"},
]
RECORDS = tuple(Record(row["text"], None, label) for row, label in zip(ROWS, [1, 0, 1, 0, 1], strict=True))


def section(source: str, path: str, **fields: object) -> DataSection:
    values = {"source": source, "path": path, "labels": ["neg", "pos"], "unit": "note", **fields}
    return validate(DataSection, values, "data")


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """Rows as CSV, JSON lines or Parquet, by the path's suffix."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def load(source: str, content: bytes, **fields: object) -> TextData:
    Path(f"a.{source}").write_bytes(content)
    return load_text_data(section(source, f"a.{source}", **fields))


def refusal(source: str, content: bytes, **fields: object) -> str:
    """The one sentence; neither it nor any exception behind it may hold the sentinel (F2)."""
    with pytest.raises(InputError) as caught:
        load(source, content, **fields)
    error: BaseException | None = caught.value
    while error is not None:
        assert SENTINEL not in repr(vars(error)) + str(error)
        error = error.__cause__ or error.__context__
    assert caught.value.__context__ is None
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("source", ["csv", "json", "parquet"])
def test_each_kind_of_file_gives_the_same_records(source: str) -> None:
    """F1: a text such as NA or 007 stays what it is, whatever the other rows hold."""
    write(Path(f"a.{source}"), ROWS)
    data = load_text_data(section(source, f"a.{source}"))
    assert data.train == RECORDS
    assert (data.heldout, data.labels, data.unit) == ((), ("neg", "pos"), "note")


@pytest.mark.parametrize("source", ["csv", "json", "parquet"])
def test_reading_leaves_nothing_behind(source: str, home: Path) -> None:
    """I4: dataset caches of raw records: there are none, and no file was opened for writing."""
    path = write(home / f"a.{source}", [{"text": f"{SENTINEL} {i}", "label": "pos"} for i in range(50)])
    path.rename(home.parent / path.name)  # the source itself lies outside of what is searched
    before = sorted(home.rglob("*"))
    load_text_data(section(source, str(home.parent / path.name), heldout=0.3))
    assert sorted(home.rglob("*")) == before
    assert not any(SENTINEL.encode() in file.read_bytes() for file in home.rglob("*") if file.is_file())


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("source", ["csv", "json", "parquet"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, 11), fraction=st.sampled_from([0.0, 0.4]))
def test_one_record_less_changes_one_item(source: str, index: int, fraction: float) -> None:
    """F1, D5: prepared D and D minus one record differ in one item."""
    rows = [{"text": f"text {i}" if i % 3 else "same", "label": ["neg", "0", "1"][i % 3]} for i in range(12)]
    path = f"a.{source}"
    write(Path(path), rows)
    data = load_text_data(section(source, path, heldout=fraction))
    write(Path(path), rows[:index] + rows[index + 1 :])
    fewer = load_text_data(section(source, path, heldout=fraction))
    removed = [list(data.train), list(data.heldout)]
    kept = [list(fewer.train), list(fewer.heldout)]
    for side, rest in zip(removed, kept, strict=True):
        for record in rest:
            side.remove(record)
    assert len(removed[0] + removed[1]) == 1
    assert (fewer.labels, fewer.unit, fewer.public_id) == (data.labels, data.unit, data.public_id)


@pytest.mark.usefixtures("home")
def test_files_of_a_glob_are_read_in_order_and_once() -> None:
    for name in ("b", "a", "c"):
        write(Path(f"{name}.csv"), [{"text": name, "label": "pos"}])
    Path("folder.csv").mkdir()
    assert [r.text for r in load_text_data(section("csv", "*.csv")).train] == ["a", "b", "c"]
    assert [r.text for r in load_text_data(section("csv", "**/**/*.csv")).train] == ["a", "b", "c"]
    write(Path("x[1].csv"), [{"text": "brackets", "label": "pos"}])
    assert [r.text for r in load_text_data(section("csv", "x[1].csv")).train] == ["brackets"]


@pytest.mark.usefixtures("home")
def test_an_evaluation_file_of_its_own() -> None:
    write(Path("a.csv"), ROWS)
    write(Path("b.csv"), ROWS[:2])
    data = load_text_data(section("csv", "a.csv", eval_path="b.csv"))
    assert (data.train, data.heldout) == (RECORDS, RECORDS[:2])


@pytest.mark.usefixtures("home")
def test_second_texts_and_other_columns() -> None:
    content = b'id,q,a,y\n1,one,"two",pos\n\n2,three,four,0\n'
    data = load("csv", content, text="q", text_pair="a", label="y")
    assert data.train == (Record("one", "two", 1), Record("three", "four", 0))


S = SENTINEL.encode()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a header"),
        (b"text,label\n", "no training records"),
        (b"text,text,label\n", "each column once"),
        (b"words,label\n" + S + b",pos\n", NAMES_ONLY),
        (S + b" was here,pos\n", "it has the columns pos and 1 with names not shown."),
        (b"text,label\nfine,pos\n" + S + b",\n", BAD_LABEL),
        (b"text,label\nfine,pos\nx," + S + b"\n", BAD_LABEL),
        (b"text,label\n,pos\n", 'row 1 of a.csv: column "text" (data.text) is empty'),
        (b'text,label\n"  \n",pos\n', "is empty"),
        (b"text,label\n" + S + b"\0,pos\n", "is not valid Unicode"),
        (b"text,label\n" + S + b"\n", "row 1 of a.csv: expected 2 values"),
        (b"text,label\n" + S + b",pos,neg\n", "row 1 of a.csv: expected 2 values"),
        (b'text,label\n"' + S, "row 1 of a.csv is not valid CSV"),
        (b'text,label\n"' + S + b'"x,pos\n', "row 1 of a.csv is not valid CSV"),
        (b"text,label\r" + S + b",pos\r", "is not valid CSV"),
        (b"text,label\n" + S + b"x" * MAX_CHARACTERS + b",pos\n", "is not valid CSV"),
        (b"text,label\nfine,pos\n" + S + b"\xff,pos\n", "line 3 of a.csv is not UTF-8"),
        ("text,label\nx,pos\n".encode("utf-16"), "line 1 of a.csv is not UTF-8"),
        (b"PK\x03\x04" + bytes(range(256)), "a.csv has no column"),
    ],
)
def test_hostile_csv_is_refused_by_place(content: bytes, expected: str) -> None:
    """F2, F4, I5: a bad record is named by its row, never by its text."""
    assert expected in refusal("csv", content)


GOOD = b'{"text": "fine", "label": 1}\n'


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no training records"),
        (b'[{"text": "' + S + b'", "label": 1}]', "line 1 of a.json is not a JSON object"),
        (GOOD + b'{"text": "' + S, "line 2 of a.json is not a JSON object"),
        (GOOD + b'{"text": "' + S + b'", "text": "b", "label": 1}', "line 2 of a.json is not a JSON object"),
        (
            GOOD + b'{"text": "' + S + b'", "label": ' + b"9" * 5000 + b"}",
            "line 2 of a.json is not a JSON object",
        ),
        (GOOD + b"[" * 100_000, "line 2 of a.json is not a JSON object"),
        (b'{"' + S + b' x": 1, "label": 1}', "it has the columns label and 1 with names not shown."),
        (GOOD + b'{"' + S + b'": 1, "label": 1}', 'line 2 of a.json has no value for data.text = "text"'),
        (GOOD + b'{"text": "' + S + b'"}', 'line 2 of a.json has no value for data.label = "label"'),
        (
            GOOD + b'{"text": ["' + S + b'"], "label": 1}',
            'line 2 of a.json: column "text" (data.text) is not text',
        ),
        (GOOD + b'{"text": 7261, "label": 1}', "is not text"),
        (GOOD + b'{"text": null, "label": 1}', "is empty"),
        (GOOD + b'{"text": "' + S + b'\\ud800", "label": 1}', "is not valid Unicode"),
        (GOOD + b'{"text": "' + S + b'\\u0000", "label": 1}', "is not valid Unicode"),
        (GOOD + b'{"text": "' + S + b"x" * MAX_CHARACTERS + b'", "label": 1}', "is longer than"),
        *[
            (GOOD + b'{"text": "' + S + b'", "label": ' + label + b"}", "line 2 of a.json: the label is")
            for label in BAD_LABELS
        ],
    ],
)
def test_hostile_json_is_refused_by_place(content: bytes, expected: str) -> None:
    """F2, F4, I2, I5: duplicate keys, wrong types, deep nesting, huge numbers."""
    assert expected in refusal("json", content)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + S + b"PAR1", S * 100])
def test_hostile_parquet_is_refused(content: bytes) -> None:
    """F2: nothing of the file stands in the error."""
    assert "a.parquet can't be read as Parquet" in refusal("parquet", content)


@pytest.mark.usefixtures("home")
def test_parquet_that_is_damaged_or_not_text_is_refused() -> None:
    """F2."""
    text = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\x04\0\0\0"), pa.py_buffer(b"\xff\xfe\xfd\xfc"))
    pq.write_table(pa.table({"text": text, "label": ["pos"]}), "bad.parquet")
    assert "can't be decoded" in refusal("parquet", Path("bad.parquet").read_bytes())
    write(Path("good.parquet"), [{"text": f"{SENTINEL} {i}", "label": "pos"} for i in range(2000)])
    content = bytearray(Path("good.parquet").read_bytes())
    content[8:400] = os.urandom(392)
    refusal("parquet", bytes(content))
    pq.write_table(pa.table({"text": [1], "label": ["pos"]}), "numbers.parquet")
    assert "is not text" in refusal("parquet", Path("numbers.parquet").read_bytes())
    pq.write_table(pa.table({"words": [SENTINEL], "label": ["pos"]}), "columns.parquet")
    assert "it has the columns words, label." in refusal("parquet", Path("columns.parquet").read_bytes())


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("source", ["csv", "json", "parquet"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text('{}[]",:\n\r0tex labe', max_size=60).map(str.encode))
def test_any_content_is_refused(source: str, content: bytes) -> None:
    """F4: nothing but an InputError leaves the reader."""
    refusal(source, content)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("path", ["none.csv", "*.csv", ".", "x" * 1000, "/dev/null"])
def test_a_path_that_matches_nothing_is_named(path: str) -> None:
    with pytest.raises(InputError, match=r"data\.path: no file matches"):
        load_text_data(section("csv", path))


@pytest.mark.usefixtures("home")
def test_an_unreadable_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("a.csv"), ROWS)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", SENTINEL)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.csv can't be read \(Permission denied\)"):
        load_text_data(section("csv", "a.csv"))


@pytest.mark.parametrize(
    ("labels", "value", "expected"),
    [
        (("no", "yes"), "yes", 1),
        (("no", "yes"), 1, 1),
        (("no", "yes"), "1", 1),
        (("no", "yes"), "2", None),
        (("1", "2", "3"), 1, 0),
        (("1", "2", "3"), "3", 2),
        (("1", "2", "3"), 0, None),
        (("1", "0"), 0, 1),
        (("no", "yes"), True, None),
        (("no", "yes"), 1.0, None),
        (("no", "yes"), None, None),
        (("-1", "1"), -1, 0),
    ],
)
def test_label_values(labels: tuple[str, ...], value: object, expected: int | None) -> None:
    assert LabelIds(labels).find(value) == expected


def test_the_public_name_comes_from_the_recipe_without_folders() -> None:
    """F3: no absolute paths in what leaves the building."""
    assert public_id(section("csv", "/home/someone/notes-*.csv", heldout=0.2)) == "csv:notes-*.csv@train,heldout=0.2"
    assert public_id(section("json", "a/b.jsonl", eval_path="c/d.jsonl")) == "json:b.jsonl@train,eval=d.jsonl"
    hub = section("hub", "nyu-mll/glue", config="sst2", revision="main", eval_split="validation")
    assert public_id(hub) == "hub:nyu-mll/glue:sst2#main@train,eval=validation"


@pytest.mark.usefixtures("home")
def test_loaded_data_does_not_show_its_records() -> None:
    """F2."""
    data = load("csv", b"text,label\n" + S + b",pos\n")
    assert SENTINEL not in repr(data)
