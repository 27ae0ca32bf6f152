import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp import InputError
from jaxinterp.tasks import PromptPairs, pairs_from_tokens


@pytest.fixture
def pairs() -> PromptPairs:
    return pairs_from_tokens(
        clean=[[5, 6, 7], [8, 9], [1, 2, 3]],
        corrupt=[[5, 4, 7], [8, 3], [1, 2, 4]],
        correct=[[1], [2, 3, 4], [5, 6]],
        wrong=[7, 8, 9],
        roles={"changed": [1, 1, 2]},
        pad_id=99,
    )


def test_padding_is_on_the_right_and_masked(pairs: PromptPairs) -> None:
    assert pairs.clean.tolist() == [[5, 6, 7], [8, 9, 99], [1, 2, 3]]
    assert pairs.corrupt.tolist() == [[5, 4, 7], [8, 3, 99], [1, 2, 4]]
    assert pairs.mask.tolist() == [[True, True, True], [True, True, False], [True, True, True]]
    assert pairs.answer_position.tolist() == [2, 1, 2] == pairs.roles["end"].tolist()
    assert pairs.roles["changed"].tolist() == [1, 1, 2]
    assert pairs.lengths.tolist() == [3, 2, 3] and pairs.is_padded and len(pairs) == 3
    for leaf in jax.tree.leaves(pairs):
        assert leaf.dtype in (jnp.int32, jnp.bool_)


def test_answer_sets_are_filled_with_minus_one(pairs: PromptPairs) -> None:
    assert pairs.correct.tolist() == [[1, -1, -1], [2, 3, 4], [5, 6, -1]]
    assert pairs.wrong.tolist() == [[7], [8], [9]]


def test_differs_is_where_the_tokens_differ_and_real(pairs: PromptPairs) -> None:
    expected = [[False, True, False], [False, True, False], [False, False, True]]
    assert pairs.differs().tolist() == expected
    other_padding = dataclasses.replace(pairs, corrupt=jnp.where(pairs.mask, pairs.corrupt, 7))
    assert other_padding.differs().tolist() == expected


@pytest.mark.parametrize(
    "rows", [[2, 0], np.array([2, 0]), jnp.array([2, 0]), slice(2, None, -2)], ids=["list", "numpy", "jax", "slice"]
)
def test_take_keeps_the_order_asked_for(pairs: PromptPairs, rows: object) -> None:
    taken = pairs.take(rows)
    assert taken.clean.tolist() == [[1, 2, 3], [5, 6, 7]]
    assert taken.roles["changed"].tolist() == [2, 1] and taken.correct.tolist() == [[5, 6, -1], [1, -1, -1]]


def test_take_by_boolean_or_index_cuts_padding(pairs: PromptPairs) -> None:
    for rows in ([False, True, False], 1, np.int64(1)):
        taken = pairs.take(rows)
        assert taken.clean.tolist() == [[8, 9]] and not taken.is_padded


@pytest.mark.parametrize("rows", [[], [3], [-1], [True, False], 7, slice(9, 12), [[0]], [0.5]])
def test_take_refuses_what_is_not_there(pairs: PromptPairs, rows: object) -> None:
    with pytest.raises(InputError, match="pair|rows"):
        pairs.take(rows)


def test_by_length_gives_unpadded_groups_in_order(pairs: PromptPairs) -> None:
    groups = pairs.by_length()
    assert [group.clean.tolist() for group in groups] == [[[8, 9]], [[5, 6, 7], [1, 2, 3]]]
    assert not any(group.is_padded for group in groups)


def test_the_pairs_are_a_pytree_whose_values_are_not_looked_at_while_traced(pairs: PromptPairs) -> None:
    same = jax.jit(lambda p: jax.tree.map(lambda x: x, p))(pairs)
    assert same.clean.tolist() == pairs.clean.tolist() and same.clean_text == pairs.clean_text
    with pytest.raises(InputError, match="inside a JAX transformation"):
        jax.jit(lambda p: p.take([0]).clean)(pairs)


def test_the_summary_counts_in_good_english(pairs: PromptPairs) -> None:
    assert pairs.summary().startswith("3 prompt pairs of 2 to 3 tokens, ")
    assert pairs.take(1).summary().startswith("1 prompt pair of 2 tokens, ")
    single = pairs_from_tokens(clean=[[5]], corrupt=[[6]], correct=[1], wrong=[2])
    assert single.summary().startswith("1 prompt pair of 1 token, ")
