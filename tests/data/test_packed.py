"""Examples kept flat: they come back as they were put in, and lie in no file that anybody can open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpft.data.packed import Packed
from dpft.errors import TrainingError

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(lambda n: np.array(n, dtype=np.int32))
texts = st.fixed_dictionaries({"input_ids": ids, "label": st.integers(0, 9)})
tagged = st.fixed_dictionaries({"input_ids": ids, "token_type_ids": ids, "label": ids})
rated = st.fixed_dictionaries({"input_ids": ids, "label": st.floats(allow_nan=False)})
images = st.fixed_dictionaries(
    {"pixels": st.integers(0, 255).map(lambda n: np.full((3, 2, 4), n, dtype=np.uint8)), "label": st.integers(0, 1)}
)


def plain(example: Mapping[str, Any]) -> dict[str, Any]:
    arrays = {k: (v.tolist(), v.dtype, v.shape) for k, v in example.items() if isinstance(v, np.ndarray)}
    return {**{k: (v, type(v)) for k, v in example.items()}, **arrays}


@pytest.mark.parametrize("mapped", [False, True])
@given(examples=st.one_of(*(st.lists(kind, max_size=6) for kind in (texts, tagged, rated, images))))
def test_what_is_packed_comes_back(mapped: bool, examples: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    packed = Packed(iter(examples), tmp_path_factory.getbasetemp() if mapped else None)
    assert len(packed) == len(examples)
    assert [plain(e) for e in packed] == [plain(e) for e in examples]
    assert [plain(e) for e in packed[1::2]] == [plain(e) for e in examples[1::2]]
    if examples:
        assert plain(packed[-1]) == plain(examples[-1])
    with pytest.raises(IndexError):
        packed[len(examples)]


def test_nothing_of_it_is_to_be_seen_in_its_folder_or_in_print(tmp_path: Path) -> None:
    """F2: neither while it is open nor after."""
    packed = Packed([{"input_ids": np.arange(5, dtype=np.int32), "label": 731}] * 3, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert packed[2]["input_ids"].tolist() == [0, 1, 2, 3, 4]
    assert "731" not in repr(packed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("rows", [1, 50_000])
def test_a_full_disk_is_one_sentence(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F2: at the end, where the last of it is written, or while it is."""
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: open("/dev/full", "w+b"))  # noqa: SIM115
    example = {"input_ids": np.arange(5, dtype=np.int32), "label": 731}
    with pytest.raises(TrainingError, match="make room there") as caught:
        Packed([example] * rows, tmp_path)
    assert "731" not in str(caught.value)


def test_nobody_writes_into_it(tmp_path: Path) -> None:
    packed = Packed([{"input_ids": np.arange(5, dtype=np.int32)}], tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        packed[0]["input_ids"][0] = 1


def test_an_example_of_another_shape_is_not_taken() -> None:
    image = {"pixels": np.zeros((3, 2, 2), dtype=np.uint8)}
    with pytest.raises(AssertionError):
        Packed([image, {"pixels": np.zeros((3, 2, 3), dtype=np.uint8)}])
