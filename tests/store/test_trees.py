"""Checkpoints of pytrees: every bit, every kind of leaf, other meshes, and nothing half-written."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxinterp as ji
from jaxinterp._tree import pytree, static
from jaxinterp.store import StoreMismatchError, _trees, load_tree, save_tree
from tests.processes import result_of, run_two


class Pair(typing.NamedTuple):
    first: typing.Any
    second: typing.Any


@pytree
class Progress:
    seen: typing.Any
    name: str = static()


def bits(leaf):
    if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    if hasattr(leaf, "dtype"):
        return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()
    return type(leaf), repr(leaf)


def check_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert bits(a) == bits(b), jax.tree_util.keystr(path)
        same_kind = (jax.Array, np.ndarray, np.generic, int, str, float, complex)
        assert [isinstance(a, kind) for kind in same_kind] == [isinstance(b, kind) for kind in same_kind]
        if isinstance(b, jax.Array):
            assert a.sharding == b.sharding and a.committed == b.committed, jax.tree_util.keystr(path)
            assert getattr(a, "weak_type", False) == getattr(b, "weak_type", False)


def blank(tree):
    """The same kinds of leaves with other values, as a program that starts again has them."""

    def other(leaf):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return (
                jax.random.split(jax.random.key(9, impl=jax.random.key_impl(leaf)), leaf.shape) if leaf.ndim else leaf
            )
        if isinstance(leaf, jax.Array):
            return (
                leaf
                if leaf.ndim == 0
                else jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding if leaf.committed else None)
            )
        return np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else type(leaf)()

    return jax.tree.map(other, tree)


def odd_tree():
    mesh = ji.mesh.make_mesh(data=2, tensor=4)
    rng = np.random.default_rng(0)
    payload = np.array([0x7FC00001, 0x80000000, 0x00000001, 0xFF800000], np.uint32).view(
        np.float32
    )  # NaN, -0, tiny, -inf
    params = {
        "w": ji.mesh.put(rng.normal(size=(8, 12)).astype(np.float32), mesh, P("data", "tensor")),
        "b": ji.mesh.put(jnp.arange(6, dtype=jnp.bfloat16) / 7, mesh),
        "odd": jnp.asarray(payload),
    }
    return {
        "params": (params,),
        "optimizer": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init({"w": jnp.ones((3, 5)), "h": jnp.ones(2, jnp.float16)}),
        "keys": [jax.random.key(3), jax.random.split(jax.random.key(4, impl="rbg"), 5)],
        "elsewhere": jax.device_put({"key": jax.random.key(5), "n": jnp.arange(3)}, jax.devices()[2]),
        "counts": Pair(7, np.int64(2**40 + 1)),
        "progress": Progress(seen=np.arange(4, dtype=np.uint8), name="a"),
        "numbers": [True, 2**70, 0.1, float("nan"), -0.0, 1e-320, 1 + 2j, "ä\n", None],
        "numpy": [np.float32(0.1), np.bool_(True), np.arange(6.0).reshape(2, 3).T, np.array(3), jnp.bfloat16(0.3)],
        "weak": jnp.asarray(0.1),
        "empty": [np.zeros((0, 3)), jnp.zeros((2, 0), jnp.bfloat16), {}, ()],
        "names": {1: {"1": jnp.int32(3), "a.b": jnp.arange(3, dtype=jnp.int4)}},
    }  # fmt: skip


def test_every_kind_of_leaf_comes_back_to_the_bit(tmp_path):
    tree = odd_tree()
    folder = save_tree(tree, tmp_path / "runs" / "step-7")
    assert sorted(p.name for p in folder.iterdir()) == ["arrays", "tree.json"]
    check_bits(load_tree(folder, like=blank(tree)), tree)
    assert [p.name for p in folder.parent.iterdir()] == ["step-7"]
    for single in (jnp.arange(3), 5, [], None):
        check_bits(load_tree(save_tree(single, tmp_path / repr(type(single))), like=single), single)


def test_training_goes_on_to_the_bit(tmp_path):
    optimizer = optax.adam(0.1)

    @jax.jit
    def step(state):
        key, used = jax.random.split(state["key"])
        gradient = jax.grad(lambda w: jnp.sum((w - jax.random.normal(used, w.shape)) ** 2))(state["w"])
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            updates, moments = optimizer.update(gradient, state["moments"])
        return {
            "key": key,
            "w": optax.apply_updates(state["w"], updates),
            "moments": moments,
            "step": state["step"] + 1,
        }

    start = {
        "key": jax.random.key(0),
        "w": jnp.ones((3, 2)),
        "moments": optimizer.init(jnp.ones((3, 2))),
        "step": jnp.int32(0),
    }
    half = step(step(start))
    again = load_tree(save_tree(half, tmp_path / "half"), like=start)
    check_bits(step(step(again)), step(step(half)))
    assert step._cache_size() == 1, "the restored state is of the same types"


def test_another_mesh_and_shapes_alone(tmp_path):
    values = np.arange(96, dtype=np.float32).reshape(8, 12)
    one, two = ji.mesh.make_mesh(data=2, tensor=4), ji.mesh.make_mesh(rows=4)
    keys = jax.random.split(jax.random.key(1), 8)
    saved = {
        "w": ji.mesh.put(values, one, P("data", "tensor")),
        "keys": jax.device_put(keys, NamedSharding(one, P("data"))),
    }
    folder = save_tree(saved, tmp_path / "a")
    for mesh, spec in ((one, P()), (two, P(None, "rows")), (two, P("rows"))):
        like = {
            "w": jax.ShapeDtypeStruct((8, 12), jnp.float32, sharding=NamedSharding(mesh, spec)),
            "keys": jax.ShapeDtypeStruct((8,), keys.dtype, sharding=NamedSharding(mesh, P())),
        }
        got = load_tree(folder, like)
        assert got["w"].sharding == like["w"].sharding and got["keys"].sharding.mesh == mesh
        assert bits(got["w"]) == bits(values) and bits(got["keys"]) == bits(keys)
    whole = load_tree(folder, {"w": values, "keys": jax.ShapeDtypeStruct((8,), keys.dtype)})
    assert isinstance(whole["w"], np.ndarray) and not whole["keys"].committed


def test_all_differences_are_named(tmp_path):
    tree = {
        "a": jnp.zeros((2, 3)),
        "b": [1, jnp.zeros(2)],
        "c": jax.random.key(0),
        "d": jnp.zeros(4),
        "e": 1.0,
        "f": None,
    }
    folder = save_tree(tree, tmp_path / "a")
    like = {
        "a": jnp.zeros((3, 2)),
        "b": [1.0],
        "c": jax.random.key(0, impl="rbg"),
        "d": jnp.zeros(4, jnp.bfloat16),
        "f": 2,
        "g": Pair(1, 2),
    }
    with pytest.raises(StoreMismatchError) as caught:
        load_tree(folder, like)
    message = str(caught.value)
    for line in (
        "['a'] is float32[2, 3], should be float32[3, 2]",
        "['b'][0] is int, should be float",
        "['b'][1] is unexpected: float32[2]",
        "['c'] is key<fry>[], should be key<rbg>[]",
        "['d'] is float32[4], should be bfloat16[4]",
        "['e'] is unexpected: float",
        "['f'] is missing in the checkpoint (int)",
        "['g'].first is missing in the checkpoint (int)",
        "9 of its leaves",
    ):
        assert line in message
    with pytest.raises(
        StoreMismatchError, match=r"\.first is missing.*\n.*\.second is missing.*\n.*\['first'\] is unexpected"
    ):
        load_tree(save_tree({"first": 1, "second": 2}, tmp_path / "b"), Pair(1, 2))


def test_leaves_that_cannot_be_kept_are_named_together(tmp_path):
    tree = {
        "a": object(),
        "b": np.array(["x"]),
        "c": b"bytes",
        "d": np.zeros(2, [("x", "f4")]),
        "e": np.zeros(2, ">f4"),
        "f": 1,
    }
    with pytest.raises(ji.InputError) as caught:
        save_tree(tree, tmp_path / "a")
    message = str(caught.value)
    for name in "abcde":
        assert f"['{name}'] is a" in message
    assert "['f']" not in message and not list(tmp_path.iterdir())


def test_nothing_half_written_and_nothing_else_deleted(tmp_path, monkeypatch):
    folder, tree = tmp_path / "a", {"w": jnp.arange(4)}
    save_tree(tree, folder)
    with pytest.raises(ji.SaveError, match="exists and is not empty"):
        save_tree(tree, folder)
    newer = {"w": jnp.arange(4) + 1}
    with monkeypatch.context() as broken, pytest.raises(TypeError):
        broken.setattr(_trees, "FORMAT", object())  # fails when the arrays are written and the rest is not
        save_tree(newer, folder, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    check_bits(load_tree(folder, tree), tree)
    save_tree(newer, folder, overwrite=True)
    check_bits(load_tree(folder, tree), newer)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ji.SaveError, match=r"holds notes\.txt.*Nothing was written"):
        save_tree(tree, folder, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_broken_checkpoints(tmp_path):
    tree = {"w": jnp.arange(400.0)}
    with pytest.raises(ji.MissingFileError, match="no checkpoint of a tree"):
        load_tree(tmp_path / "nowhere", tree)
    folder = save_tree(tree, tmp_path / "a")
    text = (folder / "tree.json").read_text()
    for wrong in ("{", "[]", '{"format": "other 9", "leaves": []}', '{"format": "jaxinterp tree 1", "leaves": [{}]}'):
        (folder / "tree.json").write_text(wrong)
        with pytest.raises(ji.WeightsError, match=r"tree\.json cannot be read"):
            load_tree(folder, tree)
    (folder / "tree.json").write_text(text)
    for file in (folder / "arrays").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ji.WeightsError, match="truncated or corrupt"):
        load_tree(folder, tree)


WORKER = """
import json, sys
import numpy as np
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import jaxinterp as ji
from jaxinterp.store import load_tree, save_tree

