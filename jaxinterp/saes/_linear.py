"""What the architectures share: encoder and decoder as linear maps, their first values, their constraints."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import jax
import jax.numpy as jnp
from jax import lax

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.saes._architecture import Outcome, Training
from jaxinterp.saes._axes import Axes
from jaxinterp.saes._sparse import SparseLatents, decode_active, encode_active

if TYPE_CHECKING:
    from jaxinterp.saes._config import SAEConfig

MEDIAN_ROWS = 32_768
"""The geometric median is that of so many rows at most, as in Gao et al. 2024."""


def init_linear(key: PRNGKeyArray, config: SAEConfig, *, bias: Float[Array, " D"], norm: float) -> Params:
    """Random decoder rows of one length, the encoder their transpose (of a transcoder: random as well), b_enc zero.

    Returns:
        W_enc [N, D], b_enc [N], W_dec [N, D_out], b_dec [D_out], and W_skip [D, D_out] (zeros) of a skip transcoder.
    """
    for_decoder, for_encoder = jax.random.split(key)
    n, d_in, d_out = config.n_latents, config.d_in, config.width_out
    decoder = norm * unit_rows(jax.random.normal(for_decoder, (n, d_out), jnp.float32))
    encoder = decoder
    if config.target is not None:  # what is read lies in another space, so there is nothing to tie
        encoder = norm * unit_rows(jax.random.normal(for_encoder, (n, d_in), jnp.float32))
    params = {"W_enc": encoder, "b_enc": jnp.zeros(n, jnp.float32), "W_dec": decoder, "b_dec": bias}
    return {**params, "W_skip": jnp.zeros((d_in, d_out), jnp.float32)} if config.skip else params


def preactivations(
    params: Params, x: Float[Array, "B D"], config: SAEConfig, axes: Axes = Axes()
) -> Float[Array, "B N"]:
    """(x - b_dec) . W_enc + b_enc in float32, the product in the compute dtype."""
    return projections(params, x, config, axes) + params["b_enc"][None]


def projections(params: Params, x: Float[Array, "B D"], config: SAEConfig, axes: Axes = Axes()) -> Float[Array, "B N"]:
    """(x - b_dec) . W_enc, and x . W_enc where the encoder does not subtract the decoder's bias."""
    x = x - params["b_dec"][None] if config.centers else x
    return _product(axes.spread(x), params["W_enc"], config, (1, 1))


def with_gradient(
    params: Params,
    x: Float[Array, "B D"],
    values: Float[Array, "B K"],
    indices: Int[Array, "B K"],
    config: SAEConfig,
    axes: Axes = Axes(),
) -> Float[Array, "B K"]:
    """Known pre-activations of some latents, with the gradient that `preactivations` would give them."""
    dtype = jnp.dtype(config.compute_dtype)
    center = params["b_dec"] if config.centers else jnp.zeros_like(x, shape=x.shape[1:])
    return encode_active(
        axes.spread(x.astype(dtype)),
        axes.spread(center.astype(dtype)),
        params["W_enc"].astype(dtype),
        params["b_enc"],
        lax.stop_gradient(values),
        indices,
    )


def decode(
    params: Params,
    latents: Float[Array, "B N"] | SparseLatents,
    x: Float[Array, "B D"] | None,
    config: SAEConfig,
    axes: Axes = Axes(),
) -> Float[Array, "B D_out"]:
    """The reconstruction in float32: latents times decoder rows, the decoder's bias, and the skip of a skip transcoder."""
    return written(params, latents, config, axes) + without_latents(params, x, config)


def written(
    params: Params, latents: Float[Array, "B N"] | SparseLatents, config: SAEConfig, axes: Axes = Axes()
) -> Float[Array, "B D"]:
    """What the latents of all shards add to the reconstruction, in float32."""
    if isinstance(latents, SparseLatents):
        weights = params["W_dec"].astype(config.compute_dtype)
        return axes.latents(decode_active(latents.values, latents.indices, weights))
    return axes.latents(_product(latents, params["W_dec"], config, (1, 0)))


def without_latents(params: Params, x: Float[Array, "B D"] | None, config: SAEConfig) -> Array:
    """The reconstruction by no latent: [1, D], or [B, D] of a skip transcoder."""
    if not config.skip:
        return params["b_dec"][None]
    if x is None:
        raise InputError(
            "A skip transcoder decodes latents together with the input that they are of: decode(latents, x)."
        )
    return params["b_dec"][None] + jnp.dot(x, params["W_skip"], precision="highest")


def squared_norm(rows: Float[Array, "B D"], axes: Axes) -> Float[Array, ""]:
    """The mean over all rows of the summed square."""
    return axes.mean(jnp.mean(jnp.sum(jnp.square(rows), axis=1)))


def variance(rows: Float[Array, "B D"], axes: Axes) -> Float[Array, ""]:
    """The mean squared distance of all rows from their mean, summed over features."""
    return squared_norm(rows - axes.mean(jnp.mean(rows, axis=0))[None], axes)


def batch_variance(target: Float[Array, "B D"], at: Training) -> Float[Array, ""]:
    """The variance of all targets of a step, which these rows may be a part of."""
    return variance(target, at.axes) if at.variance is None else at.variance


