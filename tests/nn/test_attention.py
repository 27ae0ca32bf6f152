"""Attention against numpy in float64, with keys and values repeated by head, one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.nn import AttentionKind, KeyValues, Norm, attention, lookup, rotary_frequencies
from jaxinterp.tap import take_rows
from tests.nn.test_rotary import by_complex_numbers
from tests.tiny import check_close, check_same

B, T, D, H, E = 2, 5, 6, 4, 4
FREQUENCIES = rotary_frequencies(E, 30.0)


def make(kv_heads, biases=True, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"W_Q": (H, D, E), "W_K": (kv_heads, D, E), "W_V": (kv_heads, D, E), "W_O": (H, E, D)}
    shapes |= {"b_Q": (H, E), "b_K": (kv_heads, E), "b_V": (kv_heads, E), "b_O": (D,)} if biases else {}
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


X = np.random.default_rng(7).normal(size=(B, T, D)).astype(np.float32)


def oracle(p, x, positions, *, causal, scale, rotary, window=None, soft_cap=None):
    x = x.astype(np.float64)
    project = lambda n: np.einsum("btd,hde->bthe", x, p[f"W_{n}"]) + p.get(f"b_{n}", np.zeros((1, E)))
    q, k, v = project("Q"), project("K"), project("V")
    for name, axes in (("q_norm", "q"), ("k_norm", "k")):
        if name in p:
            w, a = p[name]["w"], q if axes == "q" else k
            over = (-1,) if w.ndim == 1 else (-2, -1)
            a = a / np.sqrt((a**2).mean(over, keepdims=True) + 1e-5) * w
            q, k = (a, k) if axes == "q" else (q, a)
    if rotary:
        q, k = (by_complex_numbers(a, positions, FREQUENCIES) for a in (q, k))
    k, v = (np.repeat(a, H // a.shape[2], axis=2) for a in (k, v))
    z, pattern = np.zeros((B, T, H, E)), np.zeros((B, H, T, T))
    for b, h, t in np.ndindex(B, H, T):
        allowed = (positions[b] >= 0) & ((positions[b] <= positions[b, t]) if causal else True)
        if window is not None:
            allowed &= positions[b] > positions[b, t] - window
        if not allowed.any():
            continue
        s = scale * k[b, allowed, h] @ q[b, t, h]
        s = s if soft_cap is None else soft_cap * np.tanh(s / soft_cap)
        w = np.exp(s - s.max())
        pattern[b, h, t, allowed] = w / w.sum()
        z[b, t, h] = pattern[b, h, t] @ v[b, :, h]
    return np.einsum("bthe,hed->btd", z, p["W_O"]) + p.get("b_O", 0.0), z, pattern


def call(
    p, x, positions, *, tap=ji.IDENTITY, rotary=False, causal=True, scale=0.7, normalization=None, kind=None, **how
):
    frequencies = jnp.asarray(FREQUENCIES) if rotary else None
    kind = AttentionKind(causal=causal, scale=scale, norm=Norm(normalization), **(kind or {}))
    params, norm = jax.tree.map(jnp.asarray, p), how.pop("norm", None)
    positions = jnp.asarray(positions, jnp.int32)
    return attention(
        params, norm, jnp.asarray(x), kind=kind, positions=positions, frequencies=frequencies, tap=tap, **how
    )


PLAIN = np.broadcast_to(np.arange(T), (B, T))
LEFT = np.array([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]])
RIGHT = np.array([[0, 1, 2, -1, -1], [0, 1, 2, 3, -1]])


VARIANTS = {
    "window": dict(window=2),
    "soft cap": dict(soft_cap=1.5),
    "norm by head": dict(qk_norm="head"),
    "norm of all heads": dict(qk_norm="all"),
    "all at once": dict(window=3, soft_cap=2.0, qk_norm="head"),
}


@pytest.mark.parametrize("positions", [PLAIN, LEFT, RIGHT], ids=["plain", "left", "right"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_the_loop(name, positions):
    window, soft_cap, qk_norm = (VARIANTS[name].get(k) for k in ("window", "soft_cap", "qk_norm"))
    p, rng = make(2), np.random.default_rng(1)
    if qk_norm is not None:
        lead = {"q_norm": (H,) if qk_norm == "all" else (), "k_norm": (2,) if qk_norm == "all" else ()}
        p |= {k: {"w": rng.normal(size=(*s, E)).astype(np.float32)} for k, s in lead.items()}
    kind = dict(soft_cap=soft_cap, qk_norm=Norm(None if qk_norm is None else "RMS", 1e-5))
    how = dict(window=None if window is None else jnp.int32(window), kind=kind)
    want = oracle(p, X, positions, causal=True, scale=0.7, rotary=True, window=window, soft_cap=soft_cap)[0]
    got, _ = jax.jit(lambda x: call(p, x, positions, rotary=True, **how))(X)
    real = positions >= 0
    check_close(got[real], want[real])
    _, rest = call(p, X[:, :3], positions[:, :3], rotary=True, **how)
    tail, _ = call(p, X[:, 3:], positions[:, 3:], rotary=True, prefix=rest, **how)
    check_close(tail[real[:, 3:]], want[:, 3:][real[:, 3:]])


@pytest.mark.parametrize("cut", [0, 10])
@pytest.mark.parametrize(
    ("causal", "window", "soft_cap", "dtype"),
    [(True, 7, 1.5, jnp.float32), (False, None, None, jnp.float32), (True, 90, None, jnp.bfloat16)],
)
def test_long_sequences_by_blocks_are_the_whole(causal, window, soft_cap, dtype, cut):
    """Whoever captures the pattern gets the whole computation, everybody else the blocks of queries."""
    rng, long = np.random.default_rng(3), 530
    x = jnp.asarray(rng.normal(size=(B, long, D)), dtype)
    positions = np.stack([np.arange(long), np.maximum(np.arange(long) - 9, -1)])  # the second one is padded on the left
    p = jax.tree.map(lambda a: jnp.asarray(a, dtype), make(2))
    how = dict(causal=causal, rotary=True, kind=dict(soft_cap=soft_cap))
    how |= dict(window=None if window is None else jnp.int32(window))

    def rest(x, *, tap=ji.IDENTITY):
        prefix = call(p, x[:, :cut], positions[:, :cut], **how)[1] if cut else None
        return call(p, x[:, cut:], positions[:, cut:], prefix=prefix, tap=tap, **how)[0]

    got = jax.jit(rest)(x)
    want, acts, _ = jax.jit(ji.run(rest, ji.capture("attn.pattern")))(x)
    assert acts["attn.pattern"].shape == (B, H, long - cut, long)
    real = positions[:, cut:] >= 0
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    check_close(got.astype(jnp.float32)[real], want.astype(jnp.float32)[real], tolerance)
    text = jax.jit(rest).lower(x).as_text()
    assert "x128x530xf32" in text or "x128x520xf32" in text
    assert f"x{long - cut}x{long - cut}xf32" not in text


@pytest.mark.parametrize(
    ("kv_heads", "causal", "rotary"),
    [(4, True, False), (2, True, True), (1, True, True), (2, False, True), (1, False, False)],
)
@pytest.mark.parametrize("positions", [PLAIN, LEFT, RIGHT], ids=["plain", "left", "right"])
def test_attention_is_the_loop(kv_heads, causal, rotary, positions):
    p = make(kv_heads, biases=causal)
    f = jax.jit(
        ji.run(
            lambda x, *, tap: call(p, x, positions, tap=tap, causal=causal, rotary=rotary)[0],
            ji.capture("attn.z", "attn.pattern"),
        )
    )
    got, acts, _ = f(X)
    want, z, pattern = oracle(p, X, positions, causal=causal, scale=0.7, rotary=rotary)
    real = positions >= 0
    assert pattern[0, 0, 4 if real[0, 4] else 2].max() > 0.4  # far from uniform
    check_close(np.asarray(got)[real], want[real])
    check_close(np.asarray(acts["attn.z"])[real], z[real])
    check_close(np.swapaxes(acts["attn.pattern"], 1, 2)[real], np.swapaxes(pattern, 1, 2)[real])
    assert np.isfinite(got).all()


NORM = {"w": jnp.linspace(0.5, 1.5, D), "b": jnp.linspace(-1, 1, D)}
how = dict(norm=NORM, normalization="LN", rotary=True)


@pytest.mark.parametrize("read", [None, jnp.array([[4, 1]]), jnp.array([[4], [2]])])
def test_every_on_demand_path_is_the_fused_one(read):
    p = make(2)
    fused = call(p, X, PLAIN, read=read, **how)[0]
    for names in (["attn.q_in"], ["attn.k_in"], ["attn.v_in"], ["attn.q_in", "attn.k_in", "attn.v_in"], ["attn.result"],
                  ["attn.scores"], ["attn.q_rot", "attn.k_rot"], ["attn.norm_scale"]):  # fmt: skip
        got, acts, _ = ji.run(lambda x, *, tap: call(p, x, PLAIN, tap=tap, read=read, **how)[0], ji.capture(*names))(X)
        assert set(acts) == set(names)
        check_close(got, fused)


def test_reads_are_by_head():
    p = make(2)
    run = lambda *handlers: ji.run(
        lambda x, *, tap: call(p, x, PLAIN, tap=tap, **how)[0], *handlers, ji.capture("attn.q", "attn.k", "attn.v")
    )(X)
    other = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    _, plain, _ = run()
    _, moved, _ = ji.run(
        lambda x, *, tap: call(p, x, PLAIN, tap=tap, **how)[0], ji.capture("attn.q", "attn.k", "attn.v")
    )(other)
    for letter, heads in (("q", 4), ("k", 2), ("v", 2)):
        _, acts, _ = run(ji.patch(f"attn.{letter}_in", other[:, :, None], head=heads - 1))
        check_close(acts[f"attn.{letter}"][:, :, -1], moved[f"attn.{letter}"][:, :, -1])
        check_close(acts[f"attn.{letter}"][:, :, :-1], plain[f"attn.{letter}"][:, :, :-1])
        for rest in set("qkv") - {letter}:
            check_close(acts[f"attn.{rest}"], plain[f"attn.{rest}"])


def test_results_are_what_heads_write():
    p = make(4)
    out, acts, _ = ji.run(lambda x, *, tap: call(p, x, PLAIN, tap=tap)[0], ji.capture("attn.result", "attn.z"))(X)
    check_close(acts["attn.result"], np.einsum("bthe,hed->bthd", acts["attn.z"], p["W_O"]))
    check_close(out, np.asarray(acts["attn.result"]).sum(2) + p["b_O"])


def test_an_edit_of_the_pattern_moves_the_write():
    p = make(2)
    eye = np.broadcast_to(np.eye(T, dtype=np.float32), (B, H, T, T))
    out, acts, _ = ji.run(
        lambda x, *, tap: call(p, x, PLAIN, tap=tap)[0], ji.patch("attn.pattern", eye), ji.capture("attn.z", "attn.v")
    )(X)
    check_close(acts["attn.z"], np.repeat(np.asarray(acts["attn.v"]), 2, axis=2))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", [PLAIN, LEFT], ids=["plain", "left"])
def test_a_prefix_is_the_rows_before(causal, positions):
    p = make(2)
    whole, kv = call(p, X, positions, rotary=True, causal=causal)
    prefix = KeyValues(kv.keys[:, :3], kv.values[:, :3], kv.positions[:, :3])
    got, own = call(p, X[:, 3:], positions[:, 3:], rotary=True, causal=causal, prefix=prefix)
    check_close(got, whole[:, 3:])
    check_close(own.keys, kv.keys[:, 3:])
    read, _ = call(p, X[:, 2:], positions[:, 2:], rotary=True, causal=causal, read=jnp.array([[2], [0]]),
                   prefix=jax.tree.map(lambda a: a[:, :2], kv))  # fmt: skip
    check_close(read[:, 0], jnp.stack([whole[0, 4], whole[1, 2]]))


def test_no_gradient_reaches_what_may_not_be_seen():
    p = make(2)
    g = jax.grad(lambda x: call(p, x, LEFT, rotary=True)[0][0, 3].sum())(jnp.asarray(X))
    assert not g[1].any() and not g[0, :2].any() and not g[0, 4].any() and g[0, 2:4].any()


def test_a_lookup_out_of_range_is_nan():
    table = jnp.arange(6.0).reshape(3, 2)
    got = jax.jit(lookup)(table, jnp.array([[0, 2], [3, -1]]))
    check_same(got[0], [[0, 1], [4, 5]])
    assert np.isnan(got[1]).all()
    g = jax.grad(lambda t: lookup(t, jnp.array([1, 1]))[:, 0].sum())(table)
    check_same(g, [[0, 0], [2, 0], [0, 0]])


def test_take_rows_broadcasts_either_side():
    x = jnp.asarray(X)
    check_same(take_rows(x, jnp.array([[1, 0]])), x[:, np.array([1, 0])])
    check_same(take_rows(x, jnp.array([[1], [0]]))[:, 0], jnp.stack([x[0, 1], x[1, 0]]))
    check_same(take_rows(jnp.arange(5)[None], jnp.array([[1], [4]])), [[1], [4]])
