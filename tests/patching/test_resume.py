"""Sweeps that are killed, stopped or damaged, and go on."""

import dataclasses
import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.store import StoreMismatchError

SCRIPT = """
import sys, time
import jax, numpy as np
import jaxinterp as ji
from jaxinterp.patching import _engine
quick = _engine.run_chunk
_engine.run_chunk = lambda *args, **how: (time.sleep(0.02), quick(*args, **how))[1]  # so that a signal finds it at work
jax.config.update("jax_disable_most_optimizations", True)
config = ji.TransformerConfig(n_layers=2, d_model=16, n_ctx=16, n_heads=4, d_head=4, d_vocab=11, d_mlp=24, initializer_range=0.6)
model = ji.Model(config=config)
params = model.init(jax.random.key(0))
base = jax.random.randint(jax.random.key(1), (3, 8), 0, 11)
source = base.at[:, 1].set((base[:, 1] + 3) % 11)
metric = ji.patching.logit_difference(np.arange(3), np.arange(3) + 5, np.full(3, 7))
args = dict(base=base, source=source, site="attn.z", over="layer,head,position,feature", metric=metric)
plan = ji.patching.plan(model, params, **args)
memory = plan.bytes_base + plan.bytes_fixed + plan.bytes_chunk // max(s.chunk for s in plan.suffixes)
print("ready", flush=True)
effects = ji.patching.sweep(model, params, **args, memory=memory, keep=("prompts",), store=sys.argv[1], progress=False)
np.save(sys.argv[2], effects.effect_by_prompt.values)
"""


def start(folder, out):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "cache"),
    }
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    root = str(Path(ji.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(out)],
        env=environment,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_bits(tmp_path):
    whole, out = tmp_path / "whole.npy", tmp_path / "out.npy"
    process = start(tmp_path / "a", whole)
    assert process.wait(timeout=240) == 0, process.stderr.read()
    process.stdout.close(), process.stderr.close()
    for kind in (signal.SIGKILL, signal.SIGTERM, None):
        process = start(tmp_path / "b", out)
        journal, before = tmp_path / "b" / "done.log", _lines(tmp_path / "b" / "done.log")
        deadline = time.monotonic() + 240
        while kind and _lines(journal) < before + 8 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.05))
        if kind:
            process.send_signal(kind)
        process.wait(timeout=240)
        process.stdout.close(), process.stderr.close()
        assert process.returncode == (-kind if kind else 0)
        assert not kind or 8 <= _lines(journal) < _lines(tmp_path / "a" / "done.log")
    np.testing.assert_array_equal(np.load(out), np.load(whole))


def _lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def call(small, difference):
    model, params, base, source = small
    return functools.partial(
        ji.patching.sweep, model, params, base=base, source=source, site="attn.z", over="layer,head,position",
        metric=difference, progress=False, keep=("prompts", "logits"), tokenizer=None,
    )  # fmt: skip


def tight(call, cells):
    """A budget for so many cells side by side."""
    how = {k: v for k, v in call.keywords.items() if k not in ("keep", "progress", "tokenizer")}
    plan = ji.patching.plan(*call.args, **how)
    return plan.bytes_base + plan.bytes_fixed + cells * (plan.bytes_chunk // max(s.chunk for s in plan.suffixes))


def test_an_interrupt_leaves_a_state_to_go_on_from(call, tmp_path, monkeypatch):
    from jaxinterp.patching import _engine

    want = call(memory=tight(call, 2))
    real, calls = _engine.run_chunk, []

    def interrupted(*args, **how):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args, **how)

    monkeypatch.setattr(_engine, "run_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt, match="The same call goes on from there"):
        call(memory=tight(call, 2), store=tmp_path / "s")
    n = len(calls)
    got = call(store=tmp_path / "s")  # the budget may be another: the store holds to its chunks
    total = len(calls) - n
    np.testing.assert_array_equal(got.effect_by_prompt.values, want.effect_by_prompt.values)
    np.testing.assert_array_equal(got.logits.values, want.logits.values)
    calls.clear()
    again = call(store=tmp_path / "s")
    assert calls == [] and total > 0
    np.testing.assert_array_equal(again.effect.values, want.effect.values)


def test_other_arguments_are_refused_with_the_difference(call, small, tmp_path):
    call(store=tmp_path / "s")
    with pytest.raises(StoreMismatchError, match="site"):
        call(store=tmp_path / "s", site="attn.q")
    with pytest.raises(StoreMismatchError, match="base"):
        call(store=tmp_path / "s", base=small[2].at[0, 0].set(3))
    with pytest.raises(StoreMismatchError, match="params"):
        call.func(small[0], jax.tree.map(lambda a: a * 1.5, small[1]), **call.keywords, store=tmp_path / "s")
    with pytest.raises(StoreMismatchError, match="op"):
        call(store=tmp_path / "s", op=functools.partial(ji.add, value=1.0))


def test_a_damaged_chunk_is_named_and_computed_again(call, tmp_path):
    want = call(store=tmp_path / "s")
    file = tmp_path / "s" / "values.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="chunk"):
        got = call(store=tmp_path / "s")
    np.testing.assert_array_equal(got.effect_by_prompt.values, want.effect_by_prompt.values)


def test_resuming_needs_the_same_mesh(call, tmp_path):
    call(store=tmp_path / "s")
    with pytest.raises(StoreMismatchError, match="devices"):
        call(store=tmp_path / "s", mesh=ji.mesh.make_mesh(cells=2, prompts=1))


def test_what_a_store_tells_apart(call, small, tmp_path):
    """Options of an edit, a metric's function, listed sites, the last layer's weights, an own block."""
    model, params, *_ = small

    def refused(first, second, change=lambda model, params: (model, params)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        given = {**call.keywords, "over": "layer", "keep": (), "store": folder}
        ji.patching.sweep(model, params, **{**given, **first})
        with pytest.raises(StoreMismatchError):
            ji.patching.sweep(*change(model, params), **{**given, **second})

    rows, answers = np.array([5, 5, 4]), np.array([1, 2, 3])
    refused(dict(op=ji.mean), dict(op=functools.partial(ji.mean, over="B")))
    refused(dict(op=lambda site: ji.edit(site, lambda x: x + 1)), dict(op=lambda site: ji.edit(site, lambda x: x + 2)))
    log_probability, cross_entropy = (
        ji.patching.log_probability(answers, rows),
        ji.patching.cross_entropy(answers, rows),
    )
    refused(dict(metric={"m": log_probability}), dict(metric={"m": cross_entropy}))
    refused(dict(over=[{"site": "mlp.out", "layer": 0}]), dict(over=[{"site": "attn.out", "layer": 0}]))
    last = lambda model, params: (model, jax.tree.map(lambda a: a.at[-1].multiply(1.01), params))
    refused({}, {}, last)
    own = lambda model, params: (dataclasses.replace(model, block_fn=lambda *a, **k: ji.models.block(*a, **k)), params)
    refused({}, {}, own)
