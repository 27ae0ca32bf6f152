"""Products that touch active latents alone: both forms against numpy; and what travels between the shards of a mesh."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxinterp.mesh import make_mesh
from jaxinterp.saes import (
    Axes,
    BatchTopK,
    Matryoshka,
    SAEConfig,
    SparseLatents,
    TopK,
    TrainConfig,
    decode_active,
    encode_active,
)
from jaxinterp.saes._largest import kth_largest
from jaxinterp.saes._program import make_program
from jaxinterp.saes._sparse import DENSE_FROM
from tests.saes import naive
from tests.saes.problems import make_params, make_rows, make_training
from tests.tiny import check_close

B, D = 6, 5


def make_active(n, k, seed=0):
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.permutation(n)[:k] for _ in range(B)])
    return rng.normal(size=(B, k)), indices, rng.normal(size=(n, D)), rng.normal(size=(B, D)), rng.normal(size=n)


def spread(values, indices, n):
    dense = np.zeros((B, n))
    np.put_along_axis(dense, indices, values, axis=1)
    return dense


@pytest.mark.parametrize("form", ["by index", "dense"])
def test_decoding_and_its_gradients(form):
    k = 3
    n = DENSE_FROM * k + (1 if form == "by index" else -1)
    values, indices, weights, upstream, _ = make_active(n, k)
    f32 = lambda a: jnp.asarray(a, jnp.float32)
    out, back = jax.vjp(lambda v, w: decode_active(v, jnp.asarray(indices), w), f32(values), f32(weights))
    check_close(out, spread(values, indices, n) @ weights, 1e-6)
    to_values, to_weights = back(f32(upstream))
    check_close(to_values, np.take_along_axis(upstream @ weights.T, indices, axis=1), 1e-6)
    check_close(to_weights, spread(values, indices, n).T @ upstream, 1e-6)
    check_close(
        SparseLatents(values=f32(values), indices=jnp.asarray(indices), n_latents=n).dense(), spread(values, indices, n)
    )
    program = str(
        jax.make_jaxpr(jax.grad(lambda w: decode_active(f32(values), jnp.asarray(indices), w).sum()))(f32(weights))
    )
    assert ("platform_index" in program) == (form == "by index")


@pytest.mark.parametrize("form", ["by index", "dense"])
def test_encoding_and_its_gradients(form):
    k = 3
    n = DENSE_FROM * k + (1 if form == "by index" else -1)
    upstream, indices, weights, x, bias = make_active(n, k)
    center = np.linspace(-1, 1, D)
    f32 = lambda a: jnp.asarray(a, jnp.float32)
    known = np.take_along_axis((x - center) @ weights.T + bias, indices, axis=1)
    out, back = jax.vjp(
        lambda x, c, w, b: encode_active(x, c, w, b, f32(known), jnp.asarray(indices)),
        *map(f32, (x, center, weights, bias)),
    )
    check_close(out, known)
    to_z = spread(upstream, indices, n)
    wants = to_z @ weights, -(to_z @ weights).sum(0), to_z.T @ (x - center), to_z.sum(0)
    for got, want in zip(back(f32(upstream)), wants, strict=True):
        check_close(got, want, 2e-6)


def test_both_forms_stay_in_bfloat16(bfloat16_products):
    for n in (DENSE_FROM * 3 + 1, DENSE_FROM * 3 - 1):
        values, indices, weights, upstream, _ = make_active(n, 3)
        args = jnp.asarray(values, jnp.float32), jnp.asarray(weights, jnp.bfloat16)
        out, back = jax.vjp(lambda v, w, i=indices: decode_active(v, jnp.asarray(i), w), *args)
        assert out.dtype == jnp.float32  # what is summed is not rounded
        gradients = back(jnp.asarray(upstream, jnp.float32))
        assert [g.dtype for g in gradients] == [jnp.float32, jnp.bfloat16]
        check_close(out.astype(jnp.float32), spread(values, indices, n) @ weights, 0.02)
        check_close(gradients[1].astype(jnp.float32), spread(values, indices, n).T @ upstream, 0.02)


@pytest.mark.parametrize("k", [1, 7, 40, 1000])
def test_the_kth_largest_is_exact(k):
    values = make_rows(9, n=23)
    want = sorted(np.asarray(values)[np.asarray(values) > 0].tolist(), reverse=True)
    got = float(jax.jit(lambda v: kth_largest([v[:4], v[4:]], jnp.int32(k), Axes()))(values))
    assert got == (np.float32(want[k - 1]) if k <= len(want) else 0.0)


def test_counts_of_many_shards_do_not_overflow():
    class Many(Axes):
        def rows(self, x):
            return x * jnp.uint32(2**14)  # as if so many shards had the same rows

    values = jax.random.uniform(jax.random.key(0), (2**9, 2**10))
    assert float(kth_largest([values], jnp.int32(5), Many())) == float(values.max())


@pytest.mark.parametrize("crowded", ["no row", "a few rows", "many rows"])
@pytest.mark.parametrize("architecture", [BatchTopK(k=1), Matryoshka(k=1, widths=(20, 70))], ids=lambda a: a.name)
def test_a_batch_of_a_large_dictionary(architecture, crowded):
    """Rows that have no more active latents than candidates, and rows that do: few of them, or too many to work off apart."""
    config = SAEConfig(architecture=architecture, d_in=D, n_latents=160)
    params, at = make_params(config), make_training(config)
    own = params["W_enc"][::10] / jnp.linalg.norm(
        params["W_enc"][::10], axis=1, keepdims=True
    )  # each row has its own latent
    if crowded == "a few rows":
        own = own.at[3].multiply(30.0)
    if crowded == "many rows":  # three alike have the largest latents of the batch to themselves
        own = own.at[:3].set(30.0 * own[:1] * jnp.array([[1.0], [1.001], [1.002]]))
    x = params["b_dec"][None] + 30.0 * own
    axes = Axes(data="data", dict="dict")
    loss = lambda p, x, at: jax.value_and_grad(lambda p: architecture.loss(p, x, x, at), has_aux=True)(p)
    (value, outcome), gradient = jax.jit(loss)(params, x, at)
    (want, latents), want_gradient = jax.value_and_grad(naive.loss, has_aux=True)(params, x, x, at)
    many = int(((latents > 0).sum(1) > 4).sum())
    assert {"no row": many == 0, "a few rows": many == 1, "many rows": many > 2}[crowded], many
    check_close(value, want)
    for name in want_gradient:
        check_close(gradient[name], want_gradient[name])
    assert float(outcome.smallest) == pytest.approx(float(latents[latents > 0].min()), rel=1e-5)
    cut = {name: P("dict") if leaf.ndim and name != "b_dec" else P() for name, leaf in params.items()}
    outs = dataclasses.replace(jax.tree.map(lambda _: P(), outcome), fired=P("dict"))
    sharded = jax.shard_map(
        lambda p, x, dead: (
            lambda value, gradient: (value, axes.rows(gradient))
        )(*loss(axes.local(p), x, dataclasses.replace(at, dead=dead, axes=axes))),
        mesh=make_mesh(data=4, dict=2), in_specs=(cut, P("data"), P("dict")), out_specs=((P(), outs), cut),
    )  # fmt: skip
    jax.tree.map(check_close, jax.jit(sharded)(params, x, at.dead), ((value, outcome), gradient))


def sent(compiled):
    """How many numbers each collective of a compiled program gives, of those that give several the largest."""
    collective = re.compile(r"= (\(.*?\)|\S+) all-(?:gather|to-all|reduce)(?:-start)?\(")
    shapes = [re.findall(r"\w+\[([\d,]*)\]", found) for found in collective.findall(compiled.as_text())]
    return [max(int(np.prod([int(size) for size in one.split(",") if size])) for one in several) for several in shapes]


@pytest.mark.parametrize(
    "architecture", [TopK(k=4), BatchTopK(k=2), Matryoshka(k=2, widths=(64,))], ids=lambda a: a.name
)
def test_only_candidates_travel_between_shards(architecture):
    rows, n, shards = 64, 1024, dict(data=2, dict=4)
    config = TrainConfig(sae=SAEConfig(architecture=architecture, d_in=16, n_latents=n), steps=9, learning_rate=1e-3)
    program = make_program([config], make_mesh(**shards), stacked=False)
    x = jax.device_put(make_rows(16, n=rows), program.layout.placed(0, P("data")))
    state = program.first(x, x)
    assert state.params["W_dec"].addressable_shards[0].data.shape == (n // 4, 16)
    assert state.optimizer.nu["W_enc"].addressable_shards[0].data.shape == (n // 4, 16)
    assert state.idle.addressable_shards[0].data.shape == (n // 4,)
    sizes = sent(program.compiled(state, x, x))
    assert len(sizes) > 3
    # a shard's gradient, its rows, all candidates
    assert max(sizes) <= max(n // 4 * 16, rows // 2 * 16, rows // 2 * 4 * 16)
    assert max(sizes) < rows // 2 * n // 4


def test_first_parameters_are_made_where_they_lie():
    n = 2**16
    config = TrainConfig(sae=SAEConfig(architecture=TopK(k=4), d_in=4, n_latents=n), steps=9, learning_rate=1e-3)
    program = make_program([config], make_mesh(data=2, dict=4))
    x = jax.ShapeDtypeStruct((64, 4), jnp.float32, sharding=program.layout.placed(0, P("data")))
    assert max(sent(program.compiled_first(x, x))) <= 64 * 4  # rows and sums over latents, never the latents themselves
    rows = make_rows(4, n=64)
    first = program.first(*[jax.device_put(rows, x.sharding)] * 2)
    assert first.params["W_enc"].addressable_shards[0].data.shape == (n // 4, 4)
    alone = make_program([config]).first(rows, rows)
    jax.tree.map(check_close, first.params, alone.params)
