"""What an induction model can do, and which of its heads look back to what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from jaxinterp import training
from jaxinterp.tasks import repeated_tokens

PERIODS = (6, 24)


def fixed_batch(config: ji.TransformerConfig, n: int, *, seed: int = 10_000):
    """Sequences that no run trains on (another key)."""
    return repeated_tokens(jax.random.key(seed), n, d_vocab=config.d_vocab, n_ctx=config.n_ctx, period=PERIODS)


def match_masks(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For every query position: the keys right after an earlier occurrence of its token, and uniform attention, [B, T, T]."""
    length = tokens.shape[1]
    causal = jnp.tril(jnp.ones((length, length), jnp.float32))
    before = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    match = (before[:, None, :] == tokens[:, :, None]).astype(jnp.float32) * causal[None]
    uniform = causal / jnp.sum(causal, axis=1, keepdims=True)
    return match, jnp.broadcast_to(uniform[None], match.shape)


def head_scores(model: ji.Model, params: dict, tokens: jax.Array) -> dict[str, np.ndarray]:
    """Prefix matching and previous-token attention of every head, [L, H].

    Prefix matching: the attention to all positions whose previous token is the present one, averaged over the positions that
    have such a match, minus what uniform attention would give them. Previous token: the attention to the position before.
    """
    prefix, previous = _head_scores(model, params, tokens)
    return {"prefix_matching": np.asarray(prefix), "previous_token": np.asarray(previous)}


@functools.partial(jax.jit, static_argnums=0)
def _head_scores(model: ji.Model, params: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    match, uniform = match_masks(tokens)
    queries = jnp.sum(jnp.max(match, axis=-1))
    pattern = ji.run(model.forward, ji.capture("attn.pattern"))(params, tokens)[1]["attn.pattern"]

    above = pattern - uniform[None, :, None]
    prefix = jnp.einsum("lbhts,bts->lh", above, match, precision="highest") / queries
    previous = jnp.mean(jnp.diagonal(pattern, offset=-1, axis1=-2, axis2=-1), axis=(1, 3))
    return prefix, previous


def copying(model: ji.Model, params: dict, *handlers: ji.Handler, batch) -> dict[str, float]:
    """Loss (nats) and accuracy where the next token follows by looking back, and the loss where it does not."""
    logits = _logits(model, params, batch.tokens, handlers)[:, :-1]
    targets, known = batch.tokens[:, 1:], batch.predictable[:, :-1].astype(jnp.float32)
    nats = training.token_nats(logits, targets)
    right = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return {
        "repeat_loss": float(jnp.sum(nats * known) / jnp.sum(known)),
        "repeat_accuracy": float(jnp.sum(right * known) / jnp.sum(known)),
        "first_loss": float(jnp.sum(nats * (1 - known)) / jnp.sum(1 - known)),
    }


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: ji.Model, params: dict, tokens: jax.Array, handlers: tuple[ji.Handler, ...]) -> jax.Array:
    return ji.run(model.forward, *handlers)(params, tokens)[0]


def phase_change(history: list[dict]) -> dict[str, float]:
    """Where the loss falls and prefix matching rises.

    Returns:
        `"largest_fall"`: the largest fraction by which the repeat loss falls within 500 steps, and `"fall_from"`, where that
        begins; `"loss_change"` and `"prefix_change"`: the steps at which the loss and the best head's prefix matching first
        pass halfway between their first and last values.
    """
    step = np.array([row["step"] for row in history])
    loss = np.array([row["repeat_loss"] for row in history])
    prefix = np.array([row["prefix_matching"] for row in history])
    falls = [(1 - loss[(step > s) & (step <= s + 500)].min(initial=v) / v, s) for s, v in zip(step, loss, strict=True)]
    largest, start = max(falls)
    return {
        "largest_fall": float(largest),
        "fall_from": int(start),
        "loss_change": int(step[np.argmax(loss < (loss[0] + loss[-1]) / 2)]),
        "prefix_change": int(step[np.argmax(prefix > (prefix[0] + prefix[-1]) / 2)]),
    }
