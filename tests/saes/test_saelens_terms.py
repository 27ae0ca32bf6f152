"""The terms of losses that SAELens has otherwise than the papers, against their formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.saes import AuxK, Matryoshka, TopK
from tests.saes import naive
from tests.saes.problems import N, make_config, make_params, make_rows, make_training
from tests.tiny import check_close


def loss(config, params, x):
    at = make_training(config)
    return jax.value_and_grad(lambda params: config.architecture.loss(params, x, x, at)[0])(params)


def test_matryoshka_may_sum_its_errors():
    mean = make_config(Matryoshka(k=2, widths=(8, 24), auxiliary=None))
    summed = make_config(dataclasses.replace(mean.architecture, combine="sum"))
    params, x = make_params(mean), make_rows()
    jax.tree.map(lambda one, three: check_close(three, 3 * one), loss(mean, params, x), loss(summed, params, x))


def test_dead_latents_may_count_below_zero():
    k = 5
    config = make_config(TopK(k=3, auxiliary=AuxK(k=k, error_scale="sum", rectified=False), error_scale="sum"))
    params, x = make_params(config), make_rows()
    params["b_enc"] = jnp.where(jnp.arange(N) % 3 == 0, params["b_enc"] - 2.0, params["b_enc"])  # the dead ones
    dead = (jnp.arange(N) % 3 == 0)[None]

    def formula(params):
        z = naive.dot(x - params["b_dec"][None], params["W_enc"].T) + params["b_enc"][None]
        out = (
            naive.dot(jnp.where(naive.keep_largest(z, 3), jnp.maximum(z, 0), 0), params["W_dec"])
            + params["b_dec"][None]
        )
        chosen = naive.keep_largest(jnp.where(dead, z, -jnp.inf), k)
        guess = naive.dot(jnp.where(chosen & dead, z, 0), params["W_dec"])
        assert (np.asarray(jax.lax.stop_gradient(z))[np.asarray(chosen)] < 0).mean() > 0.2
        return naive.mean_square(x - out) + naive.mean_square(guess - jax.lax.stop_gradient(x - out)) / 32

    with jax.disable_jit():
        want = formula(params)
    check_close(loss(config, params, x)[0], want)
