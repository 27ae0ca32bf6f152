"""Streams of arrays and of functions: every row once a pass, the same batches after a restore."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp._errors import InputError, JaxinterpError, StreamEmptyError
from jaxinterp.activations import from_arrays, from_function
from jaxinterp.store import StoreMismatchError, load_tree, save_tree

X = np.random.default_rng(0).normal(size=(21, 3)).astype(np.float32)


@pytest.mark.parametrize("devices", [1, 8])
def test_every_row_is_served_once_in_a_pass(devices):
    mesh = ji.mesh.make_mesh(data=devices)
    stream = from_arrays({"x": X, "y": 2 * X}, batch_size=8, key=jax.random.key(0), epochs=2, mesh=mesh)
    assert (stream.widths, stream.batch_size, stream.dtype) == ({"x": 3, "y": 3}, 8, jnp.float32)
    rows, batches = [], []
    for batch in stream:
        assert [shard.data.shape for shard in batch["x"].addressable_shards] == [(8 // devices, 3)] * devices
        rows += stream.documents().tolist()
        batches.append(np.asarray(batch["x"]))
        np.testing.assert_array_equal(batches[-1], X[np.asarray(stream.documents())])
        np.testing.assert_array_equal(batch["y"], 2 * batches[-1])
    rest, left = stream.remainder()
    assert len(batches) == 5 and len(left) == 2 and stream.served == 40
    np.testing.assert_array_equal(rest["x"], X[left])
    rows += left.tolist()
    assert sorted(rows[:21]) == sorted(rows[21:]) == list(range(21))
    assert rows[:21] != rows[21:] and rows[:21] != sorted(rows[:21])
    with pytest.raises(StreamEmptyError, match="had 42 rows.*40 were served.*2 are left") as error:
        next(stream)
    assert isinstance(error.value, (StopIteration, JaxinterpError))


def test_a_function_and_the_end_of_its_rows():
    sample = lambda key, n: {"x": jax.random.normal(key, (n, 3))}
    stream = from_function(sample, batch_size=4, key=jax.random.key(1), n=10)
    first = [np.asarray(batch["x"]) for batch in stream]
    assert len(first) == 2 and len(stream.remainder()[1]) == 2
    np.testing.assert_allclose(first[1], sample(jax.random.fold_in(jax.random.key(1), 1), 4)["x"], rtol=1e-6)
    assert stream.documents().tolist() == [4, 5, 6, 7]
    endless = from_function(sample, batch_size=4, key=jax.random.key(1))
    assert len([next(endless) for _ in range(9)]) == 9


@pytest.mark.parametrize("kind", ["arrays", "function"])
def test_a_restored_stream_goes_on_to_the_bit(kind, tmp_path, count_compiles):
    def make(seed=0):
        if kind == "arrays":
            return from_arrays({"x": X}, batch_size=5, key=jax.random.key(seed))
        return from_function(_sample, batch_size=5, key=jax.random.key(seed))

    stream = make()
    for _ in range(3):
        next(stream)
    save_tree(stream.state(), tmp_path / "state")
    with count_compiles() as compiles:
        wanted = [np.asarray(next(stream)["x"]) for _ in range(4)]
    assert not {"_rows", "rows"} & set(compiles.names)
    other = make(seed=7)
    other.restore(load_tree(tmp_path / "state", like=other.state()))
    np.testing.assert_array_equal([next(other)["x"] for _ in range(4)], wanted)
    again = make(seed=8)  # the key of the state counts, not the stream's own
    again.restore(load_tree(tmp_path / "state", like=again.state_shapes()))
    np.testing.assert_array_equal([next(again)["x"] for _ in range(4)], wanted)
    with pytest.raises(StoreMismatchError, match="another stream"):
        from_arrays({"x": X[:7]}, batch_size=5, key=jax.random.key(0)).restore(stream.state())


def test_a_stream_that_ended_goes_on_with_more_epochs():
    make = lambda epochs: from_arrays({"x": X}, batch_size=8, key=jax.random.key(0), epochs=epochs)
    stream = make(2)
    first = [i for _ in stream for i in stream.documents().tolist()]
    other = make(3)
    other.restore(stream.state())
    more = [i for _ in other for i in other.documents().tolist()] + other.remainder()[1].tolist()
    assert np.bincount(first + more).tolist() == [3] * 21
    make(None).restore(stream.state())
    with pytest.raises(StoreMismatchError, match="epochs was 2, is 1.*from the 2 on"):
        make(1).restore(stream.state())


def _sample(key, n):
    return {"x": jax.random.normal(key, (n, 3))}


@pytest.mark.parametrize(
    "arrays, more, message",
    [
        ({"x": X[0]}, {}, r"'x' is float32\[3\]"),
        ({"x": X, "y": X[:4]}, {}, r"\[4, 21\] rows"),
        ({"x": X.astype(int)}, {}, "'x' is int"),
        ({}, {}, "rows"),
        ({"x": np.where(np.arange(21)[:, None] == 6, np.nan, X).astype(np.float32)}, {}, "row 6"),
        ({"x": X}, dict(batch_size=22), "21 rows, fewer than one batch of 22"),
        ({"x": X}, dict(batch_size=0), "batch_size=0"),
        ({"x": X}, dict(epochs=0), "epochs=0"),
        ({"x": X}, dict(mesh=ji.mesh.make_mesh(rows=1)), "no axis `data`"),
        ({"x": X}, dict(mesh=ji.mesh.make_mesh(data=2), batch_size=5), "2 devices"),
    ],
)
def test_arrays_that_make_no_stream(arrays, more, message):
    with pytest.raises(InputError, match=message):
        from_arrays(arrays, **{"batch_size": 4, "key": jax.random.key(0), **more})


def test_functions_that_make_no_stream():
    with pytest.raises(InputError, match=r"'x': \(3,\)"):
        from_function(lambda key, n: {"x": jnp.zeros(3)}, batch_size=4, key=jax.random.key(0))
