"""``[cache] folder``: one run fills it, others open it; it is closed to others and never in what is handed on."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from dpft.cache.folder import delete, find
from dpft.cache.shared import alone, shared_place
from dpft.cache.task import CachedTask
from dpft.config.cache_section import CacheSection
from dpft.errors import InputError
from dpft.models.losses import classification_loss

KEY = "0123456789abcdef" * 4


def task_on(root: Path, attached: Any, letters: Any, name: str, run: str, records: Any = None) -> tuple[Any, list[str]]:
    """A run's cached examples, and what it said."""
    task, said = letters(records), list[str]()
    section = CacheSection(keep=True, folder=str(root))
    cached = CachedTask(section, task, attached(name), classification_loss, root.parent / run / "private" / "cache")
    cached.examples(task.records, say=said.append)
    return cached, said


def test_the_second_run_computes_nothing(attached: Any, letters: Any, records: Any, tmp_path: Path) -> None:
    """Another method has a cache of its own; other records take the place, and who reads goes on."""
    root = tmp_path / "shared"
    first, said = task_on(root, attached, letters, "head", "one")
    assert len(said) == 1
    assert task_on(root, attached, letters, "head", "two")[1] == []
    assert len(task_on(root, attached, letters, "last-k", "three")[1]) == 1
    assert len(find(root)) == 2
    example = first.examples(letters().records)[0]
    before = first.collate([example])["recorded"]
    assert len(task_on(root, attached, letters, "head", "four", records(20, seed=5))[1]) == 1
    assert len(find(root)) == 2
    assert (first.collate([example])["recorded"] == before).all()
    first.finish()
    assert len(find(root)) == 2
    assert not (tmp_path / "one").exists()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root, *find(root))} == {0o700}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in root.rglob("*") if path.is_file())
    assert sum(delete(cache) for cache in find(root)) > 0
    assert [path.name for path in root.iterdir()] == ["lock"]


def test_one_fills_while_the_other_waits(tmp_path: Path) -> None:
    place, order = shared_place(tmp_path / "shared", KEY, "float32"), []

    def other() -> None:
        with alone(place):
            order.append("other")

    thread = threading.Thread(target=other)
    with alone(place):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


@pytest.mark.parametrize("mark", ["run.toml", "privacy.json", "dpft.json"])
def test_what_is_handed_on_is_no_place(mark: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / mark).touch()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for inner in (".", "cache", "adapter/private/x"):
        for around in ("run", "link"):
            with pytest.raises(InputError, match="lies in run, which is made to be handed on"):
                shared_place(tmp_path / around / inner, KEY, "float32")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [mark]
    assert shared_place(tmp_path / "run" / "private" / "x", KEY, "float32").parent.is_dir()


def test_a_folder_with_something_else_in_it_stays_as_it_is(tmp_path: Path) -> None:
    """Or a home folder would be closed, and ``dpft cache delete`` be pointed at it."""
    root = tmp_path / "home"
    root.mkdir(mode=0o755)
    (root / "letter.txt").touch()
    for place in (root, root / "letter.txt"):
        with pytest.raises(InputError, match=r"cache\.folder=.* holds something else"):
            shared_place(place, KEY, "float32")
    with pytest.raises(InputError, match=r"can't be made"):
        shared_place(root / "letter.txt" / "x", KEY, "float32")
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    assert find(root) == []


def test_what_is_shared_stays() -> None:
    with pytest.raises(ValueError, match="expected true with a folder that runs share"):
        CacheSection(folder="shared")
