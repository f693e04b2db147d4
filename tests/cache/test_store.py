"""The file of recorded outputs: it gives back what was written, whole or not at all, and to its owner alone."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpft.cache.folder import META, RECORDS, ROWS, cache_of, delete, describe, find
from dpft.cache.store import Layout, Store, reopened, written
from dpft.errors import InputError

WIDTH = 3


def layout(lengths: list[int], dtype: str = "float32", key: str = "k") -> Layout:
    examples = [{"input_ids": np.arange(t, dtype=np.int32) + 7 * i, "label": 0} for i, t in enumerate(lengths)]
    return Layout(key, ("a.forward",), WIDTH, dtype, np.array(lengths, dtype=np.int64), examples)


def rows_of(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(t, WIDTH, generator=generator) for t in lengths]


def made(folder: Path, what: Layout) -> Store:
    def fill(write: Any) -> None:
        for record, rows in reversed(list(enumerate(rows_of(what.lengths.tolist())))):  # in any order
            write(record, rows)

    return written(folder, what, fill)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_come_back_where_the_mask_has_them(tmp_path: Path, dtype: str, side: str) -> None:
    lengths, chosen = [4, 1, 3, 2], [3, 0, 0, 2]
    store, rows = made(tmp_path / "cache", layout(lengths, dtype)), rows_of(lengths)
    mask = torch.arange(4) < torch.tensor([lengths[i] for i in chosen])[:, None]
    mask = mask.flip(1) if side == "left" else mask
    found = store.gather(chosen, mask.long())
    for b, record in enumerate(chosen):
        assert torch.equal(found[b][mask[b]], rows[record].to(getattr(torch, dtype)))
        assert not found[b][~mask[b]].any()


def test_equally_long_records_need_no_mask_and_an_empty_batch_is_one(tmp_path: Path) -> None:
    store, rows = made(tmp_path / "cache", layout([2, 2, 2])), rows_of([2, 2, 2])
    assert torch.equal(store.gather([2, 0], None), torch.stack([rows[2], rows[0]]))
    assert store.gather([], None).shape == (0, 1, WIDTH)
    assert store.gather([], torch.zeros(0, 1)).shape == (0, 1, WIDTH)


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    made(tmp_path / "cache", layout([2, 3]))
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "cache").iterdir()} == dict.fromkeys(
        (META, RECORDS, ROWS), 0o600
    )


def test_hashes_of_records_are_keyed(tmp_path: Path) -> None:
    """Of two caches of the same records no hash is the same: a dictionary of short records finds nothing."""
    for name in ("one", "two"):
        made(tmp_path / name, layout([2, 3]))
    one, two = ((tmp_path / name / RECORDS).read_bytes() for name in ("one", "two"))
    assert one[:16] == two[:16]  # the lengths
    assert one[16:32] != two[16:32]
    assert one[32:] != two[32:]


def test_the_same_records_and_model_open_it_again(tmp_path: Path) -> None:
    what = layout([2, 3])
    store = made(tmp_path, what)
    again = reopened(tmp_path, what)
    assert again is not None
    assert torch.equal(again.gather([1], None), store.gather([1], None))


def _cut_short(folder: Path) -> None:
    with (folder / ROWS).open("r+b") as file:
        file.truncate(40)


def _flip(name: str) -> Any:
    def flip(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return flip


@pytest.mark.parametrize(
    "damage",
    [_cut_short, _flip(ROWS), _flip(RECORDS), _flip(META)]
    + [lambda f, n=name: (f / n).unlink() for name in (META, RECORDS, ROWS)],
)
def test_what_is_damaged_is_not_opened_and_is_written_anew(tmp_path: Path, damage: Any) -> None:
    what = layout([2, 3])
    made(tmp_path, what)
    damage(tmp_path)
    assert reopened(tmp_path, what) is None
    made(tmp_path, what)
    assert reopened(tmp_path, what) is not None


def test_another_model_place_type_or_record_does_not_open_it(tmp_path: Path) -> None:
    what = layout([2, 3])
    made(tmp_path, what)
    changed = [{**what.examples[0], "input_ids": np.array([0, 2], dtype=np.int32)}, what.examples[1]]
    others = [
        dataclasses.replace(what, key="other"),
        dataclasses.replace(what, points=("b.forward",)),
        dataclasses.replace(what, dtype="float16"),
        dataclasses.replace(what, examples=changed),
        dataclasses.replace(what, examples=what.examples[::-1]),
        layout([2, 3, 1]),
    ]
    assert [reopened(tmp_path, other) for other in others] == [None] * len(others)
    labelled = dataclasses.replace(what, examples=[{**e, "label": 1} for e in what.examples])
    assert reopened(tmp_path, labelled) is not None  # a label is nothing that the backbone reads


@pytest.mark.parametrize("value", [1e5, -1e5, float("nan"), float("inf")])
def test_what_a_type_can_not_hold_is_kept_as_what_is_not_finite(tmp_path: Path, value: float) -> None:
    """A9, F2: one record's rows are no reason to stop, nor are they put right; the others' are as they were."""
    rows = rows_of([2, 3])

    def fill(write: Any) -> None:
        write(0, torch.full((2, WIDTH), value))
        write(1, rows[1])

    store = written(tmp_path, layout([2, 3], "float16"), fill)
    assert not store.gather([0], None).isfinite().any()
    assert torch.equal(store.gather([1], None)[0], rows[1].half())
    assert reopened(tmp_path, layout([2, 3], "float16")) is not None


def test_an_interrupted_filling_leaves_nothing(tmp_path: Path) -> None:
    def fill(write: Any) -> None:
        write(0, rows_of([2, 3])[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "cache", layout([2, 3]), fill)
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_one_sentence_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what a token takes, not what all take: that would tell how long the records are."""
    what = layout([7001, 3], "bfloat16")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 7000 * 6})())
    with pytest.raises(InputError, match=r"6 bytes for every token .* 0 MB are free\.") as caught:
        written(tmp_path / "cache", what, lambda _: pytest.fail("nothing is computed"))
    assert "70" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_fills_up_all_the_same_is_the_same_sentence(tmp_path: Path) -> None:
    """A limit on file sizes stands for it: the system refuses the bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match="does not fit the disk"):
            made(tmp_path / "cache", layout([2000]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not (tmp_path / "cache").exists()


_WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import layout, rows_of
from dpft.cache.store import written
def fill(write):
    write(0, rows_of([2, 3])[0])
    print("half", flush=True)
    time.sleep(60)
written(Path(sys.argv[1]), layout([2, 3]), fill)
"""


