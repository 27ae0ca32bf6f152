"""Resampling: dead latents given the direction of badly reconstructed rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxinterp._typing import Array, Float, PRNGKeyArray
from jaxinterp.saes import _linear
from jaxinterp.saes._normalize import normalized
from jaxinterp.saes._step import TrainState
from jaxinterp.saes._train_config import TrainConfig

ENCODER_LENGTH = 0.2


def resampled(
    config: TrainConfig,
    state: TrainState,
    x: Float[Array, "B D"],
    target: Float[Array, "B D_out"],
    key: PRNGKeyArray,
) -> TrainState:
    """A state whose dead latents begin again.

    Each takes a row, drawn with a probability that goes with the square of its loss (a row that is not finite is never drawn).
    Its decoder row becomes the row's direction (less the decoder's bias), its encoder row the same, with 0.2 of the mean length
    of living encoder rows; its bias and Adam's moments become 0.

    Source: Bricken et al. 2023, Towards Monosemanticity, "Neuron Resampling". There losses are those of 819,200 rows and the
    direction is that of the raw row; here they are those of one batch.
    """
    sae = config.sae
    x = normalized(x, state.scales["input"], sae.normalize)[0]
    target = x if sae.target is None else normalized(target, state.scales["target"], sae.normalize)[0]
    params = state.params
    guess = _linear.decode(params, sae.architecture.encode(params, x, sae), x, sae)
    losses = jnp.sum(jnp.square(guess - target), axis=1)
    good = jnp.isfinite(losses)
    chances = jnp.where(good, 2.0 * jnp.log(losses + 1e-30), -jnp.inf)
    drawn = jax.random.categorical(jax.random.fold_in(key, state.step), chances, shape=(sae.n_latents,))
    dead = (state.idle >= config.dead_after) & jnp.any(good)
    lengths = _linear.norms(params["W_enc"])
    alive = jnp.sum(jnp.where(dead, 0.0, lengths)) / jnp.maximum(jnp.sum(~dead, dtype=jnp.float32), 1.0)
    center = params["b_dec"][None]
    decoder = _linear.unit_rows((target - center)[drawn])
    encoder = ENCODER_LENGTH * alive * _linear.unit_rows((x - center if sae.target is None else x)[drawn])
    new = {
        **params,
        "W_dec": jnp.where(dead[:, None], decoder, params["W_dec"]),
        "W_enc": jnp.where(dead[:, None], encoder, params["W_enc"]),
        "b_enc": jnp.where(dead, 0.0, params["b_enc"]),
    }
    forget = lambda moments: {
        name: jnp.where(dead.reshape(-1, *[1] * (leaf.ndim - 1)), 0.0, leaf)
        if name in ("W_dec", "W_enc", "b_enc")
        else leaf
        for name, leaf in moments.items()
    }
    optimizer = state.optimizer._replace(mu=forget(state.optimizer.mu), nu=forget(state.optimizer.nu))
    return TrainState(
        params=new, optimizer=optimizer, idle=jnp.where(dead, 0, state.idle), step=state.step, scales=state.scales
    )
