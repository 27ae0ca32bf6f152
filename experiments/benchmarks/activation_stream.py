"""What an activation stream costs: forward passes, shuffles, batches.

    taskset -c 0 python -m experiments.benchmarks.activation_stream [--devices 8]

The residual stream of stories260k behind its last layer, tokens of tinystories.txt in packed rows of 128. "rows a second" is by
processor time, the parts are by the clock; nothing is compiled in them.
"""

import argparse
import json
import os
import time
from pathlib import Path

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def measure(batch_size: int, rows_of_tokens: int, refills: int) -> dict:
    import jax

    import jaxinterp as ji
    from jaxinterp.activations import ActivationStream, read_tokens

    lm = ji.load(DATA / "stories260k")
    how = dict(n_ctx=128, batch_size=rows_of_tokens, epochs=None, seed=0)
    tokens = read_tokens(DATA / "tinystories.txt", lm.tokenizer, **how)
    mesh = ji.mesh.make_mesh(data=-1)
    stream = ActivationStream(
        lm.model, lm.params, tokens, [("resid_post", 4)], batch_size=batch_size, mesh=mesh, key=jax.random.key(0), timed=True
    )  # fmt: skip
    pool = stream.description["buffer_size"]
    for _ in range(pool // batch_size):  # two refills: all is compiled
        next(stream)
    before, served = dict(stream.timings), stream.served
    start = time.process_time()
    for _ in range(refills * pool // batch_size // 2):
        batch = next(stream)
    jax.block_until_ready(batch)
    seconds = time.process_time() - start
    spent = {name: stream.timings[name] - before[name] for name in before}
    rows = stream.served - served
    return {
        "devices": mesh.size, "batch_size": batch_size, "rows of tokens": rows_of_tokens, "pool": pool, "rows": rows,
        "rows a second": round(rows / seconds), "rows a second, forward passes alone": round(rows / spent["harvest"]),
        "seconds": {name: round(value, 3) for name, value in spent.items()},
        "shuffle / (harvest + shuffle)": round(spent["shuffle"] / (spent["harvest"] + spent["shuffle"]), 4),
        "shuffle / run with a step as dear as the harvest": round(
            spent["shuffle"] / (2 * spent["harvest"] + spent["read"] + spent["shuffle"]), 4
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--refills", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    rows = []
    for batch_size, rows_of_tokens in ((1024, 8), (4096, 32), (4096, 128)):
        rows.append(measure(batch_size, rows_of_tokens, options.refills))
        print(json.dumps(rows[-1]), flush=True)
    kept = json.loads(options.out.read_text()) if options.out.exists() else []
    rows += [row for row in kept if row["devices"] != options.devices]
    options.out.write_text(json.dumps(sorted(rows, key=lambda row: row["devices"]), indent=1) + "\n")


if __name__ == "__main__":
    main()
