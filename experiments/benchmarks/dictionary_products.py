"""Products of active latents by index against dense ones, forward and backward, at several N / k, on one core.

The constant `DENSE_FROM` of `jaxinterp.saes` is read off this: the ratio from which on the form by index is faster.

    taskset -c 0 .venv/bin/python -m experiments.benchmarks.dictionary_products
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxinterp import saes
from jaxinterp.saes import _sparse  # the constant itself is what is measured

ROWS, RATIOS = 1_024, (2, 4, 8, 16, 32, 64, 128)
SIZES = ((64, 1_024), (256, 2_048), (768, 4_096))


def make_call(form, width, latents, k):
    """A function that decodes and encodes k active latents of each row, with the gradients of both matrices."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, weights = jax.random.normal(keys[0], (ROWS, width)), jax.random.normal(keys[1], (latents, width))
    values, indices = jax.lax.top_k(jax.random.normal(keys[2], (ROWS, latents)), k)

    def loss(encoder, decoder, x, values, indices):  # arguments all: XLA would compute with constants when it compiles
        z = saes.encode_active(x, jnp.zeros(width), encoder, jnp.zeros(latents), values, indices)
        return jnp.sum(jnp.square(saes.decode_active(z, indices, decoder) - x))

    kept, _sparse.DENSE_FROM = _sparse.DENSE_FROM, 0 if form == "by index" else latents + 1
    call = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(weights, weights, x, values, indices).compile()
    _sparse.DENSE_FROM = kept
    return lambda: jax.block_until_ready(call(weights, weights, x, values, indices))


def ratio(width, latents, k, rounds):
    """Dense seconds over those by index: the median of pairs measured turn by turn."""
    calls = {form: make_call(form, width, latents, k) for form in ("by index", "dense")}
    seconds = {form: [] for form in calls}
    for i in range(rounds + 1):
        for form, call in calls.items():
            start = time.perf_counter()
            call()
            if i:
                seconds[form].append(time.perf_counter() - start)
    return statistics.median(a / b for a, b in zip(seconds["dense"], seconds["by index"], strict=True))


def main():
    """Prints the table, and writes it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    table = {
        f"width {width}, {latents} latents": {
            f"N / k = {r}": round(ratio(width, latents, latents // r, arguments.rounds), 2) for r in RATIOS
        }
        for width, latents in SIZES
    }
    result = {"work": f"gradients of both matrices, {ROWS} rows, float32, one core", "dense / by index": table}
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
