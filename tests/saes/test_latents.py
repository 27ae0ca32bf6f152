"""Descriptions of latents against loops over every token, on a tiny model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.activations import TokenBatch
from jaxinterp.saes import ReLU, SAEConfig, TopK, describe_latents, random_dictionary
from jaxinterp.saes._directions import extreme_tokens, nearest_latents
from jaxinterp.saes._events import events_of
from jaxinterp.saes._partners import coactive_latents
from jaxinterp.saes._running import count_into, draws, largest
from jaxinterp.saes._site import as_batch
from tests.tiny import make_model, make_params

MODEL = make_model(n_layers=2)
PARAMS = make_params(MODEL)
N, BEFORE, BEHIND, PAD = 24, 2, 1, -1
RNG = np.random.default_rng(0)


def make_sae(architecture, site="resid_post.0", d=8):
    config = SAEConfig(architecture=architecture, d_in=d, n_latents=N, site=site)
    return random_dictionary(config, jax.random.key(0), jax.random.normal(jax.random.key(1), (64, d)))


def packed(rows, first, n_ctx=10):
    """Texts of lengths `rows` in rows of tokens; few tokens, so that windows come twice, but no two texts begin alike."""
    shape = (len(rows), n_ctx)
    tokens, documents, positions = (np.zeros(shape, np.int32) for _ in range(3))
    segments = np.full(shape, -1, np.int32)
    for b, lengths in enumerate(rows):
        start = 0
        for i, length in enumerate(lengths):
            at = slice(start, start + length)
            tokens[b, at], positions[b, at], segments[b, at] = RNG.integers(0, 3, length), np.arange(length), i
            tokens[b, start : start + 2] = divmod(first, 11)
            start, first = start + length, first + 1
    documents[segments < 0] = -1
    return TokenBatch(tokens, documents, positions, segments)


BATCHES = [packed([[4, 4], [3, 3, 3], [10], [6]], 7 * i) for i in range(16)]


@jax.jit
def codes_of(sae, batch):
    how = dict(positions=batch.positions, segments=batch.segments)
    value = ji.run(MODEL.forward, ji.capture("resid_post"))(PARAMS, batch.tokens, **how)[1]["resid_post"][0]
    return sae.encode(value)


def by_hand(sae, batches):
    """All tokens that are counted, in order: activations [n, N], and of each its text and its window."""
    codes, places = [], []
    for number, batch in enumerate(batches):
        z = np.asarray(codes_of(sae, jax.tree.map(jnp.asarray, batch)))
        for b, t in np.ndindex(batch.tokens.shape):
            if batch.segments[b, t] >= 0 and batch.positions[b, t] > 0:
                window = [
                    (int(batch.tokens[b, s]), z[b, s] * (batch.positions[b, s] > 0))
                    if 0 <= s < 10 and batch.segments[b, s] == batch.segments[b, t]
                    else (PAD, np.zeros(N))
                    for s in range(t - BEFORE, t + BEHIND + 1)
                ]
                codes.append(z[b, t])
                places.append(((number, b, batch.segments[b, t]), window))
    return np.array(codes), places


SETTINGS = dict(n_top=3, n_quantiles=3, per_quantile=2, context=(BEFORE, BEHIND), n_tokens=2, n_latents=4)


@pytest.fixture(scope="module", params=["topk", "relu"])
def case(request):
    sae = make_sae(TopK(k=4, auxiliary=None) if request.param == "topk" else ReLU())
    got = describe_latents(sae, MODEL, PARAMS, iter(BATCHES), exclude_positions=[0], **SETTINGS)
    return sae, got, *by_hand(sae, BATCHES)


def test_rates_sizes_and_histograms(case):
    _, got, codes, _ = case
    active = codes > 0
    assert got.rows == len(codes)
    np.testing.assert_allclose(got.firing_rate, active.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.max_activation, codes.max(0), rtol=1e-5)
    np.testing.assert_allclose(got.mean_activation, codes.sum(0) / np.maximum(active.sum(0), 1), rtol=1e-5)
    assert (active.sum(0) == 0).any() or active.any(0).all()
    for i in range(N):
        edges = np.arange(65) * float(got.bin_width[i])
        if active[:, i].any():
            assert edges[32] <= codes[:, i].max() < edges[64] and np.log2(got.bin_width[i]) % 1 == 0
            np.testing.assert_array_equal(got.counts[i], np.histogram(codes[active[:, i], i], edges)[0])
        else:
            assert not got.counts[i].any() and got.bin_width[i] == 0


def check_contexts(tokens, activations, expected, latent):
    """`expected`: windows, of which there may be fewer than places."""
    for at in range(len(tokens)):
        window = expected[at] if at < len(expected) else [(PAD, np.zeros(N))] * len(tokens[at])
        assert tokens[at].tolist() == [token for token, _ in window]
        np.testing.assert_allclose(activations[at], [z[latent] for _, z in window], rtol=1e-5, atol=1e-6)


def test_top_contexts_are_the_largest_of_each_text_each_window_once(case):
    _, got, codes, places = case
    for i in range(N):
        best = {}
        for z, (text, window) in zip(codes[:, i], places, strict=True):
            if z > best.get(text, (0,))[0]:
                best[text] = (z, window)
        windows = {}
        for z, window in best.values():
            words = tuple(token for token, _ in window[: BEFORE + 1])
            if z > windows.get(words, (0,))[0]:
                windows[words] = (z, window)
        ranked = sorted(windows.values(), key=lambda one: -one[0])
        check_contexts(got.top.tokens[i], got.top.activations[i], [window for _, window in ranked], i)


def test_quantile_contexts_are_a_sorted_sample_in_equal_parts(case):
    _, got, codes, places = case
    for i in range(N):
        active = np.flatnonzero(codes[:, i] > 0)
        sample = active[np.argsort(draws(active * N + i))[:6]]
        sample = sample[np.argsort(-codes[sample, i], kind="stable")]
        for quantile in range(3):
            part = sample[quantile * len(sample) // 3 : (quantile + 1) * len(sample) // 3]
            contexts = got.quantiles.tokens[i, quantile], got.quantiles.activations[i, quantile]
            check_contexts(*contexts, [places[row][1] for row in part], i)


def test_coactive_latents(case):
    _, got, codes, _ = case
    active = codes > 0
    fired = active.sum(0)
    assert fired.max() > 64 > fired[fired > 0].min()
    for i in np.flatnonzero(fired):
        rows = np.flatnonzero(active[:, i])
        share = active[rows[np.argsort(draws(rows * N + i))[:64]]].mean(0)
        both = np.minimum(share * fired[i], fired)
        jaccard = both / (fired[i] + fired - both)
        jaccard[i] = -1
        order = np.argsort(-jaccard, kind="stable")[:4]
        np.testing.assert_allclose(got.coactive.values[i], jaccard[order], rtol=1e-5)
        there = got.coactive.ids[i] >= 0
        np.testing.assert_array_equal(there, jaccard[order] > 0)
        np.testing.assert_allclose(jaccard[got.coactive.ids[i][there]], jaccard[order][there], rtol=1e-5)
        np.testing.assert_allclose(got.coactive_share[i][there], share[got.coactive.ids[i][there]], rtol=1e-5)


def test_nearest_latents_and_tokens(case):
    sae, got, _, _ = case
    rows = np.asarray(sae.params["W_dec"], np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    np.testing.assert_array_equal(got.nearest.ids, np.argsort(-cosines, axis=1)[:, :4])
    np.testing.assert_allclose(got.nearest.values, np.sort(cosines, axis=1)[:, ::-1][:, :4], atol=1e-5)
    normed = rows - rows.mean(1, keepdims=True)
    normed /= np.sqrt((normed**2).mean(1, keepdims=True) + 1e-5 / 8)
    final = {name: np.asarray(leaf, np.float64) for name, leaf in PARAMS["ln_final"].items()}
    logits = (normed * final["w"]) @ np.asarray(PARAMS["unembed"]["W_U"], np.float64)
    logits -= logits.mean(1, keepdims=True)
    np.testing.assert_array_equal(got.promoted.ids, np.argsort(-logits, axis=1)[:, :2])
    np.testing.assert_array_equal(got.suppressed.ids, np.argsort(logits, axis=1)[:, :2])
    np.testing.assert_allclose(got.promoted.values, np.sort(logits, axis=1)[:, ::-1][:, :2], rtol=1e-4)
    np.testing.assert_allclose(got.suppressed.values, np.sort(logits, axis=1)[:, :2], rtol=1e-4)


@pytest.mark.parametrize("case", ["topk"], indirect=True)
def test_texts_batched_otherwise_give_the_same(case):
    """Rows one after the other in batches of another size; batches of ids without segments are one text a row."""
    sae, got, *_ = case
    larger = [
        TokenBatch(*(np.concatenate(parts) for parts in zip(*BATCHES[i : i + 4], strict=True))) for i in range(0, 16, 4)
    ]
    again = describe_latents(sae, MODEL, PARAMS, larger, exclude_positions=[0], **SETTINGS)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert set(got.dataset().dims) >= {"latent", "example", "offset", "quantile", "quantile_example", "bin"}
    assert got.dataset().offset.values.tolist() == [-2, -1, 0, 1]


def test_exclusions_thresholds_and_sites_outside_the_residual_stream():
    sae = make_sae(TopK(k=4, auxiliary=None), "attn.z.1", 16)
    tokens = RNG.integers(0, 3, (4, 10)).astype(np.int32)
    got = describe_latents(sae, MODEL, PARAMS, [tokens], exclude=[2], threshold=0.3, **SETTINGS)
    assert got.rows == (tokens != 2).sum() and got.promoted.ids.shape == (N, 0)
    center = got.top.tokens[..., BEFORE]
    assert (center != 2).all() and (got.top.tokens == 2).any()
    values = got.top.activations[center >= 0]
    assert (values[:, BEFORE] > 0.3).all() and (got.top.activations[got.top.tokens == 2] == 0).all()
    own = describe_latents(sae, MODEL, PARAMS, [tokens], unembed=lambda rows: rows[:, :5], **SETTINGS)
    assert own.promoted.ids.max() == 4 and own.rows == 40
    silent = describe_latents(sae, MODEL, PARAMS, [tokens], threshold=1e6, **SETTINGS)
    assert not silent.firing_rate.any() and (silent.quantiles.tokens == -1).all() and (silent.coactive.ids == -1).all()
    with pytest.raises(ji.InputError, match="saw no token"):
        describe_latents(sae, MODEL, PARAMS, [tokens], exclude=[0, 1, 2])
    with pytest.raises(ji.InputError, match="n_top=0, behind=-1: numbers of contexts"):
        describe_latents(sae, MODEL, PARAMS, [tokens], n_top=0, context=(0, -1))
    bad = jax.tree.map(lambda leaf: leaf * jnp.nan, sae.params)
    with pytest.raises(ji.InputError, match=r"'attn.z.1' in batch 0 are not all finite"):
        describe_latents(dataclasses.replace(sae, params=bad), MODEL, PARAMS, [tokens])


def test_histograms_grow_by_any_factor():
    counts, exponents = np.zeros((2, 64), np.int64), np.full(2, -(2**30))
    values = np.float32([1e-6, 3.0, 0.1, 0.0625, 700.0, 512.0, 1e9])
    for value in values:
        count_into(counts, exponents, np.array([1]), np.array([value]))
    width = 2.0 ** exponents[1] / 64
    np.testing.assert_array_equal(counts[1], np.histogram(values, np.arange(65) * width)[0])
    assert not counts[0].any()


def test_the_largest_of_many_offers():
    """Against a loop that keeps all, with identities that come again."""
    rng = np.random.default_rng(0)
    kept = largest(5, 3, value=((), np.float64, 0.0), identities=((), np.uint64, 0))
    everything = {}
    for _ in range(30):
        latents, keys, identities = (
            rng.integers(0, 5, 20),
            rng.normal(size=20),
            rng.integers(0, 40, 20).astype(np.uint64),
        )
        kept.offer(latents, keys, lambda taken: {"value": keys[taken]}, identities=identities)  # noqa: B023
        for latent, key, identity in zip(latents, keys, identities, strict=True):
            everything[latent, identity] = max(key, everything.get((latent, identity), -np.inf))
        for latent in range(5):
            best = sorted((key for (own, _), key in everything.items() if own == latent), reverse=True)[:3]
            sizes, data = kept.ordered(kept.keys)
            assert data["value"][latent, : sizes[latent]].tolist() == best


def test_of_a_row_with_many_active_latents_the_strongest_are_remembered(monkeypatch):
    monkeypatch.setattr("jaxinterp.saes._events.LATENTS_OF_ROW", 2)
    codes = np.float32([[3, 1, 2, 0], [0, 0, 0, 0], [0, 4, 0, 0], [5, 6, 7, 8]])
    events = events_of(codes, as_batch(np.zeros((2, 2), int), (), ()), (1, 1), 0.0, where="here")
    assert events.sets(np.array([0, 3, 2])).tolist() == [[0, 2], [3, 2], [1, -1]]


@pytest.mark.parametrize("case", ["topk"], indirect=True)
def test_directions_are_compared_by_blocks(case, monkeypatch):
    sae, got, *_ = case
    monkeypatch.setattr("jaxinterp.saes._directions.ELEMENTS", 7 * N)
    again = nearest_latents(sae, 4)
    np.testing.assert_array_equal(again.ids, got.nearest.ids)
    up, down = extreme_tokens(sae, MODEL, PARAMS, None, np.float32, 2)
    np.testing.assert_array_equal(up.ids, got.promoted.ids)
    np.testing.assert_array_equal(down.ids, got.suppressed.ids)


def test_partners_are_counted_by_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    sets = np.where(rng.random((7, 5, 3)) < 0.7, rng.integers(0, 7, (7, 5, 3)), -1)
    sizes, fired = rng.integers(1, 6, 7), np.full(7, 9)
    whole = coactive_latents(sets, sizes, fired, 3)
    monkeypatch.setattr("jaxinterp.saes._partners.ELEMENTS", 14)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(coactive_latents(sets, sizes, fired, 3)), strict=True):
        np.testing.assert_array_equal(a, b)
