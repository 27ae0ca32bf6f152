"""One step: the update itself, the key, purity."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinterp import training


def _quadratic(params, batch, key):
    loss = jnp.sum((params["W_a"] - batch) ** 2)
    return loss, {"loss": loss, "draw": jax.random.uniform(key)}


def test_one_step_of_gradient_descent_is_the_formula():
    step = training.train_step(_quadratic, optax.sgd(0.1))
    start = jnp.array([3.0, -1.0])
    state, metrics = step(training.init_state({"W_a": start}, optax.sgd(0.1)), jnp.ones(2), jax.random.key(0))
    gradient = 2 * (start - 1.0)
    np.testing.assert_allclose(state.params["W_a"], start - 0.1 * gradient, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-6)
    assert int(state.step) == 1


def test_each_step_draws_anew_and_a_resumed_run_draws_the_same():
    optimizer = training.adamw(1e-2)
    step = jax.jit(training.train_step(_quadratic, optimizer))
    key, batch = jax.random.key(3), jnp.ones(2)
    states, draws = [training.init_state({"W_a": jnp.zeros(2)}, optimizer)], []
    for _ in range(4):
        state, metrics = step(states[-1], batch, key)
        states.append(state)
        draws.append(float(metrics["draw"]))
    assert len(set(draws)) == 4
    state = states[2]
    for expected in draws[2:]:
        state, metrics = step(state, batch, key)
        assert float(metrics["draw"]) == expected
    np.testing.assert_array_equal(state.params["W_a"], states[-1].params["W_a"])
