"""Attention: multi-head, grouped-query and multi-query, with its intervention points."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinterp._typing import Array, Bool, Float, Int, Params
from jaxinterp.nn._norm import normalize
from jaxinterp.nn._rotary import rotate
from jaxinterp.tap import IDENTITY, Tap, take_rows


class KeyValues(NamedTuple):
    """Keys (after RoPE) and values of some positions, for one layer or stacked.

    Attributes:
        keys: [B, S, K, E]
        values: [B, S, K, E]
        positions: [B or 1, S], absolute; -1 marks a row that nobody may attend to.
    """

    keys: Float[Array, "B S K E"]
    values: Float[Array, "B S K E"]
    positions: Int[Array, "B S"]


def attention(
    params: Params,
    norm: Params | None,
    x: Float[Array, "B T D"],
    *,
    positions: Int[Array, "#B T"],
    frequencies: Float[Array, " half"] | None,
    prefix: KeyValues | None = None,
    read: Int[Array, "#B P"] | None = None,
    causal: bool,
    scale: float,
    normalization: str | None,
    eps: float,
    precision: str,
    tap: Tap = IDENTITY,
) -> tuple[Float[Array, "B P D"], KeyValues]:
    """One layer of attention on the residual stream `x`, before the residual sum.

    Query head h reads key/value head h // (H / K); keys and values are never repeated. Scores, softmax and norms are in float32.

    Args:
        params: W_Q [H, D, E], W_K and W_V [K, D, E], W_O [H, E, D]; b_Q, b_K, b_V, b_O where the model has them.
        norm: the norm's parameters.
        x: the residual stream, before the norm.
        positions: absolute positions of the rows; -1 marks padding, to which nobody attends.
        frequencies: of RoPE; None: no rotation.
        prefix: keys and values of rows that come before.
        read: rows of `x` whose output is wanted; None: all.
        causal: whether a row attends only to positions up to its own.
        scale: what scores are multiplied by.
        normalization, eps: see `normalize`.
        precision: of the matrix products.
        tap: the model's tap.

    Returns:
        The layer's write [B, P, D], and the keys and values of the rows of `x`.
    """
    q_in, k_in, v_in = _reads(params, norm, x, read, normalization, eps, tap)
    queries = tap.narrow(read)  # from here on, what belongs to a query has the rows that are read
    q = queries("attn.q", _project(q_in, params, "Q", precision))
    k = tap("attn.k", _project(k_in, params, "K", precision), "BTKE")
    v = tap("attn.v", _project(v_in, params, "V", precision), "BTKE")
    q_positions = positions if read is None else take_rows(positions, read)
    if frequencies is not None:
        q, k = rotate(q, q_positions, frequencies), rotate(k, positions, frequencies)
    if tap.wants("attn.q_rot"):
        q = queries("attn.q_rot", q)
    if tap.wants("attn.k_rot"):
        k = tap("attn.k_rot", k, "BTKE")
    own = KeyValues(k, v, positions)
    z = _attend(q, [own] if prefix is None else [prefix, own], q_positions, causal, scale, precision, queries)
    z = queries("attn.z", z)
    if tap.wants("attn.result"):
        result = jnp.einsum("bthe,hed->bthd", z, params["W_O"], precision=precision)
        out = jnp.sum(queries("attn.result", result, "BTHD"), axis=2)
    else:
        out = jnp.einsum("bthe,hed->btd", z, params["W_O"], precision=precision)
    return (out + params["b_O"].reshape(1, 1, -1) if "b_O" in params else out), own


def _reads(
    params: Params, norm: Params | None, x: Array, read: Array | None, normalization: str | None, eps: float, tap: Tap
) -> tuple[Array, Array, Array]:
    """What queries, keys and values are computed from: the normalized stream, [B, T, D], or by head, [B, T, H, D], on demand."""
    by_head = {letter: tap.wants(f"attn.{letter.lower()}_in") for letter in "QKV"}
    if not all(by_head.values()) or tap.wants("attn.norm_scale"):
        normal = normalize(norm, x, kind=normalization, eps=eps, name="attn", tap=tap)
    reads = []
    for letter, wanted in by_head.items():
        rows = x if wanted else normal
        rows = take_rows(rows, read) if letter == "Q" and read is not None else rows
        if wanted:
            site, heads = f"attn.{letter.lower()}_in", params[f"W_{letter}"].shape[0]
            rows = jnp.broadcast_to(rows[:, :, None], (*rows.shape[:2], heads, rows.shape[-1]))
            rows = (tap.narrow(read) if letter == "Q" else tap)(site, rows, "BTHD" if letter == "Q" else "BTKD")
            rows = normalize(norm, rows, kind=normalization, eps=eps, name=site)
        reads.append(rows)
    return reads[0], reads[1], reads[2]


def _project(x: Array, params: Params, letter: str, precision: str) -> Array:
    weight = params[f"W_{letter}"]
    lead = "bthd" if x.ndim == 4 else "btd"
    y = jnp.einsum(f"{lead},hde->bthe", x, weight, precision=precision)
    return y + params[f"b_{letter}"].reshape(1, 1, *weight.shape[::2]) if f"b_{letter}" in params else y


def _attend(
    q: Array, segments: list[KeyValues], q_positions: Array, causal: bool, scale: float, precision: str, tap: Tap
) -> Array:
    """softmax(q k) v over the segments in turn, without joining (and so copying) their keys and values."""
    b, t, h, e = q.shape
    kv_heads = segments[0].keys.shape[2]
    grouped = q.reshape(b, t, kv_heads, h // kv_heads, e)

    def scores_of(segment: KeyValues) -> Array:
        s = jnp.einsum(
            "btkge,bske->bkgts", grouped, segment.keys, precision=precision, preferred_element_type=jnp.float32
        )
        s = s.reshape(b, h, t, -1) * jnp.float32(scale)
        return jnp.where(_allowed(q_positions, segment.positions, causal), s, jnp.finfo(jnp.float32).min)

    scores = jnp.concatenate([scores_of(s) for s in segments], -1) if len(segments) > 1 else scores_of(segments[0])
    if tap.wants("attn.scores"):
        scores = tap("attn.scores", scores, "BHTS")
    pattern = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    if tap.wants("attn.pattern"):
        pattern = tap("attn.pattern", pattern, "BHTS")
    pattern = pattern.reshape(b, kv_heads, h // kv_heads, t, -1)
    z, start = None, 0
    for segment in segments:
        stop = start + segment.keys.shape[1]
        part = jnp.einsum("bkgts,bske->btkge", pattern[..., start:stop], segment.values, precision=precision)
        z, start = part if z is None else z + part, stop
    assert z is not None
    return z.reshape(b, t, h, e)


def _allowed(q_positions: Array, k_positions: Array, causal: bool) -> Bool[Array, "B 1 T S"]:
    q, k = q_positions[:, None, :, None], k_positions[:, None, None, :]
    return (k >= 0) & (k <= q) if causal else jnp.broadcast_to(k >= 0, (k.shape[0], 1, q.shape[2], k.shape[3]))
