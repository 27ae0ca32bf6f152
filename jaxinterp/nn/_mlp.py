"""Activation functions and the MLP."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinterp._typing import Array, Float, Params
from jaxinterp.tap import IDENTITY, Tap

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}
"""By TransformerLens's names: `gelu` is the exact one (erf), `gelu_new` the tanh approximation."""


def mlp(
    params: Params, x: Float[Array, "B T D"], *, act_fn: str, gated: bool, precision: str, tap: Tap = IDENTITY
) -> Float[Array, "B T D"]:
    """A two-layer perceptron, gated or not.

    With a gate: (act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out; without: act(x W_in + b_in) W_out + b_out. Sites:
    `mlp.pre` (x W_in + b_in), `mlp.gate` (x W_gate + b_gate, on demand), `mlp.post` (what W_out reads).

    Args:
        params: W_in [D, F], W_out [F, D], W_gate [D, F] if gated; biases where the model has them.
        x: normalized residual stream.
        act_fn: a key of `ACTIVATIONS`.
        gated: whether there is a gate.
        precision: of the matrix products.
        tap: the model's tap.

    Source: Shazeer 2020 (arXiv 2002.05202) for the gate.
    """

    def linear(x: Array, weight: str, bias: str) -> Array:
        y = jnp.einsum("bti,ij->btj", x, params[weight], precision=precision)
        return y + params[bias].reshape(1, 1, -1) if bias in params else y

    act = ACTIVATIONS[act_fn]
    pre = tap("mlp.pre", linear(x, "W_in", "b_in"))
    if gated:
        gate = linear(x, "W_gate", "b_gate")
        if tap.wants("mlp.gate"):
            gate = tap("mlp.gate", gate)
        post = act(gate) * pre
    else:
        post = act(pre)
    return linear(tap("mlp.post", post), "W_out", "b_out")
