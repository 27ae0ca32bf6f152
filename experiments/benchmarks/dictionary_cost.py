"""What a training step of a TopK dictionary costs against its latents, width, batch and k, each changed alone, on one core.

    taskset -c 0 .venv/bin/python -m experiments.benchmarks.dictionary_cost

The points of a line are called turn by turn; a slope of 1 in logarithms is linear.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from jaxinterp import saes

BASE = {"latents": 8192, "width": 256, "batch": 1024, "k": 32}
AXES = {
    "latents": (2048, 4096, 8192, 16_384, 32_768), "width": (64, 128, 256, 512, 1024), "batch": (256, 512, 1024, 2048, 4096),
    "k": (8, 16, 32, 64, 128),
}  # fmt: skip


def stepper(size):
    """A function that takes one step of a dictionary of that size."""
    config = saes.TrainConfig(
        sae=saes.SAEConfig(architecture=saes.TopK(k=size["k"]), d_in=size["width"], n_latents=size["latents"]),
        steps=10**6, learning_rate=1e-4,
    )  # fmt: skip
    program = saes.make_program([config])
    x = jax.random.normal(jax.random.key(0), (size["batch"], size["width"]))
    state = program.first(x, x)

    def step():
        nonlocal state
        state, metrics = program.step(state, x, x)
        jax.block_until_ready((state, metrics))

    return step


def timed(axis, values, rounds):
    """Median seconds of a step at each value of one axis."""
    steps = {value: stepper(BASE | {axis: value}) for value in values}
    seconds = {value: [] for value in values}
    for i in range(rounds + 2):
        for value, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= 2:
                seconds[value].append(time.perf_counter() - start)
    medians = {value: statistics.median(s) for value, s in seconds.items()}
    slope = np.polyfit(np.log(list(medians)), np.log(list(medians.values())), 1)[0]
    top = list(medians.items())[-2:]
    last = np.log(top[1][1] / top[0][1]) / np.log(top[1][0] / top[0][0])
    return {
        "seconds": {str(value): round(s, 4) for value, s in medians.items()},
        "slope": round(float(slope), 2),
        "slope of the last two": round(float(last), 2),
    }


def draw(result, file):
    """Seconds of a step against each axis, in logarithms, beside a line of slope 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), dpi=150, layout="constrained")
    for axes, (name, line) in zip(figure.subplots(1, len(AXES), sharey=True), result["axes"].items(), strict=True):
        sizes, seconds = np.array([int(n) for n in line["seconds"]]), np.array(list(line["seconds"].values()))
        axes.loglog(sizes, seconds, marker="o", markersize=4, color="#0d4a7a")
        axes.loglog(sizes, seconds[-1] * sizes / sizes[-1], color="#b4bcc5", linestyle=":", linewidth=1)
        axes.set_xticks(sizes, [str(n) for n in sizes], fontsize=7)
        axes.minorticks_off()
        axes.set_title(f"{name}: slope {line['slope']}", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds of a step (dotted: linear)", fontsize=8)
    figure.savefig(file)


def main():
    """Prints the table, writes it and the figure beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("dictionary_cost.json"))
    arguments = parser.parse_args()
    result = {"work": "TopK training step, float32, Adam, one core", "base": BASE, "rounds": arguments.rounds}
    result["axes"] = {axis: timed(axis, values, arguments.rounds) for axis, values in AXES.items()}
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    draw(result, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
