"""The transformer as plain functions of a config: init, embed, block, unembed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.models._config import TransformerConfig
from jaxinterp.nn import KeyValues, attention, lookup, mlp, normalize
from jaxinterp.tap import IDENTITY, Tap, take_rows


def param_shapes(config: TransformerConfig) -> Params:
    """The tree of parameter shapes: nested dictionaries of tuples, blocks stacked along L in a tuple of segments."""
    c = config
    n, d, h, k, e, f = c.n_layers, c.d_model, c.n_heads, c.key_value_heads, c.d_head, c.d_mlp

    def norm(*lead: int) -> dict[str, tuple[int, ...]]:
        return {"w": (*lead, d)} | ({"b": (*lead, d)} if c.normalization_type == "LN" else {})

    attn = {"W_Q": (n, h, d, e), "W_K": (n, k, d, e), "W_V": (n, k, d, e), "W_O": (n, h, e, d)}
    if c.attention_bias:
        attn |= {"b_Q": (n, h, e), "b_K": (n, k, e), "b_V": (n, k, e)}
    if c.attention_output_bias:
        attn |= {"b_O": (n, d)}
    block: dict[str, Any] = {"attn": attn}
    if f is not None:
        block["mlp"] = {"W_in": (n, d, f), "W_out": (n, f, d)} | ({"W_gate": (n, d, f)} if c.gated_mlp else {})
        if c.mlp_bias:
            block["mlp"] |= {"b_in": (n, f), "b_out": (n, d)} | ({"b_gate": (n, f)} if c.gated_mlp else {})
    tree: dict[str, Any] = {"embed": {"W_E": (c.d_vocab, d)}, "blocks": (block,)}
    if c.positional_embedding_type == "standard":
        tree["embed"]["W_pos"] = (c.n_ctx, d)
    if c.normalization_type is not None:
        block["ln1"] = norm(n)
        if f is not None:
            block["ln2"] = norm(n)
        if c.final_norm:
            tree["ln_final"] = norm()
    unembed = {} if c.tie_word_embeddings else {"W_U": (d, c.outputs)}
    unembed |= {"b_U": (c.outputs,)} if c.unembed_bias else {}
    if unembed:
        tree["unembed"] = unembed
    return tree


def init(config: TransformerConfig, key: PRNGKeyArray) -> Params:
    """Random float32 parameters.

    Weights are normal with `initializer_range` (divided by sqrt(2L) where they write to the residual stream, as in GPT-2),
    norms one, biases zero.
    """
    shapes, tree = jax.tree.flatten_with_path(param_shapes(config), is_leaf=_is_shape)
    keys = jax.random.split(key, len(shapes))
    leaves = []
    for (path, shape), k in zip(shapes, keys, strict=True):
        name = path[-1].key
        if name == "w":
            leaves.append(jnp.ones(shape, jnp.float32))
        elif name.startswith("b"):
            leaves.append(jnp.zeros(shape, jnp.float32))
        else:
            std = config.initializer_range / ((2 * config.n_layers) ** 0.5 if name in ("W_O", "W_out") else 1.0)
            leaves.append(jax.random.normal(k, shape, jnp.float32) * std)
    return jax.tree.unflatten(tree, leaves)


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(i, int) for i in x)


def layer_data(config: TransformerConfig) -> tuple[dict[str, np.ndarray], ...]:
    """What differs between layers and is not learned, by segment, stacked along L."""
    if config.positional_embedding_type != "rotary":
        return ({},)
    return ({"frequencies": np.tile(config.frequencies(), (config.n_layers, 1))},)


def embed(
    config: TransformerConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "#B T"],
    token_types: Int[Array, "B T"] | None = None,
    tap: Tap = IDENTITY,
) -> Float[Array, "B T D"]:
    """Token embedding, plus the learned position embedding where the model has one. An id out of range gives NaN."""
    if token_types is not None:
        raise InputError("token types were given, but no model of this config has any. Leave token_types out.")
    table = params["embed"]
    x = lookup(table["W_E"], tokens)
    if config.positional_embedding_type == "standard":
        x = x + lookup(table["W_pos"], jnp.maximum(positions, 0))
    return tap("embed", x)


def block(
    config: TransformerConfig,
    params: Params,
    data: Params,
    x: Float[Array, "B T D"],
    *,
    positions: Int[Array, "#B T"],
    prefix: KeyValues | None = None,
    read: Int[Array, "#B P"] | None = None,
    tap: Tap = IDENTITY,
) -> tuple[Float[Array, "B P D"], KeyValues]:
    """One layer: x + attention, then + MLP.

    Args:
        config: of the model.
        params: this layer's parameters.
        data: this layer's row of `layer_data`.
        x: the residual stream.
        positions: absolute positions of its rows, -1 for padding.
        prefix: keys and values of earlier rows (a cache).
        read: the rows whose output is wanted; None: all.
        tap: the model's tap.

    Returns:
        The residual stream after the layer, at the rows that are read, and the keys and values of all rows.
    """
    c = config
    x = tap("resid_pre", x)
    write, key_values = attention(
        params["attn"],
        params.get("ln1"),
        tap("attn.in", x),
        positions=positions,
        frequencies=data.get("frequencies"),
        prefix=prefix,
        read=read,
        causal=c.attention_dir == "causal",
        scale=c.score_scale,
        normalization=c.normalization_type,
        precision=c.precision,
        eps=c.eps,
        tap=tap,
    )
    x, tap = (x if read is None else take_rows(x, read)), tap.narrow(read)
    x = tap("resid_mid", x + tap("attn.out", write))
    if c.attn_only:
        return tap("resid_post", x), key_values
    h = normalize(params.get("ln2"), tap("mlp.in", x), kind=c.normalization_type, name="mlp", eps=c.eps, tap=tap)
    write = mlp(params["mlp"], h, act_fn=c.act_fn, gated=c.gated_mlp, precision=c.precision, tap=tap)
    return tap("resid_post", x + tap("mlp.out", write)), key_values


def unembed(
    config: TransformerConfig,
    params: Params,
    x: Float[Array, "B T D"],
    *,
    tokens: Int[Array, "B n"] | None = None,
    tap: Tap = IDENTITY,
) -> Float[Array, "B T V"]:
    """Final norm and logits in float32, of all tokens or of those in `tokens`, which may differ by example."""
    c = config
    x = tap("final.in", x)
    if c.final_norm:
        x = normalize(params.get("ln_final"), x, kind=c.normalization_type, eps=c.eps, name="final", tap=tap)
    matrix = params["embed"]["W_E"] if c.tie_word_embeddings else params["unembed"]["W_U"].T
    how: dict[str, Any] = dict(precision=c.precision, preferred_element_type=jnp.float32)
    if tokens is None:
        logits = jnp.einsum("btd,vd->btv", x, matrix, **how)
    else:
        logits = jnp.einsum("btd,bnd->btn", x, lookup(matrix, tokens), **how)
    if c.unembed_bias:
        bias = params["unembed"]["b_U"].astype(jnp.float32)
        logits = logits + (bias.reshape(1, 1, -1) if tokens is None else bias[tokens][:, None])
    return tap("logits", logits)
