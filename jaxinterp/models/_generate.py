"""Generation with a key/value cache, as one scan over steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, ArrayLike, Bool, Int, Params, PRNGKeyArray
from jaxinterp.models._model import Model, check_tokens, token_positions
from jaxinterp.models._sampling import Sampling, check_sampling
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
    top_k: int | ArrayLike | None = None,
    top_p: float | int | ArrayLike | None = None,
    stop: int | Sequence[int] | ArrayLike | None = None,
    mask: Bool[Array, "B T"] | None = None,
    tap: Tap = IDENTITY,
) -> Int[Array, "B N"]:
    """Continues prompts, greedily or by sampling.

    The prompt is read once and chooses the first new token; then step i reads the i-th new one, from 0, and chooses the next,
    with the keys and values of earlier ones from a cache. Equal to repeated full forwards. Handlers act in both parts:
    `ji.run(functools.partial(ji.generate, model, max_new_tokens=20), ji.zero("attn.z", layer=1, head=2))(params, tokens)`.

    An edit's positions are absolute, the prompt's rows first, and its `step` is that of decoding: `position=5` acts wherever
    position 5 is read, `step=0` where each example's first new token is, `step=slice(3, None)` from the fourth on. The token
    chosen last is never read. Captures of the prompt are named `prompt/...`; those of the steps have a leading step axis,
    [steps, L, B, 1, ...], of max_new_tokens - 1 steps.

    Args:
        model: with causal attention.
        params: its parameters.
        tokens: prompts, int32 [B, T].
        max_new_tokens: how many tokens to add, static.
        temperature: 0 for the most probable token; else what logits are divided by.
        key: a typed key, needed for sampling and refused without.
        top_k: sample among this many most probable tokens (and those as probable as the last of them), 1 to V. None: all.
        top_p: and of those, among the fewest that hold this share of probability at that temperature, in (0, 1]: up to and with
            the token that reaches it. None: all.
        stop: ids [n]; behind its first one, an example has nothing but that id. The others go on; what is captured of a
            finished example in later steps is of those copies.
        mask: True at real tokens, where prompts are padded.
        tap: the tap.

    Returns:
        The prompts and what follows them, int32 [B, T + max_new_tokens]; -1, which is no token, where logits were NaN or a traced
        top_k or top_p is out of range.

    Raises:
        TokenError: ids out of the vocabulary, or more tokens than the context holds.
        InputError: a temperature without a key, a key, top_k or top_p without a temperature, numbers out of range, or a model
            that predicts no next token.

    Example:
        >>> import jax, jax.numpy as jnp, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=16, n_heads=2, d_head=4, d_vocab=11, d_mlp=16)
        >>> model = ji.Model(config=config)
        >>> params, prompt = model.init(jax.random.key(0)), jnp.array([[1, 2, 3]])
        >>> how = dict(temperature=0.8, key=jax.random.key(1), top_k=5, top_p=0.9, stop=[0])
        >>> ji.generate(model, params, prompt, max_new_tokens=4, **how).shape
        (1, 7)
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
    sampling = Sampling(temperature, key, top_k, top_p, stop)
    check_sampling(config.d_vocab, sampling)
    check_tokens(config, tokens, mask, max_new_tokens)

    logits, caches, lengths, extent = _prefill(model, params, tokens, mask, max_new_tokens, tap)
    first = sampling.choose(logits, 0).astype(tokens.dtype)

    def body(carry: Any, _: Any, *, tap: Tap) -> tuple[Any, Array]:
        token, caches, count = carry
        positions = lengths + count
        tap = tap.at(positions=positions, extent=extent)
        x = model.embed(params, token[:, None], positions=positions, tap=tap)
        x, own = model.layers(params, x, positions=positions, prefixes=caches, tap=tap)
        logits = model.unembed(params, x, tap=tap)[:, 0]
        caches = tuple(_write(c, o, tokens.shape[1] + count) for c, o in zip(caches, own, strict=True))
        chosen = sampling.choose(logits, count + 1).astype(token.dtype)
        following = jnp.where(sampling.is_stop(token), token, chosen)
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
