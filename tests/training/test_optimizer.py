"""AdamW: what decays, what is clipped; the schedule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp import InputError, training


def _updates(params, gradient, **settings):
    optimizer = training.adamw(0.1, **settings)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return optimizer.update(gradient, optimizer.init(params), params)[0]


def test_only_matrices_decay():
    params = {"ln1": {"w": jnp.ones(2)}, "attn": {"W_Q": jnp.ones((2, 2)), "b_Q": jnp.ones(2)}}
    updates = _updates(params, jax.tree.map(jnp.zeros_like, params), weight_decay=0.5)
    np.testing.assert_allclose(updates["attn"]["W_Q"], -0.1 * 0.5)
    assert not np.any(updates["attn"]["b_Q"]) and not np.any(updates["ln1"]["w"])


def test_a_clipped_gradient_counts_by_its_direction_alone():
    params = {"W_a": jnp.zeros(2)}
    optimizer = training.adamw(0.1, clip=1.0, weight_decay=0.0)

    def moment(scale):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            state = optimizer.update({"W_a": scale * jnp.array([3.0, 4.0])}, optimizer.init(params), params)[1]
        return next(leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,))

    np.testing.assert_allclose(moment(1.0), moment(100.0), rtol=1e-5)
    np.testing.assert_allclose(moment(1.0), 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


def test_the_schedule_climbs_and_falls():
    rate = training.warmup_cosine(2.0, steps=100, warmup=10, final=0.05)
    values = [float(rate(step)) for step in range(101)]
    assert values[0] == 0 and np.argmax(values) == 10 and abs(values[10] - 2.0) < 1e-6
    assert all(a >= b for a, b in itertools.pairwise(values[10:])) and abs(values[100] - 0.1) < 1e-6


@pytest.mark.parametrize("warmup", [-1, 100, 200])
def test_a_warm_up_longer_than_the_run_is_an_error(warmup):
    with pytest.raises(InputError, match="warm-up"):
        training.warmup_cosine(1.0, steps=100, warmup=warmup)
