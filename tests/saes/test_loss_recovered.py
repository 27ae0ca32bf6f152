"""Splicing against a loop that does it by hand, and ablations and predicates on the same tiny model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.activations import TokenBatch
from jaxinterp.saes import (
    SAE,
    LossRecovered,
    SAEConfig,
    TopK,
    ablation_effects,
    count_tokens,
    init,
    loss_recovered,
    predicates,
    random_dictionary,
)
from tests.tiny import check_close, make_model, make_params, make_tokens

MODEL = make_model(n_layers=2)
PARAMS = make_params(MODEL)
SITE, LAYER = "resid_post", 0
BOS = int(make_tokens(3, 5)[0, 2])  # one that is there, and not in front


def make_sae(site=f"{SITE}.{LAYER}", d=8, n=24, seed=0):
    config = SAEConfig(architecture=TopK(k=4, auxiliary=None), d_in=d, n_latents=n, site=site)
    return random_dictionary(config, jax.random.key(seed), jax.random.normal(jax.random.key(1), (64, d)))


@functools.partial(jax.jit, static_argnames=("model", "site", "layer"))
def forward(params, tokens, value=None, *, model=MODEL, site=SITE, layer=LAYER):
    """Logits, and the value at the site; with another value put there, where one is given."""
    handlers = (ji.capture(site),) if value is None else (ji.patch(site, value, layer=layer),)
    logits, acts, _ = ji.run(model.forward, *handlers)(params, tokens)
    return logits, acts[site][layer] if value is None else value


def nats(tokens, logits):
    """The cost of each next token [B, T - 1], float64."""
    logits = np.asarray(logits, np.float64)[:, :-1]
    top = logits.max(-1)
    out = np.log(np.exp(logits - top[..., None]).sum(-1)) + top
    return out - np.take_along_axis(logits, np.asarray(tokens)[:, 1:, None], -1)[..., 0]


def by_hand(sae, batches, bos, params=PARAMS, **model):
    """The four cross-entropies, one run after the other."""
    clean = [forward(params, t, **model) for t in batches]
    kept = [np.asarray(t) != bos for t in batches]
    rows = np.concatenate([np.asarray(v)[k] for (_, v), k in zip(clean, kept, strict=True)])
    mean = jnp.asarray(rows.astype(np.float64).mean(0), jnp.float32)
    costs = {"clean": [nats(t, logits).ravel() for t, (logits, _) in zip(batches, clean, strict=True)]}
    ways = {"spliced": sae, "zero": jnp.zeros_like, "mean": lambda v: jnp.broadcast_to(mean, v.shape)}
    for name, way in ways.items():
        changed = [jnp.where(k[..., None], way(v), v) for (_, v), k in zip(clean, kept, strict=True)]
        costs[name] = [
            nats(t, forward(params, t, v, **model)[0]).ravel() for t, v in zip(batches, changed, strict=True)
        ]
    return {name: np.concatenate(parts).mean() for name, parts in costs.items()}


def test_the_cross_entropies_are_those_of_a_loop():
    """Batches of unequal size: each prediction weighs the same. BOS stands anywhere and is touched in no run."""
    sae = make_sae()
    batches = [make_tokens(3, 5), make_tokens(1, 4, seed=5)]
    got = loss_recovered(sae, MODEL, PARAMS, batches, exclude=(BOS,), exclude_positions=())
    want = by_hand(sae, batches, BOS)
    for name, value in want.items():
        assert getattr(got, name) == pytest.approx(value, rel=1e-5), name
    assert got.over_zero == pytest.approx((want["zero"] - want["spliced"]) / (want["zero"] - want["clean"]), rel=1e-3)
    assert got.over_mean == pytest.approx((want["mean"] - want["spliced"]) / (want["mean"] - want["clean"]), rel=1e-3)
    assert got.tokens == 15 and got.touched == sum(int((b != BOS).sum()) for b in batches)


def test_packed_texts_count_no_prediction_across_their_borders():
    tokens = np.asarray(make_tokens(1, 9))
    segments = np.array([[0, 0, 0, 0, 1, 1, 1, 1, -1]], np.int32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 0]], np.int32)
    packed = TokenBatch(tokens, np.where(segments < 0, -1, segments), positions, segments)
    got = loss_recovered(make_sae(), MODEL, PARAMS, [packed])
    alone = loss_recovered(make_sae(), MODEL, PARAMS, [tokens[:, :4], tokens[:, 4:8]])
    assert got.tokens == alone.tokens == 6 and got.touched == alone.touched == 6
    for name in ("clean", "spliced", "zero", "mean"):
        assert getattr(got, name) == pytest.approx(getattr(alone, name), rel=1e-5)


def test_on_the_shipped_model():
    lm = ji.zoo.load("stories")
    tokens = lm.encode("Once upon a time there was a dog.")
    bos = int(tokens[0, 0])
    sae = make_sae("resid_post.2", lm.config.d_model, 512)
    got = loss_recovered(sae, lm.model, lm.params, [tokens])  # BOS stands in front, and is left alone
    want = by_hand(sae, [tokens], bos, lm.params, model=lm.model, site="resid_post", layer=2)
    for name, value in want.items():
        assert getattr(got, name) == pytest.approx(value, rel=1e-5), name
    assert got.clean < got.spliced < got.zero and got.touched == tokens.size - 1 and not got.undefined


def test_a_transcoder_stands_in_for_its_target():
    config = SAEConfig(architecture=TopK(k=4), d_in=8, n_latents=24, site="mlp.in.0", target="mlp.out.0")
    transcoder = init(config, jax.random.key(0))
    tokens = make_tokens(3, 5)
    _, acts, _ = ji.run(MODEL.forward, ji.capture("mlp.in", "mlp.out"))(PARAMS, tokens)
    kept = jnp.arange(5)[None, :, None] > 0
    guess = jnp.where(kept, transcoder(acts["mlp.in"][0]), acts["mlp.out"][0])
    got = loss_recovered(transcoder, MODEL, PARAMS, [tokens])
    for value, name in ((guess, "spliced"), (jnp.where(kept, 0.0, acts["mlp.out"][0]), "zero")):
        logits = ji.run(MODEL.forward, ji.patch("mlp.out", value, layer=0))(PARAMS, tokens)[0]
        assert getattr(got, name) == pytest.approx(nats(tokens, logits).mean(), rel=1e-5)
    effects = ablation_effects(transcoder, MODEL, PARAMS, tokens, range(24))
    assert np.isfinite(effects.effect).any()


def test_a_perfect_dictionary_changes_nothing():
    both = jnp.concatenate([jnp.eye(8), -jnp.eye(8)])
    config = SAEConfig(architecture=TopK(k=8, auxiliary=None), d_in=8, n_latents=16, site="resid_post.0")
    params = dict(W_enc=both, b_enc=jnp.zeros(16), W_dec=both, b_dec=jnp.zeros(8))
    got = loss_recovered(
        SAE(params=params, scales=make_sae().scales, config=config), MODEL, PARAMS, [make_tokens(1, 4)]
    )
    assert got.spliced == pytest.approx(got.clean, rel=1e-6)


def test_a_small_gap_is_undefined():
    got = LossRecovered(clean=2.0, spliced=2.01, zero=2.04, mean=2.06, tokens=9, touched=8)
    assert np.isnan(got.over_zero) and got.over_mean == pytest.approx(5 / 6)
    assert "zero ablation: it costs 0.040 nats" in got.undefined and "mean" not in got.undefined


def test_what_cannot_be_spliced_is_told():
    with pytest.raises(ji.InputError, match="no batch"):
        loss_recovered(make_sae(), MODEL, PARAMS, [])
    with pytest.raises(ji.InputError, match="leave no position"):
        loss_recovered(make_sae(), MODEL, PARAMS, [make_tokens(3, 5)], exclude=tuple(range(11)))


def test_effects_of_single_latents_are_those_of_a_loop():
    sae, tokens = make_sae(), make_tokens(3, 5)
    value = forward(PARAMS, tokens)[1]
    codes = np.array(sae.encode(value))
    codes[:, 0] = 0  # excluded
    latents = [int(np.argmax((codes > 0).sum((0, 1)))), int(np.argmin(codes.sum((0, 1))))]
    got = ablation_effects(sae, MODEL, PARAMS, tokens, latents)
    effects, spreads = [], []
    for b in range(3):
        t = codes[b, :, latents[0]].argmax()
        if codes[b, t, latents[0]] > 0:
            new = value.at[b, t].add(-codes[b, t, latents[0]] * sae.params["W_dec"][latents[0]])
            moved = np.float64(forward(PARAMS, tokens, new)[0] - forward(PARAMS, tokens, value)[0])[b, t]
            moved -= np.median(moved)
            effects.append(np.sqrt((moved**2).mean()))
            spreads.append(np.abs(moved).sum() ** 2 / (moved**2).sum() / len(moved))
    assert got.texts.tolist()[0] == len(effects) > 0
    assert got.effect[0] == pytest.approx(np.mean(effects), rel=1e-3)
    assert got.spread[0] == pytest.approx(np.mean(spreads), rel=1e-3)
    assert got.random_effect[0] > 0
    if codes[:, :, latents[1]].max() == 0:
        assert np.isnan(got.effect[1])


def test_counts_are_those_of_a_loop_and_shuffling_keeps_their_sums():
    sae, tokens = make_sae(), make_tokens(3, 5)
    value = forward(PARAMS, tokens)[1]
    active = np.asarray(sae.encode(value)) > 0
    got = count_tokens(sae, MODEL, PARAMS, [tokens, tokens], exclude=(BOS,))
    by_token, by_previous, by_position = np.zeros((11, 24)), np.zeros((11, 24)), np.zeros((5, 24))
    for b, t in np.ndindex(3, 5):
        for _ in range(2):
            if int(tokens[b, t]) != BOS:
                by_token[int(tokens[b, t])] += active[b, t]
                by_position[t] += active[b, t]
                if t:
                    by_previous[int(tokens[b, t - 1])] += active[b, t]
    np.testing.assert_array_equal(got.token, by_token)
    np.testing.assert_array_equal(got.previous, by_previous)
    np.testing.assert_array_equal(got.position, by_position)
    mixed = count_tokens(sae, MODEL, PARAMS, [tokens, tokens], exclude=(BOS,), shuffle=jax.random.key(0))
    np.testing.assert_array_equal(mixed.token.sum(0), by_token.sum(0))
    np.testing.assert_array_equal(mixed.n_token, got.n_token)
    assert (np.asarray(mixed.token) != by_token).any()
    found = predicates(got, got, [f" {i}" for i in range(11)])
    check_close(found.train_f1, found.f1)
