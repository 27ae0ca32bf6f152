"""Attention: multi-head, grouped-query and multi-query, with its intervention points."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinterp._typing import Array, Bool, Float, Int, Params
from jaxinterp.nn._norm import NO_NORM, Norm, normalize
from jaxinterp.nn._rotary import rotate
from jaxinterp.tap import IDENTITY, Tap, take_rows

LONG, QUERY_BLOCK = 512, 128
"""From how many queries on they are taken by blocks, and of how many."""

_Places = tuple[Array, Array | None]
"""Of queries: their positions, and their segments where there are any."""


class KeyValues(NamedTuple):
    """Keys (after RoPE) and values of some positions, for one layer or stacked.

    Attributes:
        keys: [B, S, K, E]
        values: [B, S, K, E]
        positions: [B or 1, S], absolute; -1 marks a row that nobody may attend to.
        segments: [B, S], which of several texts in one row of tokens each belongs to; None: there is one alone.
    """

    keys: Float[Array, "B S K E"]
    values: Float[Array, "B S K E"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"] | None = None


class AttentionKind(NamedTuple):
    """How attention computes; the same in all layers, static.

    Attributes:
        causal: whether a row attends only to positions up to its own.
        scale: what scores are multiplied by.
        soft_cap: c of c * tanh(scores / c), before the mask; None: none.
        norm: of the residual stream before the projections.
        qk_norm: of queries and keys before RoPE, over each head, or over all of them where its weight has a head axis.
        adjacent_pairs: see `rotate`.
        precision: of the matrix products.
    """

    causal: bool
    scale: float
    soft_cap: float | None = None
    norm: Norm = NO_NORM
    qk_norm: Norm = NO_NORM
    adjacent_pairs: bool = False
    precision: str = "highest"


def attention(
    params: Params,
    norm: Params | None,
    x: Float[Array, "B T D"],
    *,
    kind: AttentionKind,
    positions: Int[Array, "#B T"],
    frequencies: Float[Array, " half"] | None,
    window: Int[Array, ""] | None = None,
    prefix: KeyValues | None = None,
    segments: Int[Array, "B T"] | None = None,
    read: Int[Array, "#B P"] | None = None,
    tap: Tap = IDENTITY,
) -> tuple[Float[Array, "B P D"], KeyValues]:
    """One layer of attention on the residual stream `x`, before the residual sum.

    Query head h reads key/value head h // (H / K); keys and values are never repeated. Scores, softmax and norms are in float32.

    Args:
        params: W_Q [H, D, E], W_K and W_V [K, D, E], W_O [H, E, D]; b_Q, b_K, b_V, b_O, q_norm, k_norm where the model has them.
        norm: the norm's parameters.
        x: the residual stream, before the norm.
        kind: how it computes.
        positions: absolute positions of the rows; -1 marks padding, to which nobody attends.
        frequencies: of RoPE; None: no rotation.
        window: how many positions a row attends to, its own the last; None: all.
        prefix: keys and values of rows that come before.
        segments: which of several texts each row belongs to: it attends to rows of its own alone. Not together with a prefix.
        read: rows of `x` whose output is wanted; None: all.
        tap: the model's tap.

    Returns:
        The layer's write [B, P, D], and the keys and values of the rows of `x`.
    """
    q_in, k_in, v_in = _reads(params, norm, x, read, kind.norm, tap)
    queries = tap.narrow(read)  # from here on, what belongs to a query has the rows that are read
    q = queries("attn.q", _project(q_in, params, "Q", kind.precision))
    k = tap("attn.k", _project(k_in, params, "K", kind.precision), "BTKE")
    v = tap("attn.v", _project(v_in, params, "V", kind.precision), "BTKE")
    if kind.qk_norm.kind is not None:
        q = _normalize_heads(params["q_norm"], q, kind.qk_norm, "attn.q_norm_scale", "BTHE", queries)
        k = _normalize_heads(params["k_norm"], k, kind.qk_norm, "attn.k_norm_scale", "BTKE", tap)
    q_positions = positions if read is None else take_rows(positions, read)
    if frequencies is not None:
        q = rotate(q, q_positions, frequencies, adjacent_pairs=kind.adjacent_pairs)
        k = rotate(k, positions, frequencies, adjacent_pairs=kind.adjacent_pairs)
    if tap.wants("attn.q_rot"):
        q = queries("attn.q_rot", q)
    if tap.wants("attn.k_rot"):
        k = tap("attn.k_rot", k, "BTKE")
    own = KeyValues(k, v, positions, segments)
    q_segments = segments if read is None or segments is None else take_rows(segments, read)
    z = _attend(q, [own] if prefix is None else [prefix, own], (q_positions, q_segments), window, kind, queries)
    z = queries("attn.z", z)
    if tap.wants("attn.result"):
        result = jnp.einsum("bthe,hed->bthd", z, params["W_O"], precision=kind.precision)
        out = jnp.sum(queries("attn.result", result, "BTHD"), axis=2)
    else:
        out = jnp.einsum("bthe,hed->btd", z, params["W_O"], precision=kind.precision)
    return (out + params["b_O"].reshape(1, 1, -1) if "b_O" in params else out), own


def _reads(
    params: Params, weight: Params | None, x: Array, read: Array | None, norm: Norm, tap: Tap
) -> tuple[Array, Array, Array]:
    """What queries, keys and values are computed from: the normalized stream, [B, T, D], or by head, [B, T, H, D], on demand."""
    by_head = {letter: tap.wants(f"attn.{letter.lower()}_in") for letter in "QKV"}
    if not all(by_head.values()) or tap.wants("attn.norm_scale"):
        normal = normalize(weight, x, norm=norm, site="attn.norm_scale", tap=tap)
    reads = []
    for letter, wanted in by_head.items():
        rows = x if wanted else normal
        rows = take_rows(rows, read) if letter == "Q" and read is not None else rows
        if wanted:
            site, heads = f"attn.{letter.lower()}_in", params[f"W_{letter}"].shape[0]
            rows = jnp.broadcast_to(rows[:, :, None], (*rows.shape[:2], heads, rows.shape[-1]))
            rows = (tap.narrow(read) if letter == "Q" else tap)(site, rows, "BTHD" if letter == "Q" else "BTKD")
            rows = normalize(weight, rows, norm=norm, site=site)
        reads.append(rows)
    return reads[0], reads[1], reads[2]


def _normalize_heads(params: Params, x: Array, norm: Norm, site: str, axes: str, tap: Tap) -> Array:
    """Queries or keys [B, T, H, E], normalized over E, or over H and E together where the weight is [H, E]."""
    if params["w"].ndim == 1:
        return normalize(params, x, norm=norm, site=site, axes=axes, tap=tap)
    flat = normalize({"w": params["w"].reshape(-1)}, x.reshape(*x.shape[:2], -1), norm=norm, site=site, tap=tap)
    return flat.reshape(x.shape)


def _project(x: Array, params: Params, letter: str, precision: str) -> Array:
    weight = params[f"W_{letter}"]
    lead = "bthd" if x.ndim == 4 else "btd"
    y = jnp.einsum(f"{lead},hde->bthe", x, weight, precision=precision)
    return y + params[f"b_{letter}"].reshape(1, 1, *weight.shape[::2]) if f"b_{letter}" in params else y


def _attend(
    q: Array, parts: list[KeyValues], places: _Places, window: Array | None, kind: AttentionKind, tap: Tap
) -> Array:
    """softmax(q k) v; for long sequences by blocks of queries, unless somebody wants to see the whole pattern.

    A block holds a pattern [B, H, block, S] at a time: on a CPU at 1,024 tokens a quarter of the memory, 0.8 to 0.9 of the time
    (experiments/benchmarks/attention.py). `jax.nn.dot_product_attention` takes the memory of the whole there, knows no soft cap,
    and has no precision to set, so that float32 would not be float32 on a TPU.
    """
    t, wanted = q.shape[1], tap.wants("attn.scores") or tap.wants("attn.pattern")
    if wanted or t < LONG:
        return _attend_rows(q, parts, places, window, kind, tap)
    n = -(-t // QUERY_BLOCK)
    more = n * QUERY_BLOCK - t
    q = jnp.pad(q, ((0, 0), (0, more), (0, 0), (0, 0)))
    places = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, more)), constant_values=-1), places)
    cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], n, QUERY_BLOCK, *x.shape[2:]), 1, 0)
    z = lax.map(
        lambda block: _attend_rows(block[0], parts, block[1], window, kind, IDENTITY), jax.tree.map(cut, (q, places))
    )
    return jnp.moveaxis(z, 0, 1).reshape(q.shape)[:, :t]


def _attend_rows(
    q: Array, parts: list[KeyValues], places: _Places, window: Array | None, kind: AttentionKind, tap: Tap
) -> Array:
    """softmax(q k) v over the parts in turn, without joining (and so copying) their keys and values."""
    b, t, h, e = q.shape
    kv_heads = parts[0].keys.shape[2]
    grouped = q.reshape(b, t, kv_heads, h // kv_heads, e)

    def scores_of(part: KeyValues) -> Array:
        s = jnp.einsum(
            "btkge,bske->bkgts", grouped, part.keys, precision=kind.precision, preferred_element_type=jnp.float32
        )
        s = s.reshape(b, h, t, -1) * jnp.float32(kind.scale)
        s = s if kind.soft_cap is None else kind.soft_cap * jnp.tanh(s / kind.soft_cap)
        allowed = _allowed(places, part, kind.causal, window)
        return jnp.where(allowed, s, jnp.finfo(jnp.float32).min)

    scores = jnp.concatenate([scores_of(part) for part in parts], -1) if len(parts) > 1 else scores_of(parts[0])
    if tap.wants("attn.scores"):
        scores = tap("attn.scores", scores, "BHTS")
    pattern = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    if tap.wants("attn.pattern"):
        pattern = tap("attn.pattern", pattern, "BHTS")
    pattern = pattern.reshape(b, kv_heads, h // kv_heads, t, -1)
    z, start = None, 0
    for part in parts:
        stop = start + part.keys.shape[1]
        share = jnp.einsum("bkgts,bske->btkge", pattern[..., start:stop], part.values, precision=kind.precision)
        z, start = share if z is None else z + share, stop
    assert z is not None
    return z.reshape(b, t, h, e)


def _allowed(places: _Places, part: KeyValues, causal: bool, window: Array | None) -> Bool[Array, "B 1 T S"]:
    q, k = places[0][:, None, :, None], part.positions[:, None, None, :]
    if causal:
        seen = (k >= 0) & (k <= q)
        seen = seen if window is None else seen & (k > q - window)
    else:
        seen = jnp.broadcast_to(k >= 0, (k.shape[0], 1, q.shape[2], k.shape[3]))
    if places[1] is None or part.segments is None:
        return seen
    return seen & (places[1][:, None, :, None] == part.segments[:, None, None, :])
