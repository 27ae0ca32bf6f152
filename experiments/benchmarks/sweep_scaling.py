"""Time of a sweep against the number of cells, depth, length and prompts; peak memory against the plan's estimate.

One thing at a time changes around a middle: 12 layers of width 256, 8 prompts x 32 tokens that first differ in their middle,
every head at all positions (for the number of cells: heads at single positions). Times are medians of later calls; the first
call, which compiles, stands beside them. Memory is the rise of resident memory over a second sweep of every head at every
position, with budgets that bind, in a process of its own whose allocator gives back at once what is freed.

    taskset -c 0 .venv/bin/python experiments/benchmarks/sweep_scaling.py            # sweep_scaling.json and .png
    python experiments/benchmarks/sweep_scaling.py --smoke --out scaling.json   # a tiny model, two values each
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

import jaxinterp as ji

MIDDLE = {"n_layers": 12, "length": 32, "prompts": 8, "cells": None}
VALUES = {
    "cells": (48, 144, 432, 1296, 4608),
    "n_layers": (12, 24, 36, 48),
    "length": (16, 32, 64, 128, 256, 512),
    "prompts": (1, 2, 4, 8, 16, 32, 64),
}
LABELS = {"cells": "cells", "n_layers": "layers", "length": "tokens in a prompt", "prompts": "prompts"}
BUDGETS = (128, 256, 512)  # MiB
LARGE = {
    "n_layers": 4,
    "length": 64,
    "prompts": 32,
    "cells": None,
}  # where memory is measured: 1024 cells of tens of MiB each
WIDTH = {"d_model": 256, "n_heads": 4, "d_head": 64, "d_mlp": 1024, "d_vocab": 1000}

SMOKE = {
    "middle": {"n_layers": 2, "length": 6, "prompts": 2, "cells": None},
    "values": {"cells": (2, 8), "n_layers": (2, 3), "length": (4, 8), "prompts": (1, 3)},
    "budgets": (16,),
    "large": {"n_layers": 2, "length": 6, "prompts": 2, "cells": None},
    "width": {"d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 32, "d_vocab": 50},
}


def make_sweep(width, *, n_layers, length, prompts, cells):
    """(model, params, arguments of the sweep). Without a number of cells it is every head at all positions."""
    model = ji.Model(config=ji.TransformerConfig(n_layers=n_layers, n_ctx=length, **width))
    params = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    base, source = rng.integers(0, width["d_vocab"], (2, prompts, length)).astype(np.int32)
    source[:, : length // 2] = base[:, : length // 2]
    correct, wrong = np.arange(prompts) % width["d_vocab"], (np.arange(prompts) + 7) % width["d_vocab"]
    metric = ji.patching.logit_difference(correct, wrong, np.full(prompts, length - 1))
    over = "layer,head"
    if cells is not None:
        grid = np.stack(np.meshgrid(*map(np.arange, (n_layers, width["n_heads"], length)), indexing="ij"), -1)
        later = grid[:, :, length // 2 :].reshape(-1, 3)  # before, a patch changes nothing, and such cells do not run
        chosen = later[np.linspace(0, len(later) - 1, cells).astype(int)]
        over = [dict(zip(("layer", "head", "position"), row, strict=True)) for row in chosen.tolist()]
    return model, params, dict(base=base, source=source, site="attn.z", over=over, metric=metric)


def timed(width, rounds, **setting):
    """Seconds of the first call and of a later one, and what the plan says."""
    model, params, how = make_sweep(width, **setting)
    plan = ji.patching.plan(model, params, **how)
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        ji.patching.sweep(model, params, **how, progress=False)
        taken.append(time.perf_counter() - start)
    jax.clear_caches()
    return {
        "seconds": round(statistics.median(taken[1:]), 4),
        "first_call": round(taken[0], 3),
        "cells": plan.n_cells,
        "cells that run": plan.n_run,
        "operations": plan.flops[1],
        "operations of whole forwards": plan.flops[0],
    }


# --------------------------------------------------------------------------------------------------------- memory
def resident(field):
    """A field of /proc/self/status in bytes: VmRSS is now, VmHWM the largest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def child(arguments):
    """In a process of its own: the rise of resident memory over a sweep, as JSON on standard output."""
    width, large = (SMOKE["width"], SMOKE["large"]) if arguments.smoke else (WIDTH, LARGE)
    model, params, how = make_sweep(width, **large)
    how["over"] = "layer,head,position"
    plan = ji.patching.plan(model, params, **how, memory=arguments.budget << 20)
    for _ in range(2):  # the first compiles, and loads what is loaded once
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the largest so far is now
        ji.patching.sweep(model, params, **how, plan=plan, progress=False)
        rise = resident("VmHWM") - before
    print(json.dumps({"rise": rise, "plan": plan.bytes_peak}))


