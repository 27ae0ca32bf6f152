"""Generation with a key/value cache, as one scan over steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinterp._errors import InputError
from jaxinterp._tree import is_traced
from jaxinterp._typing import Array, Bool, Int, Params, PRNGKeyArray
from jaxinterp.models._model import Model, check_tokens, token_positions
from jaxinterp.nn import KeyValues
from jaxinterp.tap import IDENTITY, Tap, take_rows


def generate(
    model: Model,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    max_new_tokens: int,
    temperature: float | Array = 0.0,
    key: PRNGKeyArray | None = None,
    mask: Bool[Array, "B T"] | None = None,
    tap: Tap = IDENTITY,
) -> Int[Array, "B N"]:
    """Continues prompts, greedily or by sampling.

    The prompt is read once; each step then reads one token, with the keys and values of earlier ones from a cache. Equal to
    repeated full forwards. Handlers act in both parts: `ji.run(functools.partial(ji.models.generate, model, max_new_tokens=20),
    ji.zero("attn.z", layer=1, head=2))(params, tokens)`. An edit's positions are absolute, the prompt's rows first. Captures of
    the prompt are named `prompt/...`; those of the steps have a leading step axis, before L.

    Args:
        model: with causal attention.
        params: its parameters.
        tokens: prompts, int32 [B, T].
        max_new_tokens: how many tokens to add, static.
        temperature: 0 for the most probable token; else what logits are divided by.
        key: a typed key, needed for sampling and refused without.
        mask: True at real tokens, where prompts are padded.
        tap: the tap.

    Returns:
        The prompts and what follows them, int32 [B, T + max_new_tokens]; -1, which is no token, where logits were NaN.

    Raises:
        TokenError: ids out of the vocabulary, or more tokens than the context holds.
        InputError: a temperature without a key, a key without a temperature, or a model that predicts no next token.
    """
    config = model.config
    if config.attention_dir != "causal":
        raise InputError("generate needs causal attention; this model is bidirectional and predicts no next token.")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}; give at least 1.")
    if config.outputs != config.d_vocab:
        raise InputError(
            f"generate feeds outputs back as inputs, but d_vocab_out={config.outputs} is not d_vocab={config.d_vocab}."
        )
    if not is_traced(temperature) and temperature < 0:
        raise InputError(
            f"temperature={temperature} is negative; give 0 for greedy generation, or a positive number and a key."
        )
    greedy = isinstance(temperature, (int, float)) and temperature == 0
    if greedy != (key is None):
        raise InputError(
            f"temperature={temperature} with{'out' if key is None else ''} a key: sampling needs both (temperature=1.0, "
            "key=jax.random.key(0)), greedy generation neither."
        )
    check_tokens(config, tokens, mask, max_new_tokens)

    def choose(logits: Array, step: Any) -> Array:
        if key is not None:
            noise = jax.random.gumbel(jax.random.fold_in(key, step), logits.shape)
            logits = (
                logits + jnp.asarray(temperature, jnp.float32) * noise
            )  # its largest is a draw from softmax(logits / temperature)
        chosen = jnp.argmax(logits, -1).astype(tokens.dtype)
        return jnp.where(jnp.isnan(logits).any(-1), -1, chosen)

    logits, caches, lengths, extent = _prefill(model, params, tokens, mask, max_new_tokens, tap)
    first = choose(logits, 0)

    def body(carry: Any, _: Any, *, tap: Tap) -> tuple[Any, Array]:
        token, caches, count = carry
        positions = lengths + count
        tap = tap.at(positions=positions, extent=extent)
        x = model.embed(params, token[:, None], positions=positions, tap=tap)
        x, own = model.layers(params, x, positions=positions, prefixes=caches, tap=tap)
        logits = model.unembed(params, x, tap=tap)[:, 0]
        caches = tuple(_write(c, o, tokens.shape[1] + count) for c, o in zip(caches, own, strict=True))
        following = choose(logits, count + 1)
        return (following, caches, count + 1), following

    carry = (first, caches, jnp.zeros((), jnp.int32))
    if max_new_tokens == 1:
        return jnp.concatenate([tokens, first[:, None]], 1)
    _, rest = tap.scan(body, carry, None, axis="step", length=max_new_tokens - 1)
    return jnp.concatenate([tokens, first[:, None], rest.T], 1)


def _prefill(model: Model, params: Params, tokens: Array, mask: Array | None, new: int, tap: Tap) -> tuple[Any, ...]:
    """Reads the prompt: logits behind its last real token [B, V], caches with room, lengths [B or 1, 1], the runs' extent."""
    positions = token_positions(tokens, mask, None)
    lengths = jnp.max(positions, axis=1, keepdims=True) + 1
    tokens = tokens if mask is None else jnp.where(mask, tokens, 0)  # whatever stands at padding
    extent: Any = (tokens.shape[1] if mask is None else lengths[:, 0]) + new - 1  # the last new token is never read
    tap = tap.at(prefix="prompt/", positions=positions, extent=extent)
    x = model.embed(params, tokens, positions=positions, tap=tap)
    x, own = model.layers(params, x, positions=positions, tap=tap)
    last = jnp.argmax(positions, axis=1)[:, None]
    tap = tap.at(positions=take_rows(positions, last), extent=extent)
    logits = model.unembed(params, take_rows(x, last), tap=tap)[:, 0]
    room = ((0, 0), (0, 0), (0, new), (0, 0), (0, 0))
    caches = tuple(
        KeyValues(
            jnp.pad(s.keys, room), jnp.pad(s.values, room), jnp.pad(positions, ((0, 0), (0, new)), constant_values=-1)
        )
        for s in own
    )
    return logits, caches, lengths, extent


def _write(cache: KeyValues, own: KeyValues, row: Array) -> KeyValues:
    """The cache with one more row, [L, B, N, K, E] at `row`."""
    at = (0, 0, row, 0, 0)
    positions = lax.dynamic_update_slice(cache.positions, own.positions, (0, row))
    return KeyValues(
        lax.dynamic_update_slice(cache.keys, own.keys, at),
        lax.dynamic_update_slice(cache.values, own.values, at),
        positions,
    )
