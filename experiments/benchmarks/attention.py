"""Attention by blocks of queries, as a whole, and by `jax.nn.dot_product_attention`: time and memory.

    taskset -c 0 python -m experiments.benchmarks.attention

The three run turn by turn in one process; processor time, median of the rounds. Memory is XLA's own figure for temporary buffers.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxinterp.nn import AttentionKind, attention
from jaxinterp.tap import capture, run

D, H, E = 768, 12, 64


def make(t: int, dtype: jnp.dtype) -> tuple[dict, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        f"W_{n}": jax.random.normal(k, (H, D, E)).astype(dtype) / D**0.5 for n, k in zip("QKV", keys, strict=False)
    }
    params["W_O"] = jax.random.normal(keys[3], (H, E, D)).astype(dtype) / D**0.5
    return params, jax.random.normal(keys[4], (2, t, D)).astype(dtype)


def ours(params, x, *, tap):
    positions = jnp.arange(x.shape[1])[None]
    kind = AttentionKind(causal=True, scale=E**-0.5)
    return attention(params, None, x, kind=kind, positions=positions, frequencies=None, tap=tap)[0]


def blocks(params, x):
    return run(ours)(params, x)[0]


def whole(params, x):
    """Asking for the pattern, and leaving it, is the whole computation."""
    out, acts, _ = run(ours, capture("attn.pattern"))(params, x)
    return out + 0 * acts["attn.pattern"][0, 0, 0, 0]


def library(params, x):
    q, k, v = (jnp.einsum("btd,hde->bthe", x, params[f"W_{n}"]) for n in "QKV")
    return jnp.einsum(
        "bthe,hed->btd", jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=E**-0.5), params["W_O"]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    options, rows = parser.parse_args(), []
    for dtype in (jnp.float32, jnp.bfloat16):
        for t in options.lengths:
            data = make(t, dtype)
            ways = {f.__name__: jax.jit(f).lower(*data).compile() for f in (blocks, whole, library)}
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.rounds + 1):
                for name, way in ways.items():
                    start = time.process_time()
                    jax.block_until_ready(way(*data))
                    times[name].append(time.process_time() - start)
            row = {"dtype": jnp.dtype(dtype).name, "tokens": t}
            for name, way in ways.items():
                row[f"{name}_seconds"] = round(statistics.median(times[name][1:]), 4)
                row[f"{name}_MiB"] = round(way.memory_analysis().temp_size_in_bytes / 2**20)
            row["time_of_whole"] = round(row["blocks_seconds"] / row["whole_seconds"], 2)
            row["time_of_library"] = round(row["blocks_seconds"] / row["library_seconds"], 2)
            rows.append(row)
            print(row, flush=True)
    (Path(__file__).parent / "attention.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
