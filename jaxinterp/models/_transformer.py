"""The transformer as plain functions of a config: embed, block, unembed."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Float, Int, Params
from jaxinterp.models._config import TransformerConfig
from jaxinterp.nn import ACTIVATIONS, NO_NORM, AttentionKind, KeyValues, Norm, attention, lookup, mlp, normalize
from jaxinterp.tap import IDENTITY, Tap, take_rows

UNLIMITED = 2**30
"""The window of a global layer, where others are local: longer than any context, and far from the limit of int32."""


def layer_data(config: TransformerConfig) -> tuple[dict[str, np.ndarray], ...]:
    """What differs between layers and is not learned, by segment, stacked along L: RoPE's frequencies, the window."""
    c, data = config, {}
    if c.positional_embedding_type == "rotary":
        data["frequencies"] = np.stack([c.frequencies(local=local) for local in c.is_local])
    if c.window_size is not None:
        data["window"] = np.array([c.window_size if local else UNLIMITED for local in c.is_local], np.int32)
    return (data,)


def embed(
    config: TransformerConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "#B T"],
    token_types: Int[Array, "B T"] | None = None,
    tap: Tap = IDENTITY,
) -> Float[Array, "B T D"]:
    """Token embedding, plus those of positions and of token types (0 by default), and a norm, where the model has them.

    An id out of range gives NaN.
    """
    c, table = config, params["embed"]
    x = lookup(table["W_E"], tokens)
    x = x if c.embed_scale == 1.0 else x * jnp.asarray(c.embed_scale, x.dtype)
    if tap.wants("embed.token"):
        x = tap("embed.token", x)
    if c.n_token_types is not None:
        x = x + lookup(table["W_token_type"], jnp.zeros_like(tokens) if token_types is None else token_types)
    elif token_types is not None:
        raise InputError("token types were given, but no model of this config has any. Leave token_types out.")
    if c.positional_embedding_type == "standard":
        where = lookup(table["W_pos"], jnp.maximum(positions, 0))
        if tap.wants("embed.position"):
            where = tap("embed.position", jnp.broadcast_to(where, x.shape))
        x = x + where
    x = x if c.compute_dtype is None else x.astype(c.compute_dtype)
    if c.embed_norm:
        x = normalize(table["ln"], x, norm=c.norm, site="embed.norm_scale", tap=tap)
    return tap("embed", x)


def block(
    config: TransformerConfig,
    params: Params,
    data: Params,
    x: Float[Array, "B T D"],
    *,
    positions: Int[Array, "#B T"],
    prefix: KeyValues | None = None,
    segments: Int[Array, "B T"] | None = None,
    read: Int[Array, "#B P"] | None = None,
    tap: Tap = IDENTITY,
) -> tuple[Float[Array, "B P D"], KeyValues]:
    """One layer: x + attention, then + MLP, with norms where the config has them; or both on x, side by side.

    Args:
        config: of the model.
        params: this layer's parameters.
        data: this layer's row of `layer_data`.
        x: the residual stream.
        positions: absolute positions of its rows, -1 for padding.
        prefix: keys and values of earlier rows (a cache).
        segments: which of several texts each row belongs to; it attends to its own alone.
        read: the rows whose output is wanted; None: all.
        tap: the model's tap.

    Returns:
        The residual stream after the layer, at the rows that are read, and the keys and values of all rows.
    """
    c = config
    before, behind, after_sum = _norms(c)
    x = tap("resid_pre", x)
    write, key_values = attention(
        params["attn"], params.get("ln1"), tap("attn.in", x), kind=_attention_kind(c, before), positions=positions,
        frequencies=data.get("frequencies"), window=data.get("window"), prefix=prefix, segments=segments, read=read,
        tap=tap,
    )  # fmt: skip
    x, tap = (x if read is None else take_rows(x, read)), tap.narrow(read)
    write = normalize(params.get("ln1_post"), write, norm=behind, site="attn.post_norm_scale", tap=tap)
    write = tap("attn.out", write)
    if c.parallel_attn_mlp:
        middle, total = x, x + write
    else:
        total = normalize(params.get("ln1"), x + write, norm=after_sum, site="attn.post_norm_scale", tap=tap)
        middle = total = tap("resid_mid", total)
    if c.attn_only:
        return tap("resid_post", total), key_values
    weight = params.get("ln1" if c.shared_norm else "ln2")
    h = normalize(weight, tap("mlp.in", middle), norm=before, site="mlp.norm_scale", tap=tap)
    write = mlp(params["mlp"], h, act_fn=c.act_fn, gated=c.gated_mlp, precision=c.precision, tap=tap)
    write = normalize(params.get("ln2_post"), write, norm=behind, site="mlp.post_norm_scale", tap=tap)
    total = total + tap("mlp.out", write)
    total = normalize(params.get("ln2"), total, norm=after_sum, site="mlp.post_norm_scale", tap=tap)
    return tap("resid_post", total), key_values


def _norms(c: TransformerConfig) -> tuple[Norm, Norm, Norm]:
    """The norms before a sublayer, behind it, and after the sum."""
    return (
        c.norm if c.norm_position in ("pre", "sandwich") else NO_NORM,
        c.norm if c.norm_position in ("sandwich", "output") else NO_NORM,
        c.norm if c.norm_position == "post" else NO_NORM,
    )


def _attention_kind(c: TransformerConfig, norm: Norm) -> AttentionKind:
    return AttentionKind(
        causal=c.attention_dir == "causal",
        scale=c.score_scale,
        soft_cap=c.attn_scores_soft_cap,
        norm=norm,
        qk_norm=NO_NORM if c.qk_norm is None else Norm("RMS", c.eps, c.norm_weight_offset),
        adjacent_pairs=c.rotary_adjacent_pairs,
        precision=c.precision,
    )


def unembed(
    config: TransformerConfig,
    params: Params,
    x: Float[Array, "B T D"],
    *,
    tokens: Int[Array, "B n"] | None = None,
    tap: Tap = IDENTITY,
) -> Float[Array, "B T V"]:
    """Final norm, head and logits in float32, of all tokens or of those in `tokens`, which may differ by example."""
    c = config
    x = tap("final.in", x)
    if c.final_norm:
        x = normalize(params.get("ln_final"), x, norm=c.norm, site="final.norm_scale", tap=tap)
    if c.mlm_head:
        head = params["mlm_head"]
        x = jnp.einsum("bti,ij->btj", x, head["W"], precision=c.precision) + head["b"].reshape(1, 1, -1)
        x = normalize(head["ln"], ACTIVATIONS[c.act_fn](x), norm=c.norm, site="final.head_norm_scale", tap=tap)
    matrix = params["embed"]["W_E"] if c.tie_word_embeddings else params["unembed"]["W_U"].T
    how: dict[str, Any] = dict(precision=c.precision, preferred_element_type=jnp.float32)
    if tokens is None:
        logits = jnp.einsum("btd,vd->btv", x, matrix, **how)
    else:
        logits = jnp.einsum("btd,bnd->btn", x, lookup(matrix, tokens), **how)
    if c.unembed_bias:
        bias = params["unembed"]["b_U"].astype(jnp.float32)
        logits = logits + (bias.reshape(1, 1, -1) if tokens is None else bias[tokens][:, None])
    if c.output_logits_soft_cap is not None:
        logits = c.output_logits_soft_cap * jnp.tanh(logits / c.output_logits_soft_cap)
    return tap("logits", logits)
