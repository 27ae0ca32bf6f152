"""Tiny transformers for tests, with weights so large that attention is far from uniform and no bias or norm is idle."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji

BASE = dict(n_layers=3, d_model=8, n_ctx=12, n_heads=4, d_head=4, d_vocab=11, d_mlp=12)


def make_model(**changes) -> ji.Model:
    return ji.Model(config=ji.TransformerConfig(**(BASE | changes)))


def make_params(model, seed=0, dtype=jnp.float32):
    """Random numbers everywhere: weights, biases, norms."""
    rng = np.random.default_rng(seed)

    def leaf(path, spec):
        name = path[-1].key
        noise = rng.normal(size=spec.shape)
        if name == "w":
            return jnp.asarray(1 + 0.3 * noise, dtype)
        spread = {"W_E": 1.0, "W_pos": 1.0, "W_Q": 0.8, "W_K": 0.8}.get(name, 0.3)
        return jnp.asarray(spread * noise, dtype)

    return jax.tree_util.tree_map_with_path(leaf, model.param_shapes())


def make_tokens(batch=2, length=6, seed=0, vocab=11):
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, (batch, length)), jnp.int32)


def check_close(got, want, tolerance=1e-5):
    """Max abs difference over max abs value of the reference."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    assert np.isfinite(got).all() and np.isfinite(want).all()
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    assert error <= tolerance, error


def check_same(got, want):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
