"""Compile time of the forward pass against depth: the blocks are one scan, so it should be flat.

taskset -c 0 .venv/bin/python experiments/benchmarks/compile_depth.py
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxinterp as ji


def seconds(n_layers):
    """Tracing, lowering and compiling one forward pass; parameters are shapes only."""
    config = ji.TransformerConfig(
        n_layers=n_layers, d_model=256, n_ctx=128, n_heads=4, d_head=64, d_vocab=1000, d_mlp=1024
    )
    model = ji.Model(config=config)
    tokens = jax.ShapeDtypeStruct((4, 16), jnp.int32)
    start = time.perf_counter()
    jax.jit(model.forward).lower(model.param_shapes(), tokens).compile()
    return time.perf_counter() - start


def main():
    """Prints medians by depth, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("compile_depth.json"))
    arguments = parser.parse_args()
    depths = (12, 24, 48)
    seconds(depths[0])  # the first compile of a process also loads the compiler
    taken = {n: [] for n in depths}
    for _ in range(arguments.rounds):
        for n in depths:
            jax.clear_caches()
            taken[n].append(seconds(n))
    medians = {n: statistics.median(t) for n, t in taken.items()}
    result = {
        "work": "compile of the forward pass by number of layers, one core",
        "rounds": arguments.rounds,
        "median_seconds": {str(n): round(t, 3) for n, t in medians.items()},
        "48 layers / 12 layers": round(statistics.median(a / b for a, b in zip(taken[48], taken[12], strict=True)), 3),
    }
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
