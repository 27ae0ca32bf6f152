"""Two processes of four devices train as one process of eight, and as one device."""

import json

import jax
import numpy as np
import pytest

from jaxinterp.saes import load_run
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


FAILING = """
import json, os, signal, sys, time
from pathlib import Path
import jax
import jaxinterp as ji
from jaxinterp import activations, saes
from jaxinterp.store import locked
from jaxinterp.saes import _stop
from tests.activations.conftest import TEXTS, make
from tests.tiny import FAMILIES, make_model, make_params

process, folder = int(sys.argv[1]), Path(sys.argv[3])
ji.mesh.start(sys.argv[2], 2, process)
mesh, told = ji.mesh.make_mesh(data=8), {}

def train(name, stream):
    sae = saes.SAEConfig(architecture=saes.TopK(k=2), d_in=stream.widths["x"], n_latents=16, site="x")
    config = saes.TrainConfig(sae=sae, steps=10**6, learning_rate=1e-3, log_every=10**6)
    saes.train(config, stream, mesh=mesh, folder=folder / name, progress=False)

def attempt(name, stream):
    try:
        train(name, stream)
    except (ji.JaxinterpError, KeyboardInterrupt) as error:
        told[name] = [type(error).__name__, str(error)]

class Wrapped:
    # One site of a stream, as x; slowly, so that few collectives wait for one another: a CPU has few threads for them

    def __init__(self, stream, site, signal_at=None):
        self._stream, self._site, self._signal_at, self._served = stream, site, signal_at, 0
        self.widths, self.batch_size, self.dtype = {"x": stream.widths[site]}, stream.batch_size, stream.dtype
        self.description, self.documents, self.restore = stream.description, stream.documents, stream.restore
        self.state, self.state_shapes = stream.state, stream.state_shapes

    def __next__(self):
        time.sleep(0.05)
        self._served += 1
        if self._served == self._signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"x": next(self._stream)[self._site]}

model = make_model(**FAMILIES["llama"])
texts = [*TEXTS * 4, "abc", "az"]  # the last document is read by one process, and is not in the vocabulary
stream = make(model, make_params(model), mesh=mesh, texts=texts, sites=["embed"])
attempt("read", Wrapped(stream, "embed"))

sample = lambda key, n: {"x": jax.random.normal(key, (n, 8))}
drawn = lambda: activations.from_function(sample, batch_size=16, key=jax.random.key(0), mesh=mesh)
if process == 0:
    with locked(folder / "taken", "Another run"):
        attempt("taken", drawn())
else:
    attempt("taken", drawn())

def interrupt(*_):
    raise KeyboardInterrupt

_stop.SECONDS = 0.5
signal.signal(signal.SIGTERM, interrupt)
attempt("asked", Wrapped(drawn(), "x", signal_at=20 if process == 1 else None))
told["steps"] = [int(path.name) for path in (folder / "asked" / "checkpoints").iterdir() if path.name.isdigit()]
print("RESULT" + json.dumps(told))
"""


@pytest.mark.slow
def test_what_happens_to_one_process_ends_both(tmp_path):
    """A document that one of them cannot read, a folder that is taken, a signal to one of them."""
    first, second = (result_of(out) for out in run_two(FAILING, str(tmp_path)))
    for told in (first, second):
        assert "vocabulary of 11" in told["read"][1] and told["taken"][0] == "SaveError"
        assert "A training run in" in told["taken"][1] and told["asked"][0] == "KeyboardInterrupt"
    assert {first["read"][0], second["read"][0]} == {"TokenError", "InputError"}
    assert first["steps"] == second["steps"] and len(first["steps"]) == 1
    for name in ("read", "asked"):
        [sae] = load_run(tmp_path / name)
        assert np.isfinite(sae.params["W_dec"]).all()
