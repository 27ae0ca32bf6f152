"""Memory that a load takes, over the bytes of its parameters: the peak of anonymous memory while a folder is read.

python experiments/benchmarks/load_memory.py

Writes a random Llama-type folder of some size in shards, loads it in a process of its own, and samples RssAnon of
/proc/self/status (so on Linux only) every millisecond. The mapped files are not anonymous memory: the system may drop their
pages. A tiny folder is loaded first, so that what is imported or set up once does not count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

MB = 1e6


def write_folder(folder, megabytes, *, dtype="F32", shards=3, layers=12):
    """A Llama-type checkpoint without a tokenizer, whose tensors take about `megabytes`; their bytes."""
    from jaxinterp.weights._safetensors import DTYPES, make_header, write

    width = {"F32": 4, "BF16": 2}[dtype]
    d = max(16, int((megabytes * MB / width / (layers * 12 + 32)) ** 0.5) // 16 * 16)
    config = {
        "model_type": "llama", "vocab_size": 16 * d, "hidden_size": d, "intermediate_size": 3 * d, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": d // 8, "max_position_embeddings": 64,
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (16 * d, d), "lm_head.weight": (16 * d, d), "model.norm.weight": (d,)}
    sizes = {"self_attn.q": (d, d), "self_attn.k": (d // 2, d), "self_attn.v": (d // 2, d), "self_attn.o": (d, d)}
    sizes |= {"mlp.gate": (3 * d, d), "mlp.up": (3 * d, d), "mlp.down": (d, 3 * d)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}_proj.weight": shape for name, shape in sizes.items()}
        shapes |= {f"model.layers.{i}.{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    placed, total = {}, 0
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = list(shapes)[shard::shards]
        header = make_header([(name, dtype, shapes[name]) for name in names], {"format": "pt"})
        value = lambda name: (0.02 * rng.standard_normal(shapes[name], np.float32)).astype(DTYPES[dtype])
        write(folder / file, header, value)
        placed |= dict.fromkeys(names, file)
        total += header.size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return total


def anonymous():
    """Bytes of anonymous memory that this process has."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def measure(folder, tiny, dtype, devices):
    """Loads the folder here and now: rise of anonymous memory at its peak and at the end, bytes of parameters, seconds."""
    import jax

    import jaxinterp as ji

    how = {"tokenizer": None, "dtype": dtype}
    if devices > 1:
        how["mesh"] = ji.mesh.make_mesh(data=1, tensor=devices)
    ji.load(tiny, **how)
    before, seen, done = anonymous(), [], threading.Event()

    def sample():
        while not done.is_set():
            seen.append(anonymous())
            time.sleep(0.001)

    thread = threading.Thread(target=sample)
    thread.start()
    start = time.perf_counter()
    params = ji.load(folder, **how).params
    seconds = time.perf_counter() - start
    after = anonymous()
    done.set()
    thread.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {"parameters": size, "peak": max([*seen, after]) - before, "after": after - before, "seconds": seconds}


def in_a_child(folder, tiny, dtype="float32", devices=1):
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--child", str(folder), str(tiny), dtype, str(devices)]
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | flags)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Prints a table row for each kind of load, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("load_memory.json"))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, tiny, dtype, devices = arguments.child
        print(json.dumps(measure(folder, tiny, dtype, int(devices))))
        return
    rows = []
    for kind, dtype, devices in [
        ("F32", "float32", 1),
        ("F32", "bfloat16", 1),
        ("BF16", "float32", 1),
        ("F32", "float32", 4),
    ]:
        with tempfile.TemporaryDirectory() as place:
            total = write_folder(Path(place) / "big", arguments.megabytes, dtype=kind)
            write_folder(Path(place) / "tiny", 0.1, dtype=kind)
            row = in_a_child(Path(place) / "big", Path(place) / "tiny", dtype, devices)
        rows.append({
            "folder": f"{total / MB:.0f} MB of {kind}", "loaded as": dtype, "devices": devices,
            "parameters (MB)": round(row["parameters"] / MB), "rise at the peak (MB)": round(row["peak"] / MB),
            "peak / parameters": round(row["peak"] / row["parameters"], 3), "seconds": round(row["seconds"], 2),
        })  # fmt: skip
        print(json.dumps(rows[-1]))
    arguments.out.write_text(json.dumps({"work": "anonymous memory of ji.load, CPU", "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
