"""Norms against numpy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.nn import NO_NORM, Norm, normalize
from tests.tiny import check_close

RNG = np.random.default_rng(0)
W, BIAS = RNG.normal(size=6), RNG.normal(size=6)


def oracle(x, kind, eps):
    x = x.astype(np.float64)
    if kind == "LN":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * W + BIAS
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * W


@pytest.mark.parametrize("kind", ["LN", "RMS"])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 3, 4, 6)])
def test_a_norm_is_its_formula(kind, eps, shape):
    x = (3 + 2 * RNG.normal(size=shape)).astype(np.float32)
    params = {"w": jnp.asarray(W, jnp.float32), "b": jnp.asarray(BIAS, jnp.float32)}
    check_close(normalize(params, jnp.asarray(x), norm=Norm(kind, eps), site="s"), oracle(x, kind, eps))


def test_an_offset_is_added_to_the_weight():
    x, zero = RNG.normal(size=(2, 3, 6)).astype(np.float32), {"w": jnp.asarray(W - 1, jnp.float32)}
    check_close(normalize(zero, jnp.asarray(x), norm=Norm("RMS", 1e-5, 1.0), site="s"), oracle(x, "RMS", 1e-5))


def test_no_norm_is_the_identity():
    x = jnp.ones((1, 2, 6))
    assert normalize(None, x, norm=NO_NORM, site="s") is x


def test_bfloat16_is_normalized_in_float32():
    x = jnp.asarray(100 + RNG.normal(size=(1, 4, 6)), jnp.bfloat16)
    params = {"w": jnp.asarray(W, jnp.bfloat16), "b": jnp.asarray(BIAS, jnp.bfloat16)}
    got = normalize(params, x, norm=Norm("LN", 1e-5), site="s")
    assert got.dtype == jnp.bfloat16
    check_close(got.astype(jnp.float32), oracle(np.asarray(x, np.float64), "LN", 1e-5), 2e-2)


def test_the_scale_is_a_site():
    x = RNG.normal(size=(1, 3, 6)).astype(np.float32)
    f = lambda x, *, tap: normalize({"w": jnp.ones(6)}, x, norm=Norm("RMS", 0.0), site="n.norm_scale", tap=tap)
    scale = np.sqrt((x**2).mean(-1, keepdims=True))
    out, acts, _ = ji.run(f, ji.capture("n.norm_scale"))(jnp.asarray(x))
    check_close(acts["n.norm_scale"], scale)
    frozen, _, _ = ji.run(f, ji.patch("n.norm_scale", 2.0))(jnp.asarray(x))
    check_close(frozen, x / 2)