def outcome_of_dense(latents: Float[Array, "B N"], terms: dict[str, Array], fvu: Array, axes: Axes) -> Outcome:
    """What a loss tells that has all latents [B, N] at hand."""
    active = latents > 0
    return Outcome(
        terms=terms,
        fired=axes.rows(jnp.any(active, axis=0).astype(jnp.int32)) > 0,
        l0=axes.latents(axes.mean(jnp.sum(active, dtype=jnp.float32) / len(latents))),
        fvu=fvu,
    )


def unit_rows(weights: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Rows of length 1; a row of zeros stays one."""
    return weights / jnp.maximum(jnp.linalg.norm(weights, axis=1, keepdims=True), 1e-8)


def with_unit_rows(params: Params) -> Params:
    """With decoder rows of length 1."""
    return {**params, "W_dec": unit_rows(params["W_dec"])}


def norms(weights: Float[Array, "N D"]) -> Float[Array, " N"]:
    """The length of each row, with a gradient of 0 at a row of zeros."""
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(weights), axis=1), 1e-30))


def mean_sum(penalties: Float[Array, "B N"], axes: Axes) -> Float[Array, ""]:
    """The sum over all latents, averaged over all rows."""
    return axes.latents(axes.mean(jnp.sum(penalties) / len(penalties)))


def first_norm(architecture: Any) -> float:
    """The first length of decoder rows, where an architecture names none: 1 if it stays so, else 0.1."""
    norm = architecture.decoder_norm
    return norm if norm is not None else 1.0 if architecture.unit_norm else 0.1


def faults_of_norm(architecture: Any) -> list[str]:
    """What is wrong with a first length of the decoder's rows, and with a first bias."""
    faults = faults_of_choices(architecture, "bias")
    norm = first_norm(architecture)
    if not norm > 0 or (architecture.unit_norm and norm != 1.0):
        faults.append(f"decoder_norm={norm}: {'1 or None with unit_norm' if architecture.unit_norm else 'above 0'}.")
    return faults


def faults_of_coefficient(name: str, value: object) -> list[str]:
    """What is wrong with the weight of a penalty."""
    if isinstance(value, (int, float)) and 0 <= value < math.inf:
        return []
    return [f"{name}={value!r}: a number of at least 0."]


def faults_of_choices(config: Any, *names: str) -> list[str]:
    """Which fields of a dataclass are not among the choices that their annotations allow."""
    hints = get_type_hints(type(config), vars(sys.modules[type(config).__module__]))
    return [
        f"{name}={getattr(config, name)!r}; legal: {', '.join(map(repr, get_args(hints[name])))}."
        for name in names
        if getattr(config, name) not in get_args(hints[name])
    ]


def without_parallel(gradient: Params, params: Params) -> Params:
    """The decoder's gradient without what would only change the length of its rows.

    Source: Bricken et al. 2023, Towards Monosemanticity, "Advice for Training Sparse Autoencoders".
    """
    decoder = params["W_dec"]
    along = jnp.sum(gradient["W_dec"] * decoder, axis=1, keepdims=True) / jnp.sum(decoder**2, axis=1, keepdims=True)
    return {**gradient, "W_dec": gradient["W_dec"] - along * decoder}


def geometric_median(rows: Float[Array, "B D"], iterations: int = 64) -> Float[Array, " D"]:
    """The point whose summed distance to the rows is least, by Weiszfeld's iteration from their mean.

    Args:
        rows: the first `MEDIAN_ROWS` count.
        iterations: at most; it ends when the point moves by less than 1e-6 of the mean distance.
    """
    rows = rows[:MEDIAN_ROWS].astype(jnp.float32)

    def nearer(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, point, _ = state
        weight = 1.0 / jnp.maximum(jnp.linalg.norm(rows - point[None], axis=1, keepdims=True), 1e-8)
        new = jnp.sum(weight * rows, axis=0) / jnp.sum(weight)
        return i + 1, new, jnp.linalg.norm(new - point) * jnp.mean(weight) > 1e-6

    start = (jnp.zeros((), jnp.int32), jnp.mean(rows, axis=0), jnp.ones((), bool))
    return lax.while_loop(lambda state: (state[0] < iterations) & state[2], nearer, start)[1]


Bias = Literal["geometric_median", "mean", "zeros"]


def first_bias(kind: Bias, sample: Float[Array, "B D_out"]) -> Float[Array, " D"]:
    """The decoder's first bias, from typical targets."""
    if kind == "zeros":
        return jnp.zeros(sample.shape[1:], jnp.float32)
    return geometric_median(sample) if kind == "geometric_median" else jnp.mean(sample.astype(jnp.float32), axis=0)


def _product(x: Array, weights: Array, config: SAEConfig, axes: tuple[int, int]) -> Array:
    """A large product in the compute dtype, summed in float32."""
    dtype = jnp.dtype(config.compute_dtype)
    return lax.dot_general(
        x.astype(dtype), weights.astype(dtype), (((axes[0],), (axes[1],)), ((), ())),
        precision="highest", preferred_element_type=jnp.float32,
    )  # fmt: skip
