"""The checksum of parameters: by its definition in NumPy, the same on any mesh, another one for any other bits."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxinterp as ji
from jaxinterp.activations._fingerprint import _sum, fingerprint

RNG = np.random.default_rng(0)
TREE = {
    "w": RNG.normal(size=(16, 8, 4)).astype(np.float32),
    "half": RNG.normal(size=(8, 24)).astype(jnp.bfloat16),
    "b": [np.float32(3.5), np.arange(-3, 5, dtype=np.int32), np.array([True, False])],
    "none": np.zeros((0, 3), np.float32),
}
CUTS = {"w": P("data", "tensor"), "half": P(None, ("data", "tensor")), "b": [P(), P("tensor"), P()], "none": P()}


def mix(x):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) % 2**32
    return x ^ (x >> 16)


def by_definition(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    total = zlib.crc32(" ".join(f"{jax.tree_util.keystr(p)} {x.dtype}{list(x.shape)}" for p, x in leaves).encode())
    for _, leaf in leaves:
        bits = np.ascontiguousarray(leaf).reshape(-1).view(f"u{leaf.dtype.itemsize}").tolist()
        words = [mix(mix((total + place) % 2**32) ^ word) for place, word in enumerate(bits)]
        total = (mix(total) + sum(words)) % 2**32
    return f"{total:08x}"


def of(tree, **sizes):
    mesh = ji.mesh.make_mesh(**(sizes or dict(data=1)))
    return fingerprint(ji.mesh.put(tree, mesh), mesh)


def test_it_is_the_same_however_the_parameters_are_cut():
    want = by_definition(TREE)
    assert of(TREE) == of(TREE, data=8) == want
    for sizes in (dict(data=2, tensor=4), dict(tensor=2, data=4), dict(data=1, tensor=2)):
        mesh = ji.mesh.make_mesh(**sizes)
        assert fingerprint(ji.mesh.put(TREE, mesh, CUTS), mesh) == want, sizes


@pytest.mark.parametrize("name", ["w", "half"])
def test_any_other_bits_are_seen(name):
    x, found = TREE[name], {of(TREE)}
    flat = lambda: x.copy().reshape(-1)
    signs, two, column, swapped = flat(), flat(), x.copy(), flat()
    signs[3] *= -1
    two[[3, 4]] *= -1
    column[..., 1] *= -1
    swapped[[5, 9]] = swapped[[9, 5]]
    last = flat()
    last.view(f"u{x.dtype.itemsize}")[7] ^= 1
    changed = [
        *(y.reshape(x.shape) for y in (signs, two, swapped, last)),
        column,
        x[::-1],
        np.swapaxes(x, 0, 1),
        x.reshape(-1),
    ]
    changed = [{**TREE, name: y} for y in changed] + [
        {**TREE, name: -x},
        {("q" if k == name else k): v for k, v in TREE.items()},
    ]
    found |= {of(tree) for tree in changed}
    assert len(found) == 1 + len(changed)


def test_nothing_is_gathered_and_one_leaf_is_worked_on_at_a_time():
    mesh = ji.mesh.make_mesh(data=4, tensor=2)
    x = ji.mesh.put({i: np.zeros((1024, 1024), np.float32) for i in range(5)}, mesh, P("data", "tensor"))
    compiled = _sum.lower(x, jnp.uint32(0), mesh=mesh).compile()
    assert "all-gather" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * x[0].addressable_shards[0].data.nbytes
