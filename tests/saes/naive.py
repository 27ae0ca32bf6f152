"""The losses of the papers, written down densely and one after the other: the oracle of the architectures."""

import jax
import jax.numpy as jnp
import numpy as np


def dot(a, b):
    return jnp.dot(a, b, precision="highest")


def mean_square(rows):
    return jnp.mean(jnp.sum(rows**2, axis=1))


def variance(rows):
    return mean_square(rows - jnp.mean(rows, axis=0)[None])


def rank(values):
    """0 for the largest along the last axis, 1 for the next, ..."""
    return jnp.argsort(jnp.argsort(-values, axis=-1, stable=True), axis=-1)


def keep_largest(ranked, k):
    """The mask of the k largest of each row."""
    return rank(ranked) < k


def keep_batch(ranked, k):
    """The mask of the k B largest positive ones of the batch."""
    return (rank(ranked.ravel()) < k * len(ranked)).reshape(ranked.shape) & (ranked > 0)


def surrogate(value, forward):
    """`forward` in value, `value` in gradient."""
    return value + jax.lax.stop_gradient(forward - value)


def heaviside(z, theta, width, through_input):
    """A step at theta whose gradient is that of a ramp of the given width."""
    moving = z if through_input else jax.lax.stop_gradient(z)
    inside = jax.lax.stop_gradient((jnp.abs(z - theta) < width / 2).astype(z.dtype))
    return surrogate(inside * (moving - theta) / width, (z > theta).astype(z.dtype))


def loss(p, x, target, at):
    """(loss, active latents [B, N])."""
    config, a = at.config, at.config.architecture
    projected = dot(x - p["b_dec"][None] if config.centers else x, p["W_enc"].T)
    lengths = jnp.sqrt(jnp.sum(p["W_dec"] ** 2, axis=1))[None]
    rest = p["b_dec"][None] + (dot(x, p["W_skip"]) if config.skip else 0.0)
    by = lambda latents, p=p: dot(latents, p["W_dec"]) + rest
    if a.name == "relu":
        f = jnp.maximum(projected + p["b_enc"][None], 0)
        penalty = jnp.mean(jnp.sum(f * (1.0 if a.unit_norm else lengths), axis=1))
        return mean_square(by(f) - target) + a.l1_coefficient * penalty, f
    if a.name == "gated":
        gate = projected + p["b_gate"][None]
        f = jnp.where(gate > 0, jnp.maximum(projected * jnp.exp(p["r_mag"])[None] + p["b_mag"][None], 0), 0)
        opened = jnp.maximum(gate, 0)
        still = jax.tree.map(jax.lax.stop_gradient, p) if a.frozen_decoder else p
        rest_still = still["b_dec"][None] + (dot(x, still["W_skip"]) if config.skip else 0.0)
        penalty = jnp.mean(jnp.sum(opened * (1.0 if a.unit_norm else lengths), axis=1))
        gates = mean_square(dot(opened, still["W_dec"]) + rest_still - target)
        return mean_square(by(f) - target) + a.l1_coefficient * penalty + gates, f
    z = projected + p["b_enc"][None]
    if a.name == "jump_relu":
        theta = (jnp.exp(p["log_threshold"]) if a.parameter == "log_threshold" else p["threshold"])[None]
        # z H(z - theta): the ramp's gradient times theta, the value of z at the jump
        step_for_z = heaviside(z, theta, a.bandwidth, a.through_input)
        ramp = step_for_z - jax.lax.stop_gradient(step_for_z)
        f = jnp.where(z > theta, z, 0.0) + ramp * jax.lax.stop_gradient(theta)
        counted = step_for_z if a.penalty == "l0" else jnp.tanh(a.tanh_scale * f * lengths)
        out = mean_square(by(f) - target) + a.l0_coefficient * jnp.mean(jnp.sum(counted, axis=1))
        below = jnp.mean(jnp.sum(jnp.maximum(theta - z, 0) * lengths, axis=1))
        return out + a.preactivation_coefficient * below, f
    return active_loss(p, x, target, at, z, lengths, by)


def active_loss(p, x, target, at, z, lengths, by):
    a, config = at.config.architecture, at.config
    ranked = z * lengths if a.norm_scaled else z
    scale = lambda scale, rows: variance(jax.lax.stop_gradient(rows)) if scale == "variance" else 1.0
    mask = keep_largest(ranked, a.k) if a.name == "topk" else keep_batch(ranked, a.k)
    f = jnp.where(mask, jnp.maximum(z, 0), 0)
    widths = (*a.widths, config.n_latents) if a.name == "matryoshka" else (config.n_latents,)
    errors = [mean_square(by(jnp.where(jnp.arange(config.n_latents)[None] < w, f, 0)) - target) for w in widths]
    out = sum(errors) / len(errors) / scale(a.error_scale, target)
    if getattr(a, "multi_k", None):
        more = jnp.where(keep_largest(ranked, a.multi_k), jnp.maximum(z, 0), 0)
        out += mean_square(by(more) - target) / scale(a.error_scale, target) / 8
    if a.auxiliary is not None and bool(at.dead.any()):
        k = a.auxiliary.k or 2 ** round(np.log2(config.width_out / 2))
        left = jax.lax.stop_gradient(target - by(f))
        dead = jnp.where(at.dead[None], ranked, -jnp.inf)
        guess = dot(jnp.where(keep_largest(dead, k) & at.dead[None], jnp.maximum(z, 0), 0), p["W_dec"])
        n_dead = float(at.dead.sum())
        times = min(1, n_dead / k) if a.auxiliary.error_scale == "sum" else 1
        out += a.auxiliary.coefficient * times * mean_square(guess - left) / scale(a.auxiliary.error_scale, left)
    return out, f
