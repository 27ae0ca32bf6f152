"""Checkpoints of a run: written in the background, whole or not at all, the oldest deleted."""

import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxinterp
from jaxinterp import InputError, MissingFileError, WeightsError
from jaxinterp.store import Checkpoints, StoreMismatchError


def make_tree(step):
    return {"w": jnp.full((4, 3), step, jnp.bfloat16), "key": jax.random.key(step), "name": f"step {step}", "n": step}


def test_the_newest_are_kept_and_come_back(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 5, 9):
            checkpoints.save(step, make_tree(step))
        checkpoints.save(9, make_tree(0))  # of a step that is there: nothing
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [5, 9]
        for step, tree in ((9, checkpoints.restore(make_tree(0))), (5, checkpoints.restore(make_tree(0), step=5))):
            want = make_tree(step)
            assert (tree["name"], tree["n"]) == (want["name"], want["n"])
            np.testing.assert_array_equal(tree["w"], want["w"])
            assert (jax.random.key_data(tree["key"]) == jax.random.key_data(want["key"])).all()
        assert {r["path"]: r.get("value") for r in checkpoints.records(9)}["['name']"] == "step 9"


@pytest.mark.parametrize("done", (0, 1, 8, 9, 12))
def test_a_process_that_is_killed_while_it_deletes_leaves_no_half_checkpoint(tmp_path, monkeypatch, done):
    """Of all deletions the first `done` take place, and no other one: so is the disk after a kill."""
    left = [done]

    def dying(delete):
        def deleting(*args, **kwargs):
            left[0] -= 1
            return delete(*args, **kwargs) if left[0] >= 0 else None

        return deleting

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, make_tree(1))
    checkpoints.wait()
    with monkeypatch.context() as patch:
        for name in ("unlink", "remove", "rmdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        checkpoints.save(2, make_tree(2))
        checkpoints.wait()
    assert left[0] < 0
    with Checkpoints(tmp_path) as reader:  # who only reads leaves the rest to who writes
        assert 2 in reader.steps
    assert (tmp_path / ".deleted").is_dir()
    with Checkpoints(tmp_path, keep=1) as again:
        assert 2 in again.steps and {int(path.name) for path in tmp_path.glob("[0-9]*")} == {*again.steps}
        for step in again.steps:
            assert again.restore(make_tree(0), step=step)["n"] == step
        again.save(3, make_tree(3))
    assert sorted(path.name for path in tmp_path.glob("**/*") if path.name.isdigit()) == ["3"]  # nothing stays for ever


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)  # reuses the buffer while it is being written
    x = jnp.zeros((1000, 1000))
    with Checkpoints(tmp_path) as checkpoints:
        for i in range(1, 6):
            x = step(x)
            checkpoints.save(i, {"x": x})
    with Checkpoints(tmp_path) as checkpoints:
        for i in range(1, 6):
            assert (np.asarray(checkpoints.restore({"x": x}, step=i)["x"]) == i).all()


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(MissingFileError, match=r"has no checkpoint; there are those of steps \[\]"):
            checkpoints.restore({})
        checkpoints.save(3, make_tree(3))
        checkpoints.wait()
        with pytest.raises(MissingFileError, match=r"no checkpoint of step 4; there are those of steps \[3\]"):
            checkpoints.restore(make_tree(3), step=4)
        with pytest.raises(StoreMismatchError, match=r"\['w'\] is bfloat16\[4, 3\], should be float32\[2\]"):
            checkpoints.restore({**make_tree(3), "w": jnp.zeros(2)})
        (tmp_path / "3" / "tree" / "metadata").write_text("{")
        with pytest.raises(WeightsError, match="cannot be read"):
            checkpoints.restore(make_tree(3))


def test_shapes_with_shardings_say_what_comes_back(tmp_path):
    mesh = jaxinterp.mesh.make_mesh(data=8)
    cut = NamedSharding(mesh, PartitionSpec("data"))
    tree = {"w": jax.device_put(np.arange(16.0, dtype=np.float32), cut), "key": jax.random.key(3), "n": 2, "name": "a"}
    like = {**tree, "w": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=cut), "name": ""}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        checkpoints.wait()
        got = checkpoints.restore(like)
    assert got["w"].sharding == cut and got["name"] == "a"
    np.testing.assert_array_equal(got["w"], tree["w"])


FULL = """
import resource, signal, sys
import jax.numpy as jnp, numpy as np
from jaxinterp import SaveError
from jaxinterp.store import Checkpoints, save_tree

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rows = np.random.default_rng(0).normal(size=(600, 1000))
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"x": rows})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # as a full disk: writing fails on the way
    try:
        checkpoints.save(2, {"x": rows + 1})
        checkpoints.wait()
    except SaveError as error:
        print("SAID", error)
    try:
        save_tree({"x": rows}, sys.argv[1] + "/tree")
    except SaveError as error:
        print("TREE", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with Checkpoints(sys.argv[1]) as checkpoints:
    print("STEPS", checkpoints.steps, np.array_equal(checkpoints.restore({"x": rows})["x"], rows))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files, as POSIX has it")
def test_a_disk_that_is_full_leaves_the_earlier_ones(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"SAID A checkpoint could not be written to {tmp_path}: File too large. Nothing" in result.stdout
    assert "of steps [1]" in result.stdout
    assert f"TREE Could not write {tmp_path / 'tree'}: File too large. Nothing" in result.stdout
    assert not (tmp_path / "tree").exists()
    assert "STEPS [1] True" in result.stdout