def memory(budgets, smoke):
    """Rise and estimate in MiB for each budget; None where the system does not tell."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    found = []
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for budget in budgets:
        command = [sys.executable, __file__, "--child", "--budget", str(budget), *["--smoke"] * smoke]
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        got = json.loads(out.splitlines()[-1])
        mib = {name: round(value / 2**20, 1) for name, value in got.items()}
        ratio = round(got["rise"] / got["plan"], 3)
        found.append({"budget_MiB": budget, "rise_MiB": mib["rise"], "plan_MiB": mib["plan"], "rise / plan": ratio})
    return found


# ---------------------------------------------------------------------------------------------------------- plots
def draw(result, file):
    """One panel for each thing that changes, and one for memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 5, figsize=(20, 3.8), layout="constrained")
    for panel, (name, rows) in zip(panels, result["time"].items(), strict=False):
        x = [row["value"] for row in rows]
        panel.plot(x, [row["seconds"] for row in rows], "o-", label="a later call")
        panel.plot(x, [row["first_call"] for row in rows], "s--", color="0.6", label="the first call, which compiles")
        panel.set(xscale="log", yscale="log", xlabel=LABELS[name], ylabel="seconds")
        panel.set_xticks(x, [str(i) for i in x], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    rows = result["memory"] or []
    panels[-1].plot([r["plan_MiB"] for r in rows], [r["rise_MiB"] for r in rows], "o")
    top = max((max(r["plan_MiB"], r["rise_MiB"]) for r in rows), default=1)
    panels[-1].plot([0, top], [0, top], color="0.6", linewidth=1)
    panels[-1].set(xlabel="the plan's estimate, MiB", ylabel="rise of resident memory, MiB")
    panels[-1].grid(alpha=0.3)
    figure.suptitle(result["work"], fontsize=10)
    figure.savefig(file, dpi=120)


def main():
    """Prints the times, writes them and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--axes", nargs="*", choices=list(VALUES), default=list(VALUES))
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round; writes only to a given --out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    width, middle, values, budgets, rounds = WIDTH, MIDDLE, VALUES, BUDGETS, arguments.rounds
    if arguments.smoke:
        width, middle, values, budgets, rounds = (*(SMOKE[k] for k in ("width", "middle", "values", "budgets")), 1)
    shape = f"{middle['n_layers']} layers of width {width['d_model']}, {middle['prompts']} x {middle['length']} tokens"
    result = {"work": f"sweep of attn.z, {shape} but for what changes, one core", "rounds": rounds, "time": {}}
    for name in arguments.axes:
        result["time"][name] = []
        for value in values[name]:
            row = {"value": value, **timed(width, rounds, **{**middle, name: value})}
            result["time"][name].append(row)
            print(name, json.dumps(row), flush=True)
    result["memory"] = memory(budgets, arguments.smoke)
    print("memory", json.dumps(result["memory"]))
    out = arguments.out or (None if arguments.smoke else Path(__file__).with_suffix(".json"))
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")
        draw(result, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
