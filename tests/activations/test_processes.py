"""Two processes with four devices each: the rows of one process with one device."""

import jax
import numpy as np
import pytest

from tests.activations.conftest import check_rows, make
from tests.processes import result_of, run_two

WORKER = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
import jaxinterp as ji
from jaxinterp.activations import from_arrays, from_function, stored_activations, write_activations
from jaxinterp.store import load_tree, save_tree

process, address, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
ji.mesh.start(address, num_processes=2, process_id=process)
from tests.activations.conftest import joined, make
from tests.tiny import FAMILIES, make_model, make_params

model = make_model(**FAMILIES["llama"])
params = make_params(model)
mesh = ji.mesh.make_mesh(data=8)

def serve(stream):
    batches, documents = [], []
    for batch in stream:
        batches.append(ji.mesh.fetch(batch))
        documents.append(ji.mesh.fetch(stream.documents()))
    rest, left = stream.remainder()
    return joined([*batches, rest], [*documents, left])

def start(**more):
    return make(model, params, mesh=mesh, sites=[("resid_post", 1), "embed"], tokens=dict(seed=3), **more)

stream = start()
rows, documents = serve(stream)
stream = start()
for _ in range(9):
    next(stream)
save_tree(stream.state(), folder / "state")
want = [ji.mesh.fetch(stream.documents()).tolist() for _ in stream]
other = start(seed=5)
other.restore(load_tree(folder / "state", like=other.state_shapes()))
same = want == [ji.mesh.fetch(other.documents()).tolist() for _ in other]
dry = make(model, params, mesh=mesh, sites=["embed"], tokens=dict(seed=3, epochs=2))
dry.restore((lambda s: (serve(s), s.state())[1])(make(model, params, mesh=mesh, sites=["embed"], tokens=dict(seed=3))))
more = len(serve(dry)[1])
write_activations(start(), folder / "kept", rows_per_shard=200)
back, back_documents = serve(stored_activations(folder / "kept", batch_size=16, key=jax.random.key(1), mesh=mesh))
arrays = from_arrays({"x": np.eye(21, dtype=np.float32)}, batch_size=16, key=jax.random.key(0), epochs=8, mesh=mesh)
numbers = [i for _ in arrays for i in ji.mesh.fetch(arrays.documents()).tolist()]
sample = lambda key, n: {"x": jax.random.normal(key, (n, 3))}
drawn = ji.mesh.fetch(next(from_function(sample, batch_size=16, key=jax.random.key(0), mesh=mesh)))
halves = ji.mesh.make_mesh(tensor=4, data=2)  # both processes hold all of `data`
try:
    make(model, params, mesh=halves)
    refused = ""
except ValueError as error:
    refused = str(error)
whole = make(model, ji.weights.shard(params, halves), mesh=None, sites=["embed"], tokens=dict(shard=(0, 1)))
count = len(serve(whole)[1])
prints = [start().description["params"], whole.description["params"]]
if process == 0:
    np.savez(folder / "rows.npz", documents=documents, **rows)
    np.savez(folder / "back.npz", documents=back_documents, **back)
print("RESULT" + json.dumps({"same": same, "numbers": sorted(numbers), "drawn": drawn["x"].tolist(), "refused": refused,
                             "count": count, "more": more, "prints": prints, "rows": float(rows["embed"].sum())}))
"""


@pytest.mark.slow
def test_two_processes_serve_the_same_rows(model, params, brute, tmp_path):
    results = [result_of(output) for output in run_two(WORKER, str(tmp_path))]
    rows, documents = brute
    rows = {name: rows[name] for name in ("resid_post.1", "embed")}
    for name in ("rows", "back"):
        got = dict(np.load(tmp_path / f"{name}.npz"))
        check_rows({site: got[site] for site in rows}, got["documents"], rows, documents)
    for result in results:
        assert result["same"] and result["rows"] == results[0]["rows"]
        assert len(result["numbers"]) == 160 and set(np.bincount(result["numbers"])) <= {7, 8}
        want = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (16, 3))
        np.testing.assert_allclose(result["drawn"], want, rtol=1e-5)
        assert "shard=(0, 1)" in result["refused"]
        assert result["count"] == len(documents) and result["more"] == len(documents) + len(documents) % 16
        assert result["prints"] == [make(model, params).description["params"]] * 2
