"""The example runs, and its block is one that the sweep's engine may rely on."""

import functools
import importlib.util
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from jaxinterp import patching
from tests.tiny import check_close, check_same

PATH = Path(__file__).resolve().parents[2] / "examples" / "mixture_of_experts.py"


@functools.cache
def example():
    spec = importlib.util.spec_from_file_location("mixture_of_experts", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def brute(edit, cells, prompts, params):
    """Whole forward passes; the metric's differences to the base run."""
    read = lambda logits: jnp.mean(
        logits[jnp.arange(2), 5, jnp.array([10, 11])] - logits[jnp.arange(2), 5, jnp.array([12, 13])]
    )
    model = example().model
    one = jax.jit(lambda *cell: read(ji.run(model.forward, edit(*cell))(params, prompts["base"])[0]))
    base = read(jax.jit(model.forward)(params, prompts["base"]))
    return np.array([one(*map(jnp.int32, cell)) - base for cell in cells])


def test_the_sweep_is_a_loop_over_whole_forwards():
    params, prompts = example().problem()
    site = "mlp.out"
    model = example().model
    got = patching.sweep(model, params, site=site, over="layer,position", progress=False, **prompts)
    donor = jax.jit(ji.run(model.forward, ji.capture(site)))(params, prompts["source"])[1][site]
    edit = lambda layer, position: ji.patch(site, per_layer=donor, layer=layer, position=position)
    want = brute(edit, itertools.product(range(2), range(6)), prompts, params).reshape(2, 6)
    check_close(got.effect.values, want)
    assert np.abs(want).max() > 1e-2
    plan = patching.plan(model, params, site=site, over="layer,position", **prompts)
    assert plan.n_run < plan.n_cells == 12  # nothing before the token that differs


def test_without_one_expert_is_a_forward_without_it():
    params, prompts = example().problem()
    got = patching.sweep(
        example().model, params, site="moe.gate", over="layer,feature", op=ji.zero, progress=False, **prompts
    )
    edit = lambda layer, expert: ji.zero("moe.gate", layer=layer, feature=expert)
    want = brute(edit, itertools.product(range(2), range(4)), prompts, params).reshape(2, 4)
    check_close(got.effect.values, want)
    assert len(np.unique(np.round(want, 4))) == 8


def test_it_generates_with_its_cache():
    params, prompts = example().problem()
    model = example().model
    got = jax.jit(lambda p, t: ji.generate(model, p, t, max_new_tokens=4))(params, prompts["base"])
    logits = jax.jit(model.forward)(params, got[:, :-1])
    check_same(jnp.argmax(logits, -1)[:, 5:], got[:, 6:])


def test_the_example_runs_and_is_short(capsys):
    example().main()
    out = capsys.readouterr().out
    assert "moe.gate" in out and "put the source's" in out
    assert PATH.read_text().count("\n") < 100
