"""What every guest does, against the framework's own call with one value changed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import patching
from tests.guests.conftest import SHAPES, SOURCE, TOKENS, N
from tests.tiny import check_close, check_same


def test_without_handlers_it_is_the_frameworks_own_call(case):
    check_same(jax.jit(case.forward)(case.params, TOKENS), jax.jit(case.logits)(TOKENS))


def test_its_sites_are_listed(any_case):
    table = ji.sites(any_case.forward, any_case.params, TOKENS)
    assert {s.name: s.stacked_shape for s in table} == SHAPES
    assert {s.axes for s in table} == {"BTD"}


def test_captures_are_the_frameworks_own_values(some_case):
    handlers = ji.capture("*"), ji.capture("attn.out", layers=[1], prefix="last/")
    with jax.checking_leaks():
        acts = jax.jit(lambda p, t: ji.run(some_case.forward, *handlers)(p, t)[1])(some_case.params, TOKENS)
    assert acts.keys() == {*SHAPES, "last/attn.out"}
    places = ("embed", None), ("attn.out", 0), ("mlp.out", 1), ("resid_post", 1)
    for (site, layer), want in zip(places, some_case.values(TOKENS, places), strict=True):
        check_close(acts[site] if layer is None else acts[site][layer], want, 1e-6)
    check_same(acts["last/attn.out"][0], acts["attn.out"][1])


def test_edits_are_changes_by_hand_and_the_layer_is_data(case):
    edit = lambda i: ji.run(case.forward, ji.zero("attn.out", layer=i, position=1), ji.add("embed", 0.5, feature=3))
    got = jax.jit(jax.vmap(lambda i: edit(i)(case.params, TOKENS)[0]))(jnp.arange(N))

    def by_hand(tokens):
        zeroed = lambda i: {
            ("attn.out", i): lambda x: x.at[:, 1].set(0),
            ("embed", None): lambda x: x.at[..., 3].add(0.5),
        }
        return jnp.stack([case.logits(tokens, zeroed(i)) for i in range(N)])

    want = jax.jit(by_hand)(TOKENS)
    check_close(got, want)
    assert np.abs(want[0] - want[1]).max() > 1e-3


def test_gradients_at_activations(case):
    def guest(delta):
        return jnp.sum(ji.run(case.forward, ji.perturb({"mlp.out": delta}))(case.params, TOKENS)[0][:, -1, 2])

    def framework(delta):
        return jnp.sum(case.logits(TOKENS, {("mlp.out", 1): lambda x: x + delta})[:, -1, 2])

    got = jax.jit(jax.grad(guest))(jnp.zeros(SHAPES["mlp.out"]))
    check_close(got[1], jax.jit(jax.grad(framework))(jnp.zeros(SHAPES["mlp.out"][1:])))


def test_the_sweep_is_a_loop_over_forwards(case):
    metric = patching.logit_difference([3, 4], [5, 6], position=[3, 3])
    got = patching.sweep(
        case.forward, case.params, base=TOKENS, source=SOURCE, site="attn.out", over="layer,position", metric=metric,
        keep=("prompts",), progress=False,
    )  # fmt: skip
    donors = case.values(SOURCE, [("attn.out", layer) for layer in range(N)])

    def by_hand(position):
        put = lambda layer: lambda x: jnp.where(jnp.arange(4).reshape(1, 4, 1) == position, donors[layer], x)
        return jnp.stack([case.logits(TOKENS, {("attn.out", layer): put(layer)})[:, 3] for layer in range(N)])

    one = jax.jit(by_hand)
    logits = np.stack([one(p) for p in (-1, 0, 1, 2, 3)], 1)  # position -1 is nowhere: the base run
    measured = np.stack([logits[:, :, 0, 3] - logits[:, :, 0, 5], logits[:, :, 1, 4] - logits[:, :, 1, 6]], -1)
    want = measured[:, 1:] - measured[:, :1]
    assert np.abs(got.effect_by_prompt.values - want).max() < 1e-5
    assert np.abs(want).max() > 1e-2


def test_a_misspelt_site_and_a_layer_that_is_not_there(case):
    look = lambda handler: jax.eval_shape(lambda p, t: ji.run(case.forward, handler)(p, t)[0], case.params, TOKENS)
    with pytest.raises(ji.UnvisitedSiteError, match=r"'attn\.out'"):
        look(ji.capture("atn.out"))
    with pytest.raises(ji.SiteIndexError, match="2 layers"):
        look(ji.zero("attn.out", layer=N))