process, address, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ji.mesh.start(address, num_processes=2, process_id=process)
mesh, other = ji.mesh.make_mesh(data=2, tensor=4), ji.mesh.make_mesh(tensor=8)
values = np.arange(96, dtype=np.float32).reshape(8, 12) / 7
split = jax.jit(lambda: jax.random.split(jax.random.key(1), 8), out_shardings=NamedSharding(mesh, P("data")))
tree = {
    "w": ji.mesh.put(values, mesh, P("data", "tensor")), "whole": ji.mesh.put(values[0], mesh), "local": jnp.arange(3) + process,
    "key": jax.random.key(process), "keys": split(),
    "step": 7 + process, "host": np.arange(3) + process,
}
save_tree(tree, folder)
like = tree | {"w": jax.ShapeDtypeStruct((8, 12), jnp.float32, sharding=NamedSharding(other, P("tensor")))}
back = load_tree(folder, like)
try:
    save_tree(tree, folder)
    refused = ""
except ji.SaveError as error:
    refused = str(error)
save_tree(tree | {"step": 9}, folder, overwrite=True)
print("RESULT" + json.dumps({
    "w": ji.mesh.fetch(back["w"]).tolist(), "parts": [str(s.data.shape) for s in back["w"].addressable_shards],
    "whole": ji.mesh.fetch(back["whole"]).tolist(), "local": back["local"].tolist(), "host": back["host"].tolist(),
    "key": np.asarray(jax.random.key_data(back["key"])).tolist(),
    "keys": ji.mesh.fetch(jax.random.key_data(back["keys"])).tolist(),
    "step": back["step"], "refused": refused, "again": load_tree(folder, like)["step"],
}))
"""


def test_two_processes_write_and_read_one_checkpoint(tmp_path):
    folder = tmp_path / "both"
    values = np.arange(96, dtype=np.float32).reshape(8, 12) / 7
    for output in run_two(WORKER, str(folder)):
        got = result_of(output)
        np.testing.assert_array_equal(np.float32(got["w"]), values)
        np.testing.assert_array_equal(np.float32(got["whole"]), values[0])
        assert got["parts"] == ["(1, 12)"] * 4
        assert got["local"] == got["host"] == [0, 1, 2] and got["step"] == 7 and got["again"] == 9, (
            "as process 0 has them"
        )
        assert got["key"] == jax.random.key_data(jax.random.key(0)).tolist()
        assert got["keys"] == jax.random.key_data(jax.random.split(jax.random.key(1), 8)).tolist()
        assert "exists and is not empty" in got["refused"]
    assert [p.name for p in tmp_path.iterdir()] == ["both"]
    keys, ints = jax.random.split(jax.random.key(1), 8), np.arange(3)
    like = {
        "w": values,
        "whole": values[0],
        "local": jnp.arange(3),
        "key": keys[0],
        "keys": keys,
        "step": 0,
        "host": ints,
    }
    assert load_tree(folder, like)["step"] == 9
