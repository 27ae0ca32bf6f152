"""Activations by their formulas, and the MLP by matrix products in float64."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.nn import ACTIVATIONS, mlp
from tests.tiny import check_close

FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_its_formula(name):
    x = np.linspace(-6, 6, 301)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), FORMULAS[name](x), atol=2e-6)


def test_the_two_gelus_differ():
    x = jnp.linspace(-3, 3, 50)
    assert jnp.abs(ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_new"](x)).max() > 1e-4


def arrays(biases, gated):
    rng = np.random.default_rng(0)
    shapes = {"W_in": (4, 6), "W_out": (6, 4)} | ({"W_gate": (4, 6)} if gated else {})
    shapes |= ({"b_in": (6,), "b_out": (4,)} | ({"b_gate": (6,)} if gated else {})) if biases else {}
    return {k: rng.normal(size=s) for k, s in shapes.items()}


@pytest.mark.parametrize("act_fn", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_an_mlp_is_two_or_three_products(act_fn, gated, biases):
    p = arrays(biases, gated)
    x = np.random.default_rng(1).normal(size=(2, 3, 4))
    act, get = FORMULAS[act_fn], lambda k: p.get(k, 0.0)
    pre = x @ p["W_in"] + get("b_in")
    post = act(x @ p["W_gate"] + get("b_gate")) * pre if gated else act(pre)
    params = {k: jnp.asarray(v, jnp.float32) for k, v in p.items()}
    f = lambda x, *, tap: mlp(params, x, act_fn=act_fn, gated=gated, precision="highest", tap=tap)
    names = ("mlp.pre", "mlp.post") + (("mlp.gate",) if gated else ())
    out, acts, _ = ji.run(f, ji.capture(*names))(jnp.asarray(x, jnp.float32))
    check_close(out, post @ p["W_out"] + get("b_out"))
    check_close(acts["mlp.pre"], pre)
    check_close(acts["mlp.post"], post)
    if gated:
        check_close(acts["mlp.gate"], x @ p["W_gate"] + get("b_gate"))
