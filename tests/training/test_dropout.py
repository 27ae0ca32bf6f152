"""Dropout as a handler: rate, scale, sharing, layers, and that rate 0 changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import training


def _tap(x, *, tap):
    return tap("x", x, "BTHE")


def _model():
    config = ji.TransformerConfig(n_layers=3, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=11, d_mlp=16)
    model = ji.Model(config=config)
    return model, model.init(jax.random.key(0)), jnp.arange(10, dtype=jnp.int32).reshape(2, 5)


def test_it_drops_at_its_rate_and_scales_up_the_rest():
    x = jnp.ones((20, 10, 10, 10))
    y = np.asarray(ji.run(_tap, training.dropout("x", 0.25, key=jax.random.key(1)))(x)[0])
    assert abs((y == 0).mean() - 0.25) < 0.01
    np.testing.assert_allclose(np.unique(y), [0.0, 4 / 3], rtol=1e-6)


def test_shared_axes_drop_whole_heads():
    y = np.asarray(
        ji.run(_tap, training.dropout("x", 0.5, key=jax.random.key(1), share="TE"))(jnp.ones((30, 4, 6, 5)))[0]
    )
    assert all(len(np.unique(y[b, :, h])) == 1 for b in range(30) for h in range(6))
    assert 0.3 < (y == 0).mean() < 0.7


def test_layers_draw_differently_and_keys_decide():
    model, params, tokens = _model()
    drop = lambda seed: training.dropout("attn.out", 0.5, key=jax.random.key(seed))
    call = lambda seed: ji.run(model.forward, drop(seed), ji.capture("attn.out"))(params, tokens)
    acts = np.asarray(call(0)[1]["attn.out"])
    assert not np.array_equal(acts[0] == 0, acts[1] == 0)
    assert np.array_equal(acts, call(0)[1]["attn.out"]) and not np.array_equal(acts, call(1)[1]["attn.out"])


def test_rate_zero_changes_nothing_and_a_traced_rate_works():
    model, params, tokens = _model()
    plain = model.forward(params, tokens)
    f = jax.jit(
        lambda rate: ji.run(model.forward, training.dropout("mlp.out", rate, key=jax.random.key(0)))(params, tokens)[0]
    )
    np.testing.assert_allclose(f(0.0), plain, atol=1e-6)
    assert np.abs(np.asarray(f(0.5) - plain)).max() > 1e-3


def test_what_is_dropped_gets_no_gradient():
    f = lambda x: ji.run(_tap, training.dropout("x", 0.5, key=jax.random.key(2)))(x)[0].sum()
    x = jnp.ones((2, 3, 4, 5))
    gradient = np.asarray(jax.grad(f)(x))
    assert set(np.unique(gradient)) == {0.0, 2.0}


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_a_rate_that_is_no_probability_is_an_error(rate):
    with pytest.raises(ji.InputError, match="probability"):
        training.dropout("x", rate, key=jax.random.key(0))


def test_an_axis_that_the_site_lacks_is_an_error():
    with pytest.raises(ji.SiteTypeError, match="axes"):
        ji.run(_tap, training.dropout("x", 0.5, key=jax.random.key(0), share="S"))(jnp.ones((1, 1, 1, 1)))