def test_killed_while_it_is_written_there_is_no_cache(tmp_path: Path) -> None:
    what = layout([2, 3])
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(tmp_path / "cache"), str(Path(__file__).parent)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "cache" / f"{ROWS}.part").stat().st_mode & 0o777 == 0o600
    assert reopened(tmp_path / "cache", what) is None
    made(tmp_path / "cache", what)  # what a kill leaves is no obstacle
    assert [p.name for p in sorted((tmp_path / "cache").iterdir())] == [META, RECORDS, ROWS]


@pytest.mark.parametrize("before", [False, True])
def test_stopped_between_any_two_changes_it_is_whole_or_not_opened(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder as it is around every write, rename and flush; also where an older cache is being replaced."""
    old, new, states = layout([2, 3], key="old"), layout([2, 3]), 0
    if before:
        made(tmp_path / "cache", old)

    def looking(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            check()
            result = real(*arguments, **options)
            check()
            return result

        return call

    def check() -> None:
        nonlocal states
        states += 1
        copy = tmp_path / f"copy-{states}"
        if (tmp_path / "cache").exists():
            shutil.copytree(tmp_path / "cache", copy)
        store = reopened(copy, new)
        assert store is None or torch.equal(store.gather([1], None)[0], rows_of([2, 3])[1])
        opened.append(store is not None)

    opened: list[bool] = []
    for name in ("replace", "pwrite", "fsync", "ftruncate"):
        monkeypatch.setattr(os, name, looking(getattr(os, name)))
    made(tmp_path / "cache", new)
    assert states > 15
    assert opened == sorted(opened)  # from some change on, and for good
    assert opened[-1]
    assert not opened[0]


def test_show_and_delete_touch_nothing_else(tmp_path: Path) -> None:
    for run in ("one", "two"):
        made(cache_of(tmp_path / run), layout([2, 3]))
        (tmp_path / run / "private" / "steps.jsonl").write_text("x")
    (cache_of(tmp_path / "two") / "own.txt").write_text("x")
    (cache_of(tmp_path / "one") / META).unlink()
    (tmp_path / "three").mkdir()
    caches = find(tmp_path)
    assert caches == [cache_of(tmp_path / "one"), cache_of(tmp_path / "two")]
    assert find(tmp_path / "one") == caches[:1] == find(caches[0])
    assert [describe(c).whole for c in caches] == [False, True]
    said = describe(caches[1])
    assert (said.records, said.tokens, said.width, said.dtype, said.points) == (2, 5, WIDTH, "float32", ("a.forward",))
    assert all(delete(c) > 6 * WIDTH * 4 for c in caches)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "one/private/steps.jsonl", "two/private/cache/own.txt", "two/private/steps.jsonl",
    ]  # fmt: skip
    with pytest.raises(InputError, match="none"):
        find(tmp_path / "four")
