"""The search for predicates against all subsets, and on latents whose predicate is known."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.saes import TokenCounts, _predicates, predicates

WORDS = [" dog", " cat", "ing", ".", " Tom", "7", " the", " she"]


def count(tokens, active):
    """Counts of a text [B, T] with latents [B, T, N], by the definition."""
    v, t, n = len(WORDS), tokens.shape[1], active.shape[-1]
    table = {"token": np.zeros((v, n)), "previous": np.zeros((v, n)), "position": np.zeros((t, n))}
    sums = {"n_token": np.zeros(v), "n_previous": np.zeros(v), "n_position": np.zeros(t)}
    for b, i in np.ndindex(*tokens.shape):
        for name, index in (
            ("token", tokens[b, i]),
            ("position", i),
            *((("previous", tokens[b, i - 1]),) if i else ()),
        ):
            table[name][index] += active[b, i]
            sums[f"n_{name}"][index] += 1
    return TokenCounts(**{name: jnp.asarray(a, jnp.float32) for name, a in {**table, **sums}.items()})


def text(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, len(WORDS), (40, 12))
    before = np.concatenate([np.full((40, 1), -1), tokens[:, :-1]], axis=1)
    place = np.broadcast_to(np.arange(12), tokens.shape)
    latents = np.stack([np.isin(tokens, (0, 1)), before == 3, place < 2, rng.random(tokens.shape) < 0.3], axis=-1)
    return count(tokens, latents ^ (rng.random(latents.shape) < 0.02)), tokens, latents


def test_planted_predicates_are_found_and_noise_is_not():
    (train, _, _), (held_out, _, _) = text(0), text(1)
    found = predicates(train, held_out, WORDS)
    table = found.dataset()
    assert "' dog', ' cat'" in found.texts[0] or "' cat', ' dog'" in found.texts[0]
    assert found.texts[1] in ("previous token is one of '.'", "previous token matches [.!?]")
    assert found.texts[2] == "position 0 to 1" and table.kind.values[2] == "positions"
    assert (found.f1[:3] > 0.8).all() and found.f1[3] < 0.5
    assert found.count() == 3 and found.count(least=10_000) == 0


def test_a_first_token_counts_against_predicates_of_the_previous_one():
    """A latent that is active at every first token, and behind word 3: naming word 3 misses the former."""
    tokens = np.random.default_rng(4).integers(0, len(WORDS), (40, 4))
    before = np.concatenate([np.full((40, 1), -1), tokens[:, :-1]], axis=1)
    active = (before == 3) | (before == -1)
    counts = count(tokens, active[..., None])
    found = predicates(counts, counts, WORDS)
    named = before == 3
    of_word = 2 * (named & active).sum() / (named.sum() + active.sum())
    first = np.arange(4)[None] == 0
    of_place = 2 * (first & active).sum() / (40 + active.sum())
    assert of_word < of_place < 1 and found.train_f1[0] == pytest.approx(of_place, rel=1e-6)
    assert found.texts[0] == "position 0 to 0"


def test_a_latent_that_is_active_everywhere_is_not_described():
    tokens = np.random.default_rng(5).integers(0, len(WORDS), (40, 12))
    active = np.stack([np.random.default_rng(6).random(tokens.shape) < 0.9, tokens == 1], axis=-1)
    counts = count(tokens, active)
    found = predicates(counts, counts, WORDS)
    share = active[..., 0].mean()
    assert found.everywhere[0] == pytest.approx(2 * share / (1 + share), rel=1e-6)
    assert found.f1[0] > 0.9 and found.described().tolist() == [False, True] and found.count() == 1


def test_no_set_of_tokens_is_better():
    """F1 of every subset of the vocabulary, on latents of any frequency."""
    rng = np.random.default_rng(3)
    tokens = rng.choice(len(WORDS), (20, 10), p=np.arange(1, 9) / 36)
    active = rng.random((20, 10, 6)) < rng.random((len(WORDS), 6))[tokens]
    counts = count(tokens, active)
    best = np.zeros(6)
    for size in range(1, len(WORDS) + 1):
        for chosen in itertools.combinations(range(len(WORDS)), size):
            named = np.isin(tokens, chosen)
            right = (named[..., None] & active).sum((0, 1))
            best = np.maximum(best, 2 * right / (named.sum() + active.sum((0, 1))))
    found = predicates(counts, counts, WORDS)
    of_tokens = np.asarray(found.kinds) == 0
    assert of_tokens.any()
    np.testing.assert_allclose(found.train_f1[of_tokens], best[of_tokens], rtol=1e-6)
    assert (found.train_f1 >= best - 1e-6).all()


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_small_set_of_tokens_is_better(most):
    """Where few tokens are allowed, rare ones after which a latent is always active do not push a frequent one out."""
    rng = np.random.default_rng(7)
    tokens = rng.choice(len(WORDS), (60, 10), p=np.array([60, 20, 10, 2, 2, 2, 2, 2]) / 100)
    shares = np.array([[0.9, 0.2, 0.1, 1, 1, 1, 1, 1], [0.5, 0.9, 0.9, 1, 0, 1, 0, 1]]).T
    active = rng.random((60, 10, 2)) < shares[tokens]
    counts = count(tokens, active)
    best = np.zeros(2)
    for size in range(1, most + 1):
        for chosen in itertools.combinations(range(len(WORDS)), size):
            named = np.isin(tokens, chosen)
            best = np.maximum(best, 2 * (named[..., None] & active).sum((0, 1)) / (named.sum() + active.sum((0, 1))))
    found = _predicates._best_set(*[(counts.token, counts.n_token, jnp.sum(counts.token, axis=0))] * 2, most)
    np.testing.assert_allclose(found["train"], best, rtol=1e-6)
    assert (np.asarray(found["size"]) <= most).all()


def test_other_sizes_are_told():
    counts = text(0)[0]
    with pytest.raises(ji.InputError, match="3 texts"):
        predicates(counts, counts, WORDS[:3])
