"""What loading costs in memory, and that nothing else writes to the memory that devices take."""

import gc
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.weights import _assemble
from jaxinterp.weights._mapping import flatten

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "load_memory.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("dtype", "devices"), [("float32", 1), ("bfloat16", 4)])
def test_anonymous_memory_rises_by_the_weights_alone(tmp_path, dtype, devices):
    script = runpy.run_path(str(SCRIPT))
    script["write_folder"](tmp_path / "big", 60, layers=3)
    script["write_folder"](tmp_path / "tiny", 0.1, layers=3)
    row = script["in_a_child"](tmp_path / "big", tmp_path / "tiny", dtype, devices)
    assert 55e6 < row["parameters"] * (2 if dtype == "bfloat16" else 1) < 65e6
    assert 0.95 < row["peak"] / row["parameters"] < 1.2, row
    assert row["after"] < 1.1 * row["parameters"]


def test_what_is_loaded_outlives_donation_and_its_own_memory(gpt2):
    folder = gpt2().write()
    want = flatten(jax.tree.map(np.array, ji.load(folder).params))
    for mesh in (None, ji.mesh.make_mesh(data=4, tensor=2)):  # on a CPU the copies over `data` are the same memory
        params = ji.load(folder, mesh=mesh).params
        step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
        grown = step(params)
        del params
        gc.collect()
        junk = [np.full(n, np.nan, np.float32) for n in range(1, 4000, 7)]  # over memory that was given back
        for path, leaf in flatten(step(grown)).items():
            np.testing.assert_array_equal(leaf, want[path] + 1 + 1)
        del junk
    for path, leaf in flatten(ji.load(folder).params).items():
        np.testing.assert_array_equal(leaf, want[path])


def test_stacks_are_aligned_and_no_copy_is_made():
    stack = _assemble._aligned((3, 5), np.dtype(jnp.bfloat16))
    assert stack.ctypes.data % _assemble.ALIGNMENT == 0 and stack.shape == (3, 5)
    array = _assemble._on_devices({((0, 3), (0, 5)): stack}, (3, 5), None)
    assert array.unsafe_buffer_pointer() == stack.ctypes.data


def test_pieces_are_all_looked_at(gpt2, monkeypatch):
    monkeypatch.setattr(_assemble, "PIECE", 40)  # a few rows at a time
    made = gpt2()
    want = flatten(ji.load(made.write()).params)
    for layer in range(3):
        np.testing.assert_array_equal(
            want["blocks.mlp.W_in"][layer], made.tensors[f"transformer.h.{layer}.mlp.c_fc.weight"]
        )
    made.tensors["transformer.h.2.mlp.c_fc.weight"][-1, -1] = np.inf
    made.tensors["transformer.h.0.attn.c_attn.weight"][3, 3::12] = np.nan  # in queries, keys and values
    with pytest.raises(ji.WeightsError) as caught:
        ji.load(made.write())
    assert "transformer.h.2.mlp.c_fc.weight (0 NaN and 1 infinite of 576)" in str(caught.value)
    assert "transformer.h.0.attn.c_attn.weight (3 NaN and 0 infinite of 432)" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_dtypes_are_loaded_and_told(llama, bfloat16, dtype):
    made = llama()
    plain = dict(made.tensors)
    kept = [name for name in plain if "layernorm" in name]
    made.tensors = {name: x if name in kept else x.astype(bfloat16) for name, x in plain.items()}
    with pytest.warns(UserWarning, match=r"4 F32.*17 BF16|17 BF16.*4 F32") as told:
        params = ji.load(made.write(), dtype=dtype).params
    message = str(told[0].message)
    assert "model.layers.{0-1}.input_layernorm.weight" in message and f"All parameters become {dtype}" in message
    flat = flatten(params)
    assert {leaf.dtype for leaf in flat.values()} == {jnp.dtype(dtype)}
    norm = plain["model.layers.1.input_layernorm.weight"].astype(jnp.dtype(dtype))
    np.testing.assert_array_equal(np.asarray(flat["blocks.ln1.w"][1]), norm)
    query = plain["model.layers.0.self_attn.q_proj.weight"].astype(bfloat16).astype(jnp.dtype(dtype))
    np.testing.assert_array_equal(np.asarray(flat["blocks.attn.W_Q"][0, 1]), query[4:8].T)
