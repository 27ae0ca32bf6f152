"""Meshes of eight forced devices in this process, and of two real processes with four each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxinterp.mesh as jm
from jaxinterp._errors import InputError
from tests.processes import result_of, run_two


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ({"cells": 4, "prompts": 2}, (4, 2)),
        ({"cells": 8}, (8,)),
        ({"cells": -1, "prompts": 2}, (4, 2)),
        ({"cells": 3}, (3,)),
        ({"cells": 1, "prompts": 2}, (1, 2)),
        ({"cells": 8, "prompts": -1}, (8, 1)),
    ],
)
def test_make_mesh(sizes, shape):
    mesh = jm.make_mesh(**sizes)
    assert mesh.axis_names == tuple(sizes) and mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sorted(d.id for d in mesh.devices.flat) == list(range(int(np.prod(shape))))


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({}, r"make_mesh\(cells=8\).*8 devices \(8 cpu\)"),
        ({"cells": 0}, "1 or more"),
        ({"cells": -2}, "1 or more"),
        ({"cells": -1, "prompts": -1}, "at most one"),
        ({"cells": -1, "prompts": 3}, "3 devices, which does not divide 8 devices .*: 1, 2, 4, 8"),
        ({"cells": 4, "prompts": 3}, r"needs 12 devices; there are 8 devices \(8 cpu\).*device_count=12"),
    ],
)
def test_meshes_that_do_not_fit(sizes, message):
    with pytest.raises(InputError, match=message):
        jm.make_mesh(**sizes)


def test_put_cuts_and_fetch_joins():
    mesh = jm.make_mesh(cells=4, prompts=2)
    x, w = np.arange(48.0, dtype=np.float32).reshape(8, 6), np.arange(6, dtype=np.int32)
    placed = jm.put({"x": x, "w": {"a": w, "b": jnp.asarray(w)}}, mesh, {"x": P("cells", "prompts"), "w": P()})
    assert placed["x"].sharding == NamedSharding(mesh, P("cells", "prompts"))
    assert {s.data.shape for s in placed["x"].addressable_shards} == {(2, 3)}
    assert {s.data.shape for s in placed["w"]["a"].addressable_shards} == {(6,)}
    both = jm.put(x, mesh, P(("cells", "prompts")))
    assert {s.data.shape for s in both.addressable_shards} == {(1, 6)}
    result = jm.fetch(jax.jit(lambda t: {"sum": t["x"].sum(1), "w": t["w"]["b"]})(placed))
    np.testing.assert_array_equal(result["sum"], x.sum(1))
    np.testing.assert_array_equal(result["w"], w)
    assert isinstance(result["sum"], np.ndarray)


def test_fetch_in_one_process_compiles_nothing(count_compiles):
    placed = jm.put(np.arange(24.0, dtype=np.float32), jm.make_mesh(cells=8), P("cells"))
    with count_compiles() as compiles:
        jm.fetch(placed)
        jm.from_writer({"a": np.arange(3)})
    assert compiles.names == []


@pytest.mark.parametrize(
    "shape, spec, message",
    [
        ((6, 4), P("cells"), r"Axis 0 .*\[6, 4\].*4 equal parts.*multiple of 4"),
        ((4, 4), P(None, ("cells", "prompts")), "Axis 1 .*8 equal parts"),
        ((), P("cells"), r"at least 1 axes.*\[\]"),
        ((4,), P("layers"), "'layers'.*'cells': 4, 'prompts': 2"),
    ],
)
def test_cuts_that_do_not_fit(shape, spec, message):
    with pytest.raises(InputError, match=message):
        jm.put(np.zeros(shape), jm.make_mesh(cells=4, prompts=2), spec)


def test_start_after_jax_was_used():
    jax.devices()
    with pytest.raises(InputError, match="before anything that uses a device"):
        jm.start("localhost:1", num_processes=2, process_id=0)


WORKER = """
import json, sys
import numpy as np
import jax
from jax.sharding import PartitionSpec as P
import jaxinterp.mesh as jm
from jaxinterp._errors import InputError

process, address = int(sys.argv[1]), sys.argv[2]
jm.start(address, num_processes=2, process_id=process)
jm.start()  # does nothing
rng = np.random.default_rng(0)
x, w = rng.normal(size=(8, 6)).astype(np.float32), rng.normal(size=(6, 5)).astype(np.float32)
mesh = jm.make_mesh(cells=4, prompts=2)
a = jm.put({"x": x, "w": w}, mesh, {"x": P("cells", "prompts"), "w": P()})
out = jax.jit(lambda t: {"y": jax.numpy.dot(t["x"], t["w"], precision="highest"), "n": t["x"].sum()})(a)
got = jm.fetch(out)
again = jm.fetch(jm.put(a["w"], mesh, P("prompts")))  # from an array that is on the mesh already
try:
    jm.make_mesh(cells=4)
    refused = ""
except InputError as error:
    refused = str(error)
mine = {"b": np.arange(3) == process, "i": np.array([[process + 2**40]]), "e": np.zeros((0, 2))}
print("RESULT" + json.dumps({
    "y": got["y"].tolist(), "n": float(got["n"]), "again": again.tolist(),
    "writer": jm.is_writer(), "devices": len(jax.devices()),
    "shards": sorted({str(s.data.shape) for s in a["x"].addressable_shards}), "mine": len(a["x"].addressable_shards),
    "whole": a["x"].is_fully_addressable, "refused": refused,
    "told": {k: v.tolist() for k, v in jm.from_writer(mine).items()},
}))
"""


def test_two_processes_of_four_devices_agree_with_numpy():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(8, 6)).astype(np.float32), rng.normal(size=(6, 5)).astype(np.float32)
    for process, output in enumerate(run_two(WORKER)):
        got = result_of(output)
        np.testing.assert_allclose(got["y"], x.astype(float) @ w.astype(float), atol=1e-5)
        np.testing.assert_allclose(got["n"], x.astype(float).sum(), atol=1e-4)
        np.testing.assert_array_equal(np.float32(got["again"]), w)
        assert got["writer"] == (process == 0)
        assert (got["devices"], got["mine"], got["whole"]) == (8, 4, False)
        assert got["shards"] == ["(2, 3)"]
        assert "leaves out 4 of 8 devices" in got["refused"] and "2 processes" in got["refused"]
        assert got["told"] == {"b": [True, False, False], "i": [[2**40]], "e": []}, "the values of process 0"
