"""The tree of a transformer's parameters: its shapes, and random values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp._typing import Params, PRNGKeyArray
from jaxinterp.models._config import TransformerConfig

Shapes = dict[str, Any]


def param_shapes(config: TransformerConfig) -> Params:
    """The tree of parameter shapes: nested dictionaries of tuples, blocks stacked along L in a tuple of segments."""
    c = config
    tree: Shapes = {"embed": {"W_E": (c.d_vocab, c.d_model)}, "blocks": (_block(c),)}
    if c.positional_embedding_type == "standard":
        tree["embed"]["W_pos"] = (c.n_ctx, c.d_model)
    if c.n_token_types is not None:
        tree["embed"]["W_token_type"] = (c.n_token_types, c.d_model)
    if c.embed_norm:
        tree["embed"]["ln"] = _norm(c)
    if c.final_norm and c.normalization_type is not None:
        tree["ln_final"] = _norm(c)
    if c.mlm_head:
        tree["mlm_head"] = {"W": (c.d_model, c.d_model), "b": (c.d_model,), "ln": _norm(c)}
    unembed = {} if c.tie_word_embeddings else {"W_U": (c.d_model, c.outputs)}
    unembed |= {"b_U": (c.outputs,)} if c.unembed_bias else {}
    if unembed:
        tree["unembed"] = unembed
    return tree


def _norm(c: TransformerConfig, *lead: int) -> Shapes:
    return {"w": (*lead, c.d_model)} | ({"b": (*lead, c.d_model)} if c.normalization_type == "LN" else {})


def _block(c: TransformerConfig) -> Shapes:
    n, d, f = c.n_layers, c.d_model, c.d_mlp
    block: Shapes = {"attn": _attention(c)}
    if f is not None:
        block["mlp"] = {"W_in": (n, d, f), "W_out": (n, f, d)} | ({"W_gate": (n, d, f)} if c.gated_mlp else {})
        if c.mlp_bias:
            block["mlp"] |= {"b_in": (n, f), "b_out": (n, d)} | ({"b_gate": (n, f)} if c.gated_mlp else {})
    if c.normalization_type is not None:
        behind = c.norm_position in ("sandwich", "output")
        norms = ([] if c.norm_position == "output" else ["ln1", "ln2"]) + (["ln1_post", "ln2_post"] if behind else [])
        without = ("ln2", "ln2_post") if f is None else ("ln2",) if c.shared_norm else ()
        block |= {name: _norm(c, n) for name in norms if name not in without}
    return block


def _attention(c: TransformerConfig) -> Shapes:
    n, d, h, k, e = c.n_layers, c.d_model, c.n_heads, c.key_value_heads, c.d_head
    attn: Shapes = {"W_Q": (n, h, d, e), "W_K": (n, k, d, e), "W_V": (n, k, d, e), "W_O": (n, h, e, d)}
    if c.attention_bias:
        attn |= {"b_Q": (n, h, e), "b_K": (n, k, e), "b_V": (n, k, e)}
    if c.attention_output_bias:
        attn["b_O"] = (n, d)
    if c.qk_norm is not None:
        heads = c.qk_norm == "all"
        attn |= {"q_norm": {"w": (n, *(h,) * heads, e)}, "k_norm": {"w": (n, *(k,) * heads, e)}}
    return attn


def init(config: TransformerConfig, key: PRNGKeyArray) -> Params:
    """Random float32 parameters.

    Weights are normal with `initializer_range` (divided by sqrt(2L) where they write to the residual stream, as in GPT-2),
    norms multiply by one, biases are zero.
    """
    shapes, tree = jax.tree.flatten_with_path(param_shapes(config), is_leaf=_is_shape)
    keys = jax.random.split(key, len(shapes))
    leaves = []
    for (path, shape), k in zip(shapes, keys, strict=True):
        name = path[-1].key
        if name == "w":
            leaves.append(jnp.full(shape, 1.0 - config.norm_weight_offset, jnp.float32))
        elif name.startswith("b"):
            leaves.append(jnp.zeros(shape, jnp.float32))
        else:
            std = config.initializer_range / ((2 * config.n_layers) ** 0.5 if name in ("W_O", "W_out") else 1.0)
            leaves.append(jax.random.normal(k, shape, jnp.float32) * std)
    return jax.tree.unflatten(tree, leaves)


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(i, int) for i in x)
