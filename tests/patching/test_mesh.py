"""Sweeps on meshes: the same results, and really shared work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.patching import _engine, _prepare
from tests.tiny import make_model, make_params


@pytest.fixture(scope="module")
def problem():
    """(model, params, arguments of a sweep over four prompts)."""
    model = make_model(normalization_type="RMS", positional_embedding_type="rotary", n_key_value_heads=2)
    base = jax.random.randint(jax.random.key(1), (4, 6), 0, 11)
    source = base.at[:, 2].set((base[:, 2] + 3) % 11)
    metric = ji.patching.logit_difference(np.arange(4), np.arange(4) + 5, np.full(4, 5))
    return (
        model,
        make_params(model),
        dict(base=base, source=source, metric=metric, site="attn.z", over="layer,head,position"),
    )


@pytest.mark.parametrize(("cells", "prompts"), [(8, 1), (4, 2), (2, 4), (3, 2)])
@pytest.mark.parametrize("op", [ji.patch, functools.partial(ji.mean, over="B")])
def test_a_mesh_gives_the_results_of_one_device(problem, cells, prompts, op, check_same):
    model, params, args = problem
    call = functools.partial(
        ji.patching.sweep, model, params, **args, op=op, keep=("prompts", "logits"), progress=False
    )
    one, many = call(), call(mesh=ji.mesh.make_mesh(cells=cells, prompts=prompts))
    check_same(many.effect_by_prompt.values, one.effect_by_prompt.values)
    check_same(many.logits.values, one.logits.values)


def test_the_work_is_shared_without_communication(problem):
    model, params, args = problem
    mesh = ji.mesh.make_mesh(cells=4, prompts=2)
    nothing = dict(mask=None, source_mask=None, positions=None, roles=None, null=None)
    todo = _prepare.prepare(model, params, **args, op=ji.patch, **nothing, mesh=mesh)
    plan, job = _prepare.make_plan(todo, None), todo.jobs[0]
    arrays = job.placed()
    base = _engine._placed_base(job, arrays["params"])
    shards = lambda x: {shard.data.shape for shard in x.addressable_shards}
    assert shards(base.inputs) == {(4, 2, 6, 8)}  # two of four prompts on each device
    assert shards(arrays["ops"][0].per_layer) == {(3, 2, 6, 4, 4)}
    assert all(len(shards(leaf)) == 1 and leaf.is_fully_replicated for leaf in jax.tree.leaves(arrays["params"]))
    chunk = plan.chunks[0]
    where, places = _engine.chunk_indices(job, chunk)
    assert shards(where[0]["head"]) == {(chunk.suffix.chunk // 4, 1)}
    call = functools.partial(_engine.run_chunk, keep_logits=False, narrow=True, mesh=mesh)
    given = (model, chunk.suffix, arrays, base, jnp.int32(chunk.layer), where, places)
    values, _ = call(*given)
    assert shards(values) == {(chunk.suffix.chunk // 4, 1, 2)}
    program = _engine.run_chunk.lower(*given, keep_logits=False, narrow=True, mesh=mesh).compile().as_text()
    for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert name not in program


def test_a_mesh_that_does_not_divide_is_refused(problem):
    model, params, args = problem
    with pytest.raises(ji.InputError, match="4 prompts do not divide among 3 devices"):
        ji.patching.sweep(model, params, **args, mesh=ji.mesh.make_mesh(cells=2, prompts=3))
    with pytest.raises(ji.InputError, match=r"make_mesh\(cells=4, prompts=2\)"):
        ji.patching.sweep(model, params, **args, mesh=ji.mesh.make_mesh(data=2))
