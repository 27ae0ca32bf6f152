"""A TopK dictionary of 16,777,216 latents for a model of width 12,288: what a training step would hold and send. A calculation.

The real training step is traced and compiled for meshes of 512 devices with the shardings that it would have; XLA's own account
of memory and the collectives of the compiled program are read off. Nothing is run, no array is made.

    python -m experiments.sae_16m.run            # writes results.json and the tables of README.md beside this file
"""

import argparse
import json
import os
import re
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=512"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxinterp as ji
from jaxinterp import saes

HERE = Path(__file__).parent
BYTES = {"f32": 4, "s32": 4, "bf16": 2, "pred": 1}
SMOKE = dict(n_latents=2**12, width=64, rows=4096, parts=4)
FULL = dict(n_latents=2**24, width=12_288, rows=131_072, parts=64)
MESHES = [dict(data=1, dict=512), dict(data=2, dict=256), dict(data=8, dict=64)]


def compiled(mesh, *, n_latents, width, rows, parts):
    """The compiled step, the compiled first state, and the shapes of the state."""
    sae = saes.SAEConfig(
        architecture=saes.TopK(k=32, auxiliary=saes.AuxK(k=256)), d_in=width, n_latents=n_latents, compute_dtype="bfloat16"
    )  # fmt: skip
    config = saes.TrainConfig(sae=sae, steps=10**5, learning_rate=1e-4, accumulation=parts)
    program = saes.make_program([config], mesh)
    x = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("data")))
    shapes = program.shapes(x, x)
    return program.compiled(shapes, x, x), program.compiled_first(x, x), shapes


def collectives(text):
    """By kind, how many there are and the bytes that a device takes part with."""
    found = {}
    for shape, kind in re.findall(r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\(", text):
        size = sum(
            BYTES[dtype] * int(np.prod([int(n) for n in dims.split(",")] if dims else [1]))
            for dtype, dims in re.findall(r"(f32|s32|bf16|pred)\[([\d,]*)\]", shape)
        )
        count, total = found.get(kind, (0, 0))
        found[kind] = (count + 1, total + size)
    return found


def account(shape, work):
    """What one device holds and sends in a step, in bytes."""
    mesh = ji.mesh.make_mesh(**shape)
    whole, first, state = compiled(mesh, **work)
    part, *_ = compiled(mesh, **{**work, "rows": work["rows"] // work["parts"], "parts": 1})
    memory = whole.memory_analysis()
    per_part = collectives(part.as_text())
    # Gradients are summed over `data` once a step, behind the last part; everything else once for each part.
    params = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * 4 for leaf in jax.tree.leaves(state.params))
    gradients = params if shape["data"] > 1 else 0
    each = sum(total for _, total in per_part.values()) - gradients
    local = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    return {
        "mesh": shape,
        "state": local,
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "collectives of a step of one part": per_part,
        "gradients": gradients,
        "sent in a step": each * work["parts"] + gradients,
        "first state, temporary": first.memory_analysis().temp_size_in_bytes,
        "first state, sent": sum(total for _, total in collectives(first.as_text()).values()),
    }


def table(results, work):
    """The table of the README."""
    lines = [
        "| mesh | state | state and rows | temporary | collectives of a step of one part | gradients | sent in a step "
        "| first state: temporary, sent |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    gigabytes = lambda n: f"{n / 1e9:.1f} GB"
    for row in results:
        mesh = ", ".join(f"{name}={size}" for name, size in row["mesh"].items())
        parts = ", ".join(
            f"{count} {kind} ({total / 1e6:.0f} MB)"
            for kind, (count, total) in row["collectives of a step of one part"].items()
        )
        lines.append(
            f"| {mesh} | {gigabytes(row['state'])} | {gigabytes(row['arguments'])} | {gigabytes(row['temporary'])} | {parts} | "
            f"{gigabytes(row['gradients'])} | {gigabytes(row['sent in a step'])} | {gigabytes(row['first state, temporary'])}, "
            f"{gigabytes(row['first state, sent'])} |"
        )
    return "\n".join(lines)


def main():
    """Writes the results and their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small sizes on the same meshes; nothing is written")
    work = SMOKE if (smoke := parser.parse_args().smoke) else FULL
    results = [account(shape, work) for shape in (MESHES[-1:] if smoke else MESHES)]
    text = table(results, work)
    print(text)
    if smoke:
        return
    (HERE / "results.json").write_text(json.dumps({"work": work, "devices": 512, "meshes": results}, indent=1) + "\n")
    page = HERE / "README.md"
    page.write_text(
        re.sub(r"(?s)<!-- table -->.*<!-- end -->", f"<!-- table -->\n{text}\n<!-- end -->", page.read_text())
    )


if __name__ == "__main__":
    main()
