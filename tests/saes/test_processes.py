"""Two processes of four devices train as one process of eight, and as one device."""

import json

import jax
import numpy as np
import pytest

from tests.processes import result_of, run_two
from tests.tiny import check_close

CODE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
import jaxinterp as ji
from jaxinterp import activations, saes

if len(sys.argv) > 2:
    ji.mesh.start(sys.argv[2], 2, int(sys.argv[1]))
folder = sys.argv[-1]
n = len(jax.devices())
mesh = ji.mesh.make_mesh(data=n // 2, dict=2) if n > 1 else None

def sample(key, rows):
    return {"x": jax.random.laplace(key, (rows, 8)) ** 3}

stream = activations.from_function(sample, batch_size=64, key=jax.random.key(0), mesh=mesh)
sae = saes.SAEConfig(architecture=saes.TopK(k=2), d_in=8, n_latents=32)
config = saes.TrainConfig(sae=sae, steps=20, learning_rate=5e-3, dead_after=600, log_every=1, checkpoint_every=8)
trained = saes.train(config, stream, mesh=mesh, folder=folder, progress=False)
where = ji.mesh.make_mesh(data=n // 2, dict=2) if n > 1 else None
stream = activations.from_function(sample, batch_size=64, key=jax.random.key(0), mesh=mesh)
again = saes.train(config, stream, mesh=mesh, folder=folder, progress=False)  # read back from the last checkpoint
params, kept = ji.mesh.fetch((trained.params, again.params))
same = all(np.array_equal(params[name], kept[name]) for name in params)
print("RESULT" + json.dumps({"W_dec": params["W_dec"].tolist(), "same": same}))
"""


def curve(folder, name):
    return np.array([row[name] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())])


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, monkeypatch, capsys):
    together = [result_of(out) for out in run_two(CODE, str(tmp_path / "two"))]
    assert together[0] == together[1] and together[0]["same"]
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "eight")])
    exec(CODE, {})
    eight = result_of(capsys.readouterr().out)
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "one")])
    monkeypatch.setattr(jax, "devices", lambda *_: [jax.local_devices()[0]])
    exec(CODE, {})
    one = result_of(capsys.readouterr().out)
    for name in ("loss", "gradient_norm"):
        want = curve(tmp_path / "one", name)
        assert len(want) == 20
        for other in ("two", "eight"):
            check_close(curve(tmp_path / other, name)[:2], want[:2], 1e-5)
            check_close(curve(tmp_path / other, name), want, 1e-3)
    check_close(eight["W_dec"], together[0]["W_dec"], 1e-3)
    check_close(one["W_dec"], together[0]["W_dec"], 1e-3)
