"""D3: cutting a logical batch leaves nothing out, takes nothing twice, and keeps to the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpft.engine.microbatch import LogicalBatch, cut, token_length


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 2000))
def test_cut_is_a_partition_within_the_budget(lengths: list[int], budget: int) -> None:
    """D3, G2: each position exactly once; only a single example may exceed the budget."""
    groups = cut(range(len(lengths)), lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert group
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 500), st.data())
def test_cut_of_some_positions_takes_those_alone(lengths: list[int], budget: int, data: st.DataObject) -> None:
    """G3: what is left of a batch after a failure is cut again without the rest."""
    some = data.draw(st.sets(st.sampled_from(range(len(lengths)))))
    assert sorted(i for group in cut(some, lengths, budget) for i in group) == sorted(some)


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 2000))
def test_a_narrow_cut_hardly_pads(lengths: list[int], budget: int) -> None:
    """Lengths of one group are at most a quarter apart, and it is still a partition within the budget."""
    groups = cut(range(len(lengths)), lengths, budget, narrow=True)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest, shortest = (kind(lengths[i] for i in group) for kind in (max, min))
        assert longest < 1.25 * shortest * (1 + 1e-9)
        assert len(group) == 1 or len(group) * longest <= budget


@given(st.lists(st.integers(1, 600), min_size=1, max_size=40), st.integers(1, 600), st.integers(1, 2000))
def test_one_example_more_regroups_its_own_class_alone(lengths: list[int], more: int, budget: int) -> None:
    """In every group without examples of about its length nothing has changed."""

    def groups(lengths: list[int]) -> set[tuple[int, ...]]:
        return {tuple(group) for group in cut(range(len(lengths)), lengths, budget, narrow=True)}

    changed = groups([*lengths, more]) ^ groups(lengths)
    near = [i for group in changed for i in group if i < len(lengths)]
    assert all(1 / 1.2500001 < lengths[i] / more < 1.2500001 for i in near)


def test_longest_come_first_so_that_memory_runs_out_early_if_at_all() -> None:
    assert cut(range(4), [1, 9, 3, 9], 18) == [[1, 3], [2, 0]]


def test_an_empty_batch_has_no_pieces() -> None:
    """D2."""
    assert cut([], [], 10) == []


@pytest.mark.parametrize(("example", "tokens"), [({"input_ids": [1, 2]}, 2), ({"input_ids": []}, 1), ((1, 2), 64)])
def test_token_length(example: object, tokens: int) -> None:
    assert token_length(example) == tokens


def test_logical_batch_shows_neither_its_examples_nor_their_number() -> None:
    """F2."""
    shown = repr(LogicalBatch(["sentinel"] * 17, list))
    assert "sentinel" not in shown
    assert "17" not in shown
