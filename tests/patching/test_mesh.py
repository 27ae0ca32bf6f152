"""Sweeps on meshes: the same results, and really shared work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.patching import _engine, _prepare
from tests.processes import run_two
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


@pytest.mark.parametrize(
    ("cells", "prompts", "op"),
    [(8, 1, ji.patch), (4, 2, ji.patch), (2, 4, functools.partial(ji.mean, over="B")), (3, 2, ji.patch)],
)
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
    todo = ji.patching.prepare(model, params, **args, mesh=mesh)
    plan, job = _prepare.make_plan(todo, None), todo.jobs[0]
    params, base = _engine.run_base(job)
    arrays = {**job.readings(), "params": params, "ops": job.edits()}
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


WORKER = """
import sys
import numpy as np
import jax
import jaxinterp as ji
from tests.tiny import make_model, make_params

process, address, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ji.mesh.start(address, num_processes=2, process_id=process)
jax.config.update("jax_disable_most_optimizations", True)
model = make_model(normalization_type="RMS", positional_embedding_type="rotary", n_key_value_heads=2)
given = np.load(folder + "/given.npz")
metric = ji.patching.logit_difference(np.arange(4), np.arange(4) + 5, np.full(4, 5))
args = dict(base=given["base"], source=given["source"], metric=metric, site="attn.z", over="layer,head,position")
mesh = ji.mesh.make_mesh(cells=4, prompts=2)
args |= dict(mesh=mesh, store=folder + "/store", keep=("prompts",), progress=False)
call = lambda: ji.patching.sweep(model, make_params(model), **args)
effects = call()
if ji.mesh.is_writer():  # a chunk that has to be computed again
    with open(folder + "/store/values.npy", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"abcd")
import warnings
warnings.simplefilter("ignore", UserWarning)
again = call()
np.save(f"{folder}/{process}.npy", np.stack([effects.effect_by_prompt.values, again.effect_by_prompt.values]))
"""


def test_two_processes_give_the_results_of_one_device(problem, tmp_path, check_same):
    model, params, args = problem
    np.savez(tmp_path / "given.npz", base=args["base"], source=args["source"])
    run_two(WORKER, str(tmp_path))
    one = ji.patching.sweep(model, params, **args, keep=("prompts",), progress=False)
    first, second = (np.load(tmp_path / f"{i}.npy") for i in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[0], first[1])
    check_same(first[0], one.effect_by_prompt.values)
    assert {p.name for p in (tmp_path / "store").iterdir()} >= {"manifest.json", "values.npy", "done.log"}
