"""Which tokens may be drawn, and how often, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models import Sampling, check_sampling
from jaxinterp.models._sampling import likely
from tests.tiny import check_same

V = 9
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(5, V)) * 3, jnp.float32)


def kept_by_numpy(row, temperature, top_k, top_p):
    """One token after the other, most probable first."""
    order = sorted(range(V), key=lambda i: -row[i])
    order = order[: V if top_k is None else top_k]
    p = np.exp((row[order].astype(np.float64) - row.max()) / temperature)
    p /= p.sum()
    kept, total = set(), 0.0
    for i, share in zip(order, p, strict=True):
        if top_p is not None and total >= top_p:
            break
        kept.add(i)
        total += share
    return [i in kept for i in range(V)]


@pytest.mark.parametrize("top_k", [None, 1, 4, V])
def test_top_k_then_top_p_at_the_temperature(top_k):
    f = jax.jit(lambda heat, k, p: likely(LOGITS, temperature=heat, top_k=k, top_p=p))
    for heat, p in ((1.0, 0.5), (0.3, 0.9), (4.0, 0.7), (1.0, 1.0), (1.0, 1e-6), (1.0, None)):
        got = f(jnp.float32(heat), top_k, None if p is None else jnp.float32(p))
        check_same(got, [kept_by_numpy(row, heat, top_k, p) for row in np.asarray(LOGITS)])


def test_ties_with_the_last_token_stay_and_a_share_of_one_keeps_all():
    kept = jax.jit(likely)
    tied = jnp.array([[2.0, 5.0, 2.0, 1.0, 2.0]])
    check_same(kept(tied, top_k=2), [[True, True, True, False, True]])
    check_same(kept(tied, top_p=0.9), [[True, True, True, False, True]])  # 5.0 alone holds 0.86
    check_same(kept(tied, top_p=0.8), [[False, True, False, False, False]])
    far = jnp.array([[0.0, -300.0, 20.0, 1.0, 1.0]])  # of which float32 sees one
    check_same(kept(far, top_p=1.0), [[True] * 5])


def test_draws_follow_the_softmax_of_what_is_left():
    row, heat = np.asarray(LOGITS[0]), 2.0
    sampling = Sampling(jnp.float32(heat), jax.random.key(3), jnp.int32(6), jnp.float32(0.9))
    drawn = np.asarray(jax.jit(lambda: sampling.choose(jnp.tile(row, (4000, 1)), 0))())
    kept = np.array(kept_by_numpy(row, heat, 6, 0.9))
    p = np.where(kept, np.exp(np.float64(row) / heat), 0)
    p = 4000 * p[kept] / p.sum()
    counts = np.bincount(drawn, minlength=V)
    assert 2 < kept.sum() < 6 and counts[~kept].sum() == 0
    assert ((counts[kept] - p) ** 2 / p).sum() < 30  # chi squared, at most 4 degrees: p < 1e-5


def test_one_token_left_is_the_greedy_choice():
    key = jax.random.key(0)
    greedy = Sampling().choose(LOGITS, 0)
    check_same(greedy, LOGITS.argmax(-1))
    check_same(Sampling(9.0, key, top_k=1).choose(LOGITS, 0), greedy)
    check_same(Sampling(9.0, key, top_p=1e-6).choose(LOGITS, 0), greedy)


@pytest.mark.parametrize(
    "how", [dict(top_k=0), dict(top_k=V + 1), dict(top_p=0.0), dict(top_p=1.5), dict(top_p=np.nan)]
)
def test_what_is_out_of_range_is_an_error_or_no_token(how):
    key = jax.random.key(0)
    with pytest.raises(ji.InputError, match=f"{next(iter(how))}="):
        check_sampling(V, Sampling(1.0, key, **how))
    arrays = jax.tree.map(jnp.asarray, how)
    check_same(jax.jit(lambda how: Sampling(1.0, key, **how).choose(LOGITS, 0))(arrays), [-1] * 5)


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        (dict(top_k=3), ji.InputError, "top_k=3 with temperature=0"),
        (dict(top_k=3, top_p=0.5), ji.InputError, "top_k=3, top_p=0.5 with temperature=0"),
        (dict(temperature=1.0, top_p=2.0), ji.InputError, "needs both.*top_p=2.0"),  # all at once
        (dict(temperature=1.0, key=jax.random.key(0), top_k=2.0), ji.InputError, "top_k=2.0"),
        (dict(temperature=1.0, key=jax.random.key(0), top_k=jnp.ones(2, int)), ji.InputError, "top_k="),
        (dict(stop=[1, V, -1]), ji.TokenError, rf"ids \[-1, {V}\], outside the vocabulary of {V}"),
        (dict(stop=[0.5]), ji.InputError, "integers"),
        (dict(stop="end"), ji.InputError, "stop='end'.*integers"),
        (dict(key=jax.random.key(0), top_k=3), ji.InputError, "key, top_k=3 with temperature=0"),
        (dict(top_k=3, temperature=np.float32(0)), ji.InputError, "top_k=3 with temperature=0"),
        (dict(temperature=1.0, key=jax.random.key(0), top_k=2**40), ji.InputError, f"top_k={2**40} is not legal"),
    ],
)
def test_what_is_refused(how, kind, message):
    with pytest.raises(kind, match=message):
        check_sampling(V, Sampling(**how))


@pytest.mark.parametrize("heat", ["hot", np.nan, np.inf, True, None, b"1"])
def test_settings_of_the_wrong_type_are_named_all_at_once(heat):
    with pytest.raises(ji.InputError, match=f"temperature={heat!r} is not legal.*top_k='few' is.*top_p='most' is"):
        check_sampling(V, Sampling(heat, None, "few", "most"))
