import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp import InputError
from jaxinterp.tasks import induction, repeated_tokens


def lookup(tokens: list[int], row: int) -> set[int]:
    """Every token that came after an earlier occurrence of the token of this row."""
    return {tokens[j + 1] for j in range(row) if tokens[j] == tokens[row]}


@pytest.mark.parametrize("bos_id", [None, 7])
def test_predictable_rows_are_those_that_looking_back_predicts(key: jax.Array, bos_id: int | None) -> None:
    batch = repeated_tokens(key, 64, d_vocab=30, n_ctx=40, period=(5, 19), bos_id=bos_id)
    assert batch.tokens.shape == (64, 40) and batch.tokens.dtype == jnp.int32
    for tokens, period, predictable in zip(
        *(np.asarray(x).tolist() for x in (batch.tokens, batch.period, batch.predictable)), strict=True
    ):
        body = tokens if bos_id is None else tokens[1:]
        assert len(set(body[:period])) == period == len(set(body))
        assert body[period:] == body[:-period] and bos_id not in body
        for row in range(39):
            found = lookup(tokens, row)
            assert predictable[row] == bool(found)
            if found:
                assert found == {tokens[row + 1]}
        assert not predictable[39]


def test_periods_and_tokens_cover_their_range(key: jax.Array) -> None:
    batch = jax.device_get(repeated_tokens(key, 600, d_vocab=12, n_ctx=16, period=(3, 6), bos_id=4))
    assert set(batch.period.tolist()) == {3, 4, 5, 6}
    first = np.bincount(np.asarray(batch.tokens[:, 1]), minlength=12)
    assert first[4] == 0 and (np.delete(first, 4) > 25).all()  # 55 expected
    assert (batch.tokens[:, 0] == 4).all()


def test_repeated_tokens_can_be_drawn_in_jit_and_vmap(key: jax.Array) -> None:
    draw = lambda k: repeated_tokens(k, 3, d_vocab=20, n_ctx=20, period=(4, 9))
    assert jax.jit(draw)(key).tokens.tolist() == draw(key).tokens.tolist()
    keys = jax.random.split(key, 2)
    assert jax.vmap(draw)(keys).tokens[1].tolist() == draw(keys[1]).tokens.tolist()


def test_more_sequences_than_one_chunk(key: jax.Array) -> None:
    batch = repeated_tokens(key, 300, d_vocab=1000, n_ctx=30, period=(6, 24))
    assert len({tuple(row) for row in batch.tokens.tolist()}) == 300


@pytest.mark.parametrize("bos_id", [None, 5])
def test_pairs_break_the_repeat_at_the_matched_position(key: jax.Array, bos_id: int | None) -> None:
    pairs = induction(key, 80, d_vocab=40, period=(3, 12), bos_id=bos_id)
    assert pairs.clean.shape == (80, 23 + (bos_id is not None)) and pairs.prepend_bos == (bos_id is not None)
    periods = set()
    pairs = jax.device_get(pairs)
    for i in range(80):
        end, match, previous = (int(pairs.roles[name][i]) for name in ("end", "match", "previous"))
        clean, corrupt = pairs.clean[i, : end + 1].tolist(), pairs.corrupt[i, : end + 1].tolist()
        assert pairs.mask[i].tolist() == [t <= end for t in range(pairs.mask.shape[1])]
        assert end == int(pairs.answer_position[i]) and match == previous + 1
        assert clean[previous] == clean[end] and lookup(clean, end) == {clean[match]} == {int(pairs.correct[i, 0])}
        assert lookup(corrupt, end) == {corrupt[match]} == {int(pairs.wrong[i, 0])}
        assert int(pairs.wrong[i, 0]) not in clean
        assert np.flatnonzero(pairs.differs()[i]).tolist() == [match]
        if bos_id is not None:
            assert clean[0] == bos_id and bos_id not in clean[1:] + corrupt[1:]
        periods.add(end - previous)
    assert periods == set(range(3, 13))


def test_same_key_same_pairs(key: jax.Array) -> None:
    one, again, other = (induction(k, 5, d_vocab=50) for k in (key, key, jax.random.key(1)))
    assert one.clean.tolist() == again.clean.tolist() != other.clean.tolist()


def test_refusals(key: jax.Array) -> None:
    with pytest.raises(InputError, match="at most 10"):
        repeated_tokens(key, 2, d_vocab=10, n_ctx=40, period=(6, 24))
    with pytest.raises(InputError, match="at most 8 "):
        induction(key, 2, d_vocab=10, period=(6, 9), bos_id=0)
    with pytest.raises(InputError, match="smallest must be at least 2"):
        repeated_tokens(key, 2, d_vocab=50, n_ctx=40, period=(1, 4))
    with pytest.raises(InputError, match="too short for a period of 24.*at least 26"):
        repeated_tokens(key, 2, d_vocab=50, n_ctx=25)
    with pytest.raises(InputError, match="outside the vocabulary of 50"):
        induction(key, 2, d_vocab=50, bos_id=50)
    with pytest.raises(InputError, match="one typed key"):
        repeated_tokens(jax.random.PRNGKey(0), 2, d_vocab=50, n_ctx=60)
