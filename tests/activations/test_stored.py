"""Activations on a disk: what was written comes back, a killed writer goes on, no wrong file is read."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp._errors import InputError, MissingFileError, SaveError, WeightsError
from jaxinterp.activations import DrawnStream, from_arrays, stored_activations, write_activations
from jaxinterp.store import StoreMismatchError, load_tree, save_tree
from tests.activations.conftest import check_rows, joined, make, served

X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
READ = dict(batch_size=16, key=jax.random.key(4))


@pytest.fixture(scope="module")
def folder(model, params, tmp_path_factory):
    stream = make(model, params, sites=[("resid_post", 1), "embed"])
    return write_activations(
        stream, tmp_path_factory.mktemp("store") / "a", rows_per_shard=150, provenance={"why": "test"}
    )


@pytest.mark.parametrize("devices, epochs", [(1, 1), (8, 2)])
def test_what_was_written_comes_back(folder, brute, devices, epochs):
    stream = stored_activations(folder, epochs=epochs, mesh=ji.mesh.make_mesh(data=devices), **READ)
    assert stream.widths == {"resid_post.1": 8, "embed": 8} and stream.description["provenance"] == {"why": "test"}
    assert stream.description["stream"]["sites"] == ["resid_post.1", "embed"]
    rows, documents = joined(*served(stream))
    check_rows(rows, documents, *jax.tree.map(lambda x: np.concatenate([x] * epochs), brute))
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) == 1 + 3 * 5 and names[0] == "000000.documents.npy" and names[-1] == "manifest.json"


def test_a_restored_reader_goes_on_to_the_bit(folder, tmp_path):
    open_it = lambda: stored_activations(folder, sites=["embed"], epochs=None, buffer_size=400, **READ)
    stream = open_it()
    for _ in range(25):
        next(stream)
    save_tree(stream.state(), tmp_path / "state")
    want = served(stream, 40)
    other = open_it()
    other.restore(load_tree(tmp_path / "state", like=other.state()))
    jax.tree.map(np.testing.assert_array_equal, served(other, 40), want)
    with pytest.raises(StoreMismatchError, match="order_from_key was"):
        stored_activations(
            folder, sites=["embed"], epochs=None, buffer_size=400, **READ | dict(key=jax.random.key(5))
        ).restore(stream.state())


def test_a_reader_that_ended_goes_on_with_more_epochs(folder, brute):
    open_it = lambda epochs: stored_activations(folder, sites=["embed"], epochs=epochs, **READ)
    stream = open_it(1)
    _, documents = joined(*served(stream))
    other = open_it(2)
    other.restore(stream.state())
    _, more = joined(*served(other))
    left = len(documents) - stream.served
    assert sorted([*documents[: stream.served], *more]) == sorted([*brute[1], *brute[1]]) and len(more) == left + len(
        brute[1]
    )
    with pytest.raises(StoreMismatchError, match="epochs was 2, is 1"):
        open_it(1).restore(other.state())


def test_bfloat16_keeps_its_bits(tmp_path):
    x = X.astype(jnp.bfloat16)
    stream = from_arrays({"x": x}, batch_size=4, key=jax.random.key(0), epochs=1)
    folder = write_activations(stream, tmp_path / "a", rows_per_shard=20)
    assert np.load(folder / "000000.x.npy").dtype == np.uint16
    back = stored_activations(folder, batch_size=4, key=jax.random.key(0))
    assert back.dtype == jnp.bfloat16
    rows, numbers = joined(*served(back))
    np.testing.assert_array_equal(rows["x"][np.argsort(numbers)], x)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["batch", "write_array", "write_manifest"])
def test_a_killed_writer_goes_on(at, tmp_path, monkeypatch):
    from jaxinterp.activations import _write

    def start():
        return from_arrays({"x": X, "y": -X}, batch_size=4, key=jax.random.key(0), epochs=3)

    whole = write_activations(start(), tmp_path / "whole", rows_per_shard=48, rows=143)
    assert sum(len(np.load(p)) for p in whole.glob("*.x.npy")) == 143
    calls = 0

    def killed(call, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls in (2, 3):
            raise Killed
        return call(*args, **kwargs)

    for _ in range(3):
        stream = start()
        with monkeypatch.context() as patched:
            if at == "batch":
                call = DrawnStream.__next__
                patched.setattr(DrawnStream, "__next__", lambda self, call=call: killed(call, self))
            else:
                call = getattr(_write, at)
                patched.setattr(_write, at, lambda *a, call=call, **k: killed(call, *a, **k))
            try:
                write_activations(stream, tmp_path / "cut", rows_per_shard=48, rows=143)
            except Killed:
                assert not json.loads((tmp_path / "cut" / "manifest.json").read_text())["complete"]
                with pytest.raises(WeightsError, match="not written to its end"):
                    stored_activations(tmp_path / "cut", **READ)
    assert calls > 3
    files = sorted(p.name for p in whole.iterdir())
    assert files == sorted(p.name for p in (tmp_path / "cut").iterdir())
    for name in files:
        assert (whole / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


def test_shards_that_are_not_as_they_were_written(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "a")
    (copy / "000000.embed.npy").unlink()
    content = (copy / "000001.resid_post.1.npy").read_bytes()
    (copy / "000001.resid_post.1.npy").write_bytes(content[:-40])
    np.save(copy / "000002.documents.npy", np.load(copy / "000002.documents.npy") + 1)
    np.save(copy / "000003.embed.npy", np.load(copy / "000003.embed.npy")[1:])
    with pytest.raises(WeightsError) as error:
        stored_activations(copy, **READ)
    for part in ("000000.embed.npy is missing", "000001.resid_post.1.npy is truncated", "000002.documents.npy is of another run",
                 "000003.embed.npy holds float32"):  # fmt: skip
        assert part in str(error.value)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(WeightsError, match="cannot be read"):
        stored_activations(copy, **READ)
    with pytest.raises(MissingFileError, match="write_activations"):
        stored_activations(tmp_path, **READ)


def test_a_stream_that_ends_before_the_rows_that_were_asked_for(tmp_path):
    start = lambda n=50: from_arrays({"x": X[:n]}, batch_size=4, key=jax.random.key(0), epochs=1)
    manifest = lambda name="a": json.loads((tmp_path / name / "manifest.json").read_text())
    with pytest.raises(InputError, match="ended after 50 rows, and 1000 were.*rows=None or rows=50"):
        write_activations(start(), tmp_path / "a", rows=1000, rows_per_shard=20)
    assert not manifest()["complete"] and manifest()["rows"] == 40
    with pytest.raises(WeightsError, match="not written to its end"):
        stored_activations(tmp_path / "a", **READ)
    with pytest.raises(StoreMismatchError, match="rows_asked was 1000, is 30"):
        write_activations(start(), tmp_path / "a", rows=30, rows_per_shard=20)
    write_activations(start(), tmp_path / "a", rows_per_shard=20)
    assert manifest()["complete"] and manifest()["rows"] == 50
    whole = write_activations(start(), tmp_path / "whole", rows_per_shard=20)
    for file in whole.iterdir():
        assert file.read_bytes() == (tmp_path / "a" / file.name).read_bytes()
    stream = stored_activations(write_activations(start(), tmp_path / "a", rows=50, rows_per_shard=20), **READ)
    assert stream.description["rows"] == 50
    with pytest.raises(StoreMismatchError, match="rows_asked was null, is 60"):
        write_activations(start(), tmp_path / "a", rows=60, rows_per_shard=20)
    other = from_arrays({"x": X}, batch_size=4, key=jax.random.key(1), epochs=1)
    with pytest.raises(StoreMismatchError, match=r"key was \[0, 0\], is \[0, 1\]"):
        write_activations(other, tmp_path / "a", rows_per_shard=20)
    with pytest.raises(InputError, match="rows=40"):  # the end is that of a shard
        write_activations(start(40), tmp_path / "b", rows=41, rows_per_shard=20)
    write_activations(start(40), tmp_path / "b", rows=40, rows_per_shard=20)
    assert manifest("b")["complete"] and manifest("b")["rows"] == 40 and len(manifest("b")["shards"]) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.pop("provenance"), "it has no provenance"),
        (lambda m: (m.pop("rows"), m.pop("shards")), "it has no rows, shards"),
        (lambda m: m.update(shards=[], rows=0), "it names no shard"),
        (lambda m: m.update(rows=1000), "its rows are 1000, and its shards have"),
        (lambda m: m["shards"][1].pop("crc32"), "shard 1 has no crc32"),
        (lambda m: m["shards"][0]["crc32"].pop("documents"), "crc32 of shard 0 has no documents"),
        (lambda m: m.update(format="b"), "its format is 'b'"),
        (lambda m: m.pop("format"), "it has no format"),
        (lambda m: m.update(shards=3), "manifest.json cannot be read"),
    ],
)
def test_a_manifest_that_lacks_something(folder, tmp_path, change, message):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=message) as error:
        stored_activations(tmp_path, **READ)
    assert str(tmp_path / "manifest.json") in str(error.value) and "write it again" in str(error.value)


def test_what_is_not_written_or_read(folder, tmp_path):
    stream = from_arrays({"x": X}, batch_size=4, key=jax.random.key(0))
    with pytest.raises(StoreMismatchError, match="stream.kind was"):
        write_activations(stream, folder, rows=8)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("mine")
    with pytest.raises(SaveError, match="something else"):
        write_activations(stream, tmp_path / "other", rows=8)
    with pytest.raises(InputError, match="rows=0"):
        write_activations(stream, tmp_path / "b", rows=0)
    with pytest.raises(InputError, match="JSON"):
        write_activations(stream, tmp_path / "b", rows=8, provenance={"x": X})
    with pytest.raises(InputError, match=r"sites=\['resid'\].*resid_post.1"):
        stored_activations(folder, sites=["resid"], **READ)
    with pytest.raises(InputError, match="epochs=0"):
        stored_activations(folder, epochs=0, **READ)
