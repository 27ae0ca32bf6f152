"""What a plan says, against what is true of the compiled sweep."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.patching import _costs, _engine, _null, _plan, _prepare
from tests.tiny import make_model, make_params

WIDE = dict(
    n_layers=4, d_model=128, n_ctx=128, n_heads=8, d_head=16, d_vocab=300, d_mlp=512, act_fn="gelu_new"
)  # fmt: skip


def problem(batch=4, length=12, first=3, **changes):
    """(model, shapes of its parameters, arguments of a sweep over heads); prompts first differ at `first`."""
    model = ji.Model(config=ji.TransformerConfig(**(WIDE | changes)))
    base = np.ones((batch, length), np.int32)
    source = base.copy()
    source[:, first] = 2
    metric = ji.patching.logit_difference(np.full(batch, 3), np.full(batch, 4), np.full(batch, length - 1))
    return model, model.param_shapes(), dict(base=base, source=source, metric=metric, site="attn.z", over="layer,head")


def test_a_plan_computes_nothing_and_prints_as_a_table(count_compiles):
    model, params, args = problem()
    ji.patching.plan(model, params, **args)  # eager constants of the checks
    with count_compiles() as compiles:
        plan = ji.patching.plan(model, params, **args)
        text = str(plan)
    assert not {"run_chunk", "base_run", "captured", "measure_run"} & set(compiles.names)
    assert plan.n_cells == plan.n_run == 32
    assert "cells" in text and "operations, this plan" in text and "budget" in text and "3-11: 8" in text


def test_operations_are_those_of_the_rows_and_layers(check_same):
    """By hand: per row 2 operations a weight and, in attention, 2 E a key for scores and again for values."""
    model, params, args = problem()
    plan = ji.patching.plan(model, params, **args)
    b, t, d, h, e, f, v, n = 4, 12, 128, 8, 16, 512, 300, 4
    attention = lambda rows, keys: 2 * b * 2 * rows * keys * h * e
    project, write, mlp = (
        (lambda rows: 2 * b * rows * d * h * e),
        (lambda rows: 2 * b * rows * d * h * e),
        (lambda rows: 2 * b * rows * 2 * d * f),
    )
    block = lambda rows, keys: 3 * project(rows) + attention(rows, keys) + write(rows) + mlp(rows)
    assert plan.flops[0] == 32 * (n * block(t, t) + 2 * b * t * d * v)
    s, total = 9, n * block(t, t)
    out = 2 * b * 2 * d
    for layer in range(n):
        shared = 3 * project(s) + attention(s, t)
        if layer == n - 1:
            shared = 2 * project(s) + project(1) + attention(1, t)
            total += shared + h * (write(1) + mlp(1) + out)
            continue
        last = 2 * project(s) + project(1) + attention(1, t) + write(1) + mlp(1)
        total += shared + h * (write(s) + mlp(s) + (n - 2 - layer) * block(s, t) + last + out)
    assert plan.flops[1] == total


def test_matrix_operations_of_loops_and_branches():
    a = jnp.ones((3, 4))
    loop = lambda a: jax.lax.scan(lambda c, _: (c @ c.T @ c, None), a, None, length=5)[0]
    assert _costs.matrix_flops(loop, a) == 5 * (2 * 3 * 4 * 3 + 2 * 3 * 3 * 4)
    branch = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a.T @ a, lambda: a)
    assert _costs.matrix_flops(jax.jit(branch), a) == 2 * 3 * 4 * 3 + 2 * 3 * 3 * 4


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the estimate is fitted to the XLA of jax 0.10")
@pytest.mark.parametrize(
    ("changes", "shape"),
    [({}, (4, 12, 3)), (dict(n_key_value_heads=2, gated_mlp=True, act_fn="silu"), (2, 96, 20)), ({}, (2, 96, 20))],
)
def test_memory_is_what_xla_says_within_a_fifth(changes, shape):
    batch, length, first = shape
    model, params, args = problem(batch, length, first, **changes)
    todo = ji.patching.prepare(model, params, **args)
    plan, job = _prepare.make_plan(todo, None), todo.jobs[0]
    chunk = plan.chunks[0]
    where, places = _engine.chunk_indices(job, chunk)
    base = jax.eval_shape(functools.partial(_engine.base_run, model), params, job.tokens, None)
    arrays = dict(
        params=params, ops=job.op_shapes, metrics=job.metrics, reads=job.geometry.reads, answers=job.answers,
        columns=job.geometry.columns,
    )  # fmt: skip
    lowered = _engine.run_chunk.lower(
        model, chunk.suffix, arrays, base, jnp.int32(0), where, places, keep_logits=False, narrow=True, mesh=None
    )
    said = lowered.compile().memory_analysis().temp_size_in_bytes
    assert 0.8 * said <= plan.bytes_fixed + plan.bytes_chunk <= 1.25 * said


def test_a_cell_takes_what_its_activations_take_whatever_the_parameters_are():
    def cell(held, computed):
        model, params, args = problem(compute_dtype=computed)
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, held), params)
        return ji.patching.plan(model, params, **args).bytes_chunk

    half, full = cell("bfloat16", None), cell("float32", None)
    assert half < 0.7 * full
    assert (cell("float32", "bfloat16"), cell("bfloat16", "float32")) == (half, full)


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the estimate is fitted to the XLA of jax 0.10")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_counts_what_making_a_null_distribution_takes(dtype):
    model, params, args = problem()
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), params)
    bytes_of = lambda null: ji.patching.plan(model, params, **args, null=null).bytes_base
    own = jax.ShapeDtypeStruct((4, 4, 12, 8, 16), dtype)  # attn.z of all layers
    assert bytes_of("prompts") - bytes_of(None) == own.size * own.dtype.itemsize  # the base run's values
    said = _null._turned.lower(own, own, jax.eval_shape(lambda: jax.random.key(0))).compile().memory_analysis()
    held = said.argument_size_in_bytes + said.temp_size_in_bytes  # besides the result
    assert 0.9 * held <= bytes_of("directions") - bytes_of(None) <= 1.1 * held


def test_a_budget_is_kept_and_one_that_is_too_small_says_what_works():
    model, params, args = problem()
    full = ji.patching.plan(model, params, **args)
    assert full.suffixes[0].chunk == 8
    half = ji.patching.plan(model, params, **args, memory=full.bytes_base + full.bytes_fixed + full.bytes_chunk // 2)
    assert half.suffixes[0].chunk == 4 and half.bytes_peak <= half.budget
    with pytest.raises(ji.InputError, match=r"smallest that works is memory=([\d,]+)") as error:
        ji.patching.plan(model, params, **args, memory=1000)
    least = int(str(error.value).split("works is memory=")[1].split(";")[0].replace(",", ""))
    assert ji.patching.plan(model, params, **args, memory=least).suffixes[0].chunk == 1
    with pytest.raises(ji.InputError, match="smallest that works"):
        ji.patching.plan(model, params, **args, memory=least - 1)


def _waste(first, weight, begins):
    return sum(w * (f - max(b for b in begins if b <= f)) for f, w in zip(first, weight, strict=True))


def test_buckets_are_the_best_of_all():
    rng = np.random.default_rng(0)
    for n in (1, 3, 6, 9):
        first = rng.integers(0, 20, n * 5)
        weight = rng.uniform(1, 4, n * 5)
        got = _plan._starts(first, weight, ())
        assert (got <= first).all() and len(set(got)) <= 4
        distinct = sorted(set(first))
        best = min(
            _waste(first, weight, (distinct[0], *more))
            for k in range(min(4, len(distinct)))
            for more in itertools.combinations(distinct[1:], k)
        )
        assert abs(_waste(first, weight, sorted(set(got))) - best) < 1e-9
    assert len(set(_plan._starts(np.arange(9), np.ones(9), (), 1e9))) == 1  # a bucket costs more than the rows


def test_chunks_hold_each_cell_once_and_little_else():
    model, params, args = problem()
    cells = [{"layer": i % 4, "head": i % 8, "position": 3 + i % 9} for i in range(100)]
    plan = ji.patching.plan(model, params, **{**args, "over": cells})
    ids = np.concatenate([chunk.ids[: chunk.n] for chunk in plan.chunks])
    assert len(set(ids.tolist())) == len(ids) == plan.n_run < 100  # in the last layer only the last position is read
    assert sum(chunk.suffix.chunk for chunk in plan.chunks) < 1.3 * plan.n_run


def test_a_held_plan_compiles_nothing_for_prompts_that_differ_elsewhere(count_compiles, check_same):
    model = make_model()
    params, metric = make_params(model), ji.patching.logit_difference([1, 2], [3, 4], [5, 5])
    base = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
    at = lambda i: dict(base=base, source=base.at[:, i].set((base[:, i] + 1) % 11))
    args = dict(site="attn.z", over="layer,head", metric=metric)
    plan = ji.patching.plan(model, params, **args, **at(1))
    ji.patching.sweep(model, params, **args, **at(1), plan=plan, progress=False)
    with count_compiles() as none:
        held = ji.patching.sweep(model, params, **args, **at(4), plan=plan, progress=False)
    assert none.count("run_chunk") == none.count("base_run") == 0
    free = ji.patching.sweep(model, params, **args, **at(4), progress=False)
    check_same(held.effect.values, free.effect.values)


def test_memory_does_not_grow_with_the_number_of_chunks(tmp_path):
    """Resident memory at the end is that of a tenth of the way."""
    model = make_model(n_layers=2, d_mlp=64)
    params, metric = make_params(model), ji.patching.logit_difference([1], [3], [5])
    base = jnp.array([[1, 2, 3, 4, 5, 6]])
    seen = []

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    real = _engine.run_chunk
    how = dict(base=base, source=base + 1, metric=metric, site="mlp.post", over="layer,position,feature")
    plan = ji.patching.plan(model, params, **how)
    tight = plan.bytes_base + plan.bytes_fixed + plan.bytes_chunk // max(s.chunk for s in plan.suffixes) * 4

    def watched(*args, **more):
        seen.append(resident())
        return real(*args, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_engine, "run_chunk", watched)
        ji.patching.sweep(model, params, **how, memory=tight, store=tmp_path / "s", progress=False)
    assert len(seen) > 90
    assert seen[-1] - seen[len(seen) // 10] < 20 << 20
