"""Recovery of planted dictionaries: `python -m experiments.sae_planted.run --out FOLDER [--parts NAME ...] [--smoke]`.

Each part writes its rows into FOLDER/results.json as soon as it is done, beside those that are there.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

from jaxinterp import saes, viz
from jaxinterp.activations import from_function
from jaxinterp.tasks import Planted, planted

G, WIDTH, ACTIVE, BATCH = 256, 64, 4.0, 1024
PROBED = 32
KINDS = {
    "uniform": {},
    "zipf": dict(frequencies="zipf"),
    "hierarchy": dict(parents=[-1] * (G // 2) + list(range(G // 2))),
    "correlated": dict(group_size=4, correlation=0.5),
}


class Setting:
    """The sizes of a run."""

    def __init__(self, smoke: bool = False):
        self.smoke = smoke
        self.seeds = 1 if smoke else 5
        self.held_out = 2048 if smoke else 16_384

    def steps(self, many: int) -> int:
        return 20 if self.smoke else many


def truths(kind: str, seeds: range) -> list[Planted]:
    """One planted dictionary a seed."""
    return [planted(jax.random.key(100 + i), n_directions=G, width=WIDTH, active=ACTIVE, **KINDS[kind]) for i in seeds]


def stream_of(planted: list[Planted]):
    """A site "x.i" for each planted dictionary."""

    def sample(key, n):
        return {f"x.{i}": one.sample(jax.random.fold_in(key, i), n)["x"] for i, one in enumerate(planted)}

    return from_function(sample, batch_size=BATCH, key=jax.random.key(7))


def make_config(architecture, n_latents: int, *, steps: int, rate: float, seed: int, site: str) -> saes.TrainConfig:
    """Adam; 5 % warm-up of rate and penalty, linear decay over the last half; dead after 100,000 rows."""
    return saes.TrainConfig(
        sae=saes.SAEConfig(architecture=architecture, d_in=WIDTH, n_latents=n_latents, site=site),
        steps=steps, learning_rate=rate, warmup_steps=steps // 20, decay_steps=steps // 2, sparsity_warmup_steps=steps // 20,
        seed=seed, log_every=steps, dead_after=100_000,
    )  # fmt: skip


def measure(sae: saes.SAE, truth: Planted, setting: Setting) -> dict:
    """Every number of one dictionary, on rows that it was not trained on."""
    rows = truth.sample(jax.random.key(1_000), setting.held_out)
    seen = saes.evaluate(sae, rows["x"])
    found = saes.recovery(sae, truth.directions, alive=seen.firing_rate > 0, rows=rows["x"])
    ratio = saes.amplitude_ratio(sae, found, rows["x"], rows["amounts"])
    chance = saes.evaluate(
        saes.random_dictionary(sae.config, jax.random.key(3), rows["x"], l0=None if is_topk(sae) else seen.l0),
        rows["x"],
    )
    numbers = {**seen.summary(), **found.summary(), "amplitude_ratio": ratio, "random_fvu": chance.fvu}
    others = truth.sample(jax.random.key(1_001), setting.held_out)
    probes = saes.sparse_probes(  # of whether a direction is active, for some of them
        sae, rows["x"], rows["amounts"][:, :PROBED] > 0, (others["x"], others["amounts"][:, :PROBED] > 0), sizes=(1,)
    )  # fmt: skip
    numbers |= {f"probe_{name}": getattr(probes, name).mean() for name in ("latents", "coordinates", "dense")}
    if bool((truth.parents >= 0).any()):
        taken = saes.absorption(sae, truth, found, rows["x"], rows["amounts"]).summary()
        numbers |= {f"absorption_{name}": value for name, value in taken.items()}
    return {name: round(float(value), 4) if np.isfinite(value) else None for name, value in numbers.items()}


def is_topk(sae: saes.SAE) -> bool:
    return sae.config.architecture.name == "topk"


def seeds_of(
    setting: Setting, architecture, *, n_latents: int, steps: int, rate: float, kind: str = "uniform", seeds: int = 5
) -> dict:
    """One ensemble over seeds: of the planted dictionary, of its data and of the first parameters."""
    planted = truths(kind, range(min(seeds, setting.seeds)))
    steps = setting.steps(steps)
    configs = [
        make_config(architecture, n_latents, steps=steps, rate=rate, seed=i, site=f"x.{i}") for i in range(len(planted))
    ]
    start = time.perf_counter()
    trained = saes.train_ensemble(configs, stream_of(planted), progress=False)
    seconds = time.perf_counter() - start
    rows = [measure(sae, truth, setting) for sae, truth in zip(trained, planted, strict=True)]
    mean = {}
    for name in rows[0]:
        known = [row[name] for row in rows if row[name] is not None]
        mean[name] = round(float(np.mean(known)), 4) if known else None
    worst = {name: min(row[name] for row in rows) for name in ("mmcs", "hungarian_recall", "precision")}
    about = {"architecture": saes.described(configs[0].sae)["architecture"], "n_latents": n_latents, "kind": kind}
    settings = {"steps": steps, "learning_rate": rate, "seconds": round(seconds, 1)}
    return {**about, **settings, "mean": mean, "worst": worst, "seeds": rows}


def part_topk(setting: Setting) -> dict:
    """METHODS 8: TopK, G <= M <= 2G."""
    topk = saes.TopK(k=6, auxiliary=None)
    return {f"m{m}": seeds_of(setting, topk, n_latents=m, steps=6000, rate=4e-3) for m in (G, 2 * G)}


def part_l1(setting: Setting) -> dict:
    """METHODS 8: L1, and too small a penalty."""
    out = {}
    for m, coefficient, seeds in ((G, 0.6, 5), (2 * G, 0.6, 5), (G, 0.05, 5)):
        relu = saes.ReLU(l1_coefficient=coefficient)
        out[f"m{m}_{coefficient}"] = seeds_of(setting, relu, n_latents=m, steps=2000, rate=5e-3, seeds=seeds)
    return out


def part_conditions(setting: Setting) -> dict:
    """Other planted data: reported, not gated."""
    topk = saes.TopK(k=6, auxiliary=None)
    return {
        kind: seeds_of(setting, topk, n_latents=G, steps=3000, rate=4e-3, kind=kind)
        for kind in ("zipf", "hierarchy", "correlated")
    }


def part_k(setting: Setting) -> dict:
    """k half and twice as many as are active on average: reported, not gated."""
    k = round(ACTIVE)
    return {
        f"k{n}": seeds_of(setting, saes.TopK(k=n, auxiliary=None), n_latents=G, steps=3000, rate=4e-3)
        for n in (k // 2, k, 2 * k)
    }


def part_pareto(setting: Setting) -> dict:
    """TopK and L1 with the same learning rates tried for each; the best of each sparsity is kept."""
    truth = truths("uniform", range(1))
    steps = setting.steps(1500)
    rates = (4e-3, 8e-3)
    ks = (2, 12) if setting.smoke else (2, 3, 4, 6, 8, 12)
    coefficients = (0.4, 1.2) if setting.smoke else (0.15, 0.3, 0.6, 0.9, 1.2, 1.8)
    families = {
        "topk": [saes.TopK(k=k, auxiliary=None) for k in ks],
        "l1": [saes.ReLU(l1_coefficient=c) for c in coefficients],
    }
    out: dict = {"learning_rates": rates, "steps": steps, "n_latents": G}
    for name, architectures in families.items():
        grid = [(a, rate) for a in architectures for rate in rates]
        configs = [make_config(a, G, steps=steps, rate=rate, seed=0, site="x.0") for a, rate in grid]
        start = time.perf_counter()
        trained = saes.train_ensemble(configs, stream_of(truth), progress=False)
        out[f"{name}_seconds"] = round(time.perf_counter() - start, 1)
        rows = [
            {"sparsity": getattr(a, "k", None) or a.sparsity, "learning_rate": rate, **measure(sae, truth[0], setting)}
            for (a, rate), sae in zip(grid, trained, strict=True)
        ]
        best = {row["sparsity"]: row for row in sorted(rows, key=lambda row: -row["fvu"])}
        out[name] = [best[key] for key in sorted(best)]
    return out


def part_dead(setting: Setting) -> dict:
    """Dead latents with and without AuxK, M = 8G."""
    out = {}
    for name, auxiliary in (("without", None), ("with", saes.AuxK())):
        topk = saes.TopK(k=6, auxiliary=auxiliary)
        out[name] = seeds_of(setting, topk, n_latents=8 * G, steps=1000, rate=2e-3)
    return out


def at_matched_l0(pareto: dict) -> list[dict]:
    """The FVU of TopK, interpolated over log L0, where L1 dictionaries have theirs; outside of TopK's range there is none."""
    topk = sorted((row["l0"], row["fvu"]) for row in pareto["topk"])
    logs, errors = np.log([l0 for l0, _ in topk]), [fvu for _, fvu in topk]
    return [
        {"l0": row["l0"], "l1_fvu": row["fvu"], "topk_fvu": round(float(np.interp(np.log(row["l0"]), logs, errors)), 4)}
        for row in pareto["l1"] if topk[0][0] <= row["l0"] <= topk[-1][0]
    ]  # fmt: skip


def draw(pareto: dict, file: Path) -> None:
    """FVU against L0."""
    families = {"TopK": pareto["topk"], "ReLU with L1": pareto["l1"]}
    control = {"random TopK": [{"l0": row["l0"], "fvu": row["random_fvu"]} for row in pareto["topk"]]}
    viz.plot_pareto(families, control=control, size=f"planted, G = M = {G}, d = {WIDTH}").savefig(file)


PARTS = {
    name.removeprefix("part_"): part
    for name, part in (
        ("part_topk", part_topk), ("part_l1", part_l1), ("part_conditions", part_conditions), ("part_k", part_k),
        ("part_pareto", part_pareto),
        ("part_dead", part_dead),
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--smoke", action="store_true", help="a few steps of each, for tests")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "results.json"
    for name in given.parts:
        results = json.loads(file.read_text()) if file.is_file() else {}
        results[name] = PARTS[name](Setting(given.smoke))
        if name == "pareto":
            results[name]["matched"] = at_matched_l0(results[name])
            draw(results[name], given.out / "pareto.png")
        file.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        print(name, "is done", flush=True)


if __name__ == "__main__":
    main()
