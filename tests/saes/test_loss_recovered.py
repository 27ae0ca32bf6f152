"""Splicing against a loop that does it by hand, and ablations and predicates on the same tiny model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.activations import TokenBatch
from jaxinterp.saes import (
    SAE,
    SAEConfig,
    TopK,
    ablation_effects,
    count_tokens,
    loss_recovered,
    predicates,
    random_dictionary,
)
from tests.tiny import check_close, make_model, make_params, make_tokens

MODEL = make_model(n_layers=2)
PARAMS = make_params(MODEL)
SITE, LAYER, BOS = "resid_post", 0, 3


def make_sae(site=f"{SITE}.{LAYER}", d=8, n=24, seed=0):
    config = SAEConfig(architecture=TopK(k=4, auxiliary=None), d_in=d, n_latents=n, site=site)
    return random_dictionary(config, jax.random.key(seed), jax.random.normal(jax.random.key(1), (64, d)))


def nats(tokens, value, *, model=MODEL, params=PARAMS, site=SITE, layer=LAYER):
    """The cost of each next token [B, T - 1], float64, with a value at a site."""
    handlers = () if value is None else (ji.patch(site, value, layer=layer),)
    logits = np.asarray(ji.run(model.forward, *handlers)(params, tokens)[0], np.float64)[:, :-1]
    top = logits.max(-1)
    out = np.log(np.exp(logits - top[..., None]).sum(-1)) + top
    return out - np.take_along_axis(logits, np.asarray(tokens)[:, 1:, None], -1)[..., 0]


def by_hand(sae, batches, bos, **model):
    fn = model.get("model", MODEL).forward
    params = model.get("params", PARAMS)
    site, layer = model.get("site", SITE), model.get("layer", LAYER)
    values = [ji.run(fn, ji.capture(site))(params, t)[1][site][layer] for t in batches]
    kept = [np.asarray(t) != bos for t in batches]
    rows = np.concatenate([np.asarray(v)[k] for v, k in zip(values, kept, strict=True)])
    mean = rows.astype(np.float64).mean(0)
    costs = {"clean": [], "spliced": [], "zero": [], "mean": []}
    for tokens, value, keep in zip(batches, values, kept, strict=True):
        changed = {"clean": None, "spliced": sae(value), "zero": jnp.zeros_like(value)}
        changed["mean"] = jnp.broadcast_to(jnp.asarray(mean, jnp.float32), value.shape)
        for name, new in changed.items():
            new = None if new is None else jnp.where(keep[..., None], new, value)
            costs[name].append(nats(tokens, new, **model).ravel())
    return {name: np.concatenate(parts).mean() for name, parts in costs.items()}


def test_the_cross_entropies_are_those_of_a_loop():
    """Batches of unequal size: each prediction weighs the same. BOS stands anywhere and is touched in no run."""
    sae = make_sae()
    batches = [make_tokens(2, 6), make_tokens(1, 4, seed=5)]
    got = loss_recovered(sae, MODEL, PARAMS, batches, exclude=(BOS,))
    want = by_hand(sae, batches, BOS)
    for name, value in want.items():
        assert getattr(got, name) == pytest.approx(value, rel=1e-5), name
    assert got.over_zero == pytest.approx((want["zero"] - want["spliced"]) / (want["zero"] - want["clean"]), rel=1e-3)
    assert got.over_mean == pytest.approx((want["mean"] - want["spliced"]) / (want["mean"] - want["clean"]), rel=1e-3)
    assert got.tokens == 13 and got.touched == sum(int((b != BOS).sum()) for b in batches)


def test_packed_texts_count_no_prediction_across_their_borders():
    tokens = np.asarray(make_tokens(1, 8))
    segments = np.array([[0, 0, 0, 0, 1, 1, 1, -1]], np.int32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0]], np.int32)
    packed = TokenBatch(tokens, np.where(segments < 0, -1, segments), positions, segments)
    got = loss_recovered(make_sae(), MODEL, PARAMS, [packed], exclude_positions=(0,))
    alone = loss_recovered(
        make_sae(), MODEL, PARAMS, [tokens[:, :4], tokens[:, 4:7]], exclude_positions=(0,)
    )  # fmt: skip
    assert got.tokens == alone.tokens == 5 and got.touched == alone.touched == 5
    for name in ("clean", "spliced", "zero", "mean"):
        assert getattr(got, name) == pytest.approx(getattr(alone, name), rel=1e-5)


def test_on_the_shipped_model_and_all_is_recovered_by_a_perfect_dictionary():
    lm = ji.zoo.load("stories")
    tokens = lm.encode("Once upon a time there was a dog.")
    bos, d = int(tokens[0, 0]), lm.config.d_model
    sae = make_sae("resid_post.2", d, 512)
    got = loss_recovered(sae, lm.model, lm.params, [tokens], exclude=(bos,))
    want = by_hand(sae, [tokens], bos, model=lm.model, params=lm.params, site="resid_post", layer=2)
    for name, value in want.items():
        assert getattr(got, name) == pytest.approx(value, rel=1e-5), name
    assert got.clean < got.spliced < got.zero
    both = jnp.concatenate([jnp.eye(d), -jnp.eye(d)])
    config = SAEConfig(architecture=TopK(k=d, auxiliary=None), d_in=d, n_latents=2 * d, site="resid_post.2")
    params = dict(W_enc=both, b_enc=jnp.zeros(2 * d), W_dec=both, b_dec=jnp.zeros(d))
    perfect = SAE(params=params, scales=sae.scales, config=config)
    all_of_it = loss_recovered(perfect, lm.model, lm.params, [tokens], exclude=(bos,))
    assert all_of_it.over_zero == pytest.approx(1.0, abs=1e-4) and all_of_it.over_mean == pytest.approx(1.0, abs=1e-4)
    assert not all_of_it.undefined and all_of_it.zero == pytest.approx(got.zero)


def test_a_small_gap_is_undefined():
    got = loss_recovered(make_sae(), MODEL, PARAMS, [make_tokens()])
    assert got.zero - got.clean < 0.05  # a random model predicts as badly without its layer
    assert np.isnan(got.over_zero) and "under 0.05" in got.undefined


def test_what_cannot_be_spliced_is_told():
    config = SAEConfig(architecture=TopK(k=2), d_in=8, n_latents=16, site="ln2.0", target="mlp.out.0")
    transcoder = SAE(params={}, scales={}, config=config)
    with pytest.raises(ji.InputError, match="is a transcoder"):
        loss_recovered(transcoder, MODEL, PARAMS, [make_tokens()])
    with pytest.raises(ji.InputError, match="no batch"):
        loss_recovered(make_sae(), MODEL, PARAMS, [])
    with pytest.raises(ji.InputError, match="leave no position"):
        loss_recovered(make_sae(), MODEL, PARAMS, [make_tokens()], exclude=tuple(range(11)))


def test_effects_of_single_latents_are_those_of_a_loop():
    sae, tokens = make_sae(), make_tokens(3, 5)
    value = ji.run(MODEL.forward, ji.capture(SITE))(PARAMS, tokens)[1][SITE][LAYER]
    codes = np.array(sae.encode(value))
    codes[:, 0] = 0  # excluded
    latents = [int(np.argmax((codes > 0).sum((0, 1)))), int(np.argmin(codes.sum((0, 1))))]
    got = ablation_effects(sae, MODEL, PARAMS, tokens, latents, exclude_positions=(0,))
    effects, spreads = [], []
    for b in range(3):
        t = codes[b, :, latents[0]].argmax()
        if codes[b, t, latents[0]] > 0:
            new = value.at[b, t].add(-codes[b, t, latents[0]] * sae.params["W_dec"][latents[0]])
            run = lambda v: np.asarray(ji.run(MODEL.forward, ji.patch(SITE, v, layer=LAYER))(PARAMS, tokens)[0])
            moved = (run(new) - run(value))[b, t].astype(np.float64)
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
    value = ji.run(MODEL.forward, ji.capture(SITE))(PARAMS, tokens)[1][SITE][LAYER]
    active = np.asarray(sae.encode(value)) > 0
    got = count_tokens(sae, MODEL, PARAMS, [tokens[:2], tokens[2:]], exclude=(BOS,))
    by_token, by_previous, by_position = np.zeros((11, 24)), np.zeros((11, 24)), np.zeros((5, 24))
    for b in range(3):
        for t in range(5):
            if int(tokens[b, t]) != BOS:
                by_token[int(tokens[b, t])] += active[b, t]
                by_position[t] += active[b, t]
                if t:
                    by_previous[int(tokens[b, t - 1])] += active[b, t]
    np.testing.assert_array_equal(got.token, by_token)
    np.testing.assert_array_equal(got.previous, by_previous)
    np.testing.assert_array_equal(got.position, by_position)
    mixed = count_tokens(sae, MODEL, PARAMS, [tokens], exclude=(BOS,), shuffle=jax.random.key(0))
    np.testing.assert_array_equal(mixed.token.sum(0), by_token.sum(0))
    np.testing.assert_array_equal(mixed.n_token, got.n_token)
    assert (np.asarray(mixed.token) != by_token).any()
    found = predicates(got, got, [f" {i}" for i in range(11)])
    check_close(found.train_f1, found.f1)
