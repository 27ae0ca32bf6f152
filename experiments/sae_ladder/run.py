"""A ladder of dictionaries on stories260k: `python -m experiments.sae_ladder.run --model FOLDER --text FILE --out FOLDER`.

Each part writes its rows into OUT/results.json as soon as it is done, beside those that are there.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np

from jaxinterp import saes, viz
from jaxinterp.activations import ActivationStream, read_tokens
from jaxinterp.weights import load

N_LATENTS, K, F1 = 512, 8, 0.8


class Setting:
    """The model, its texts, and the sizes of a run."""

    def __init__(self, model: str, text: str, smoke: bool = False):
        self.lm, self.smoke = load(model), smoke
        stories = [part.strip() for part in Path(text).read_text(encoding="utf-8").split("<|endoftext|>")]
        stories = [part for part in stories if part][: 30 if smoke else None]
        self.held_out, self.train = stories[::20], [part for i, part in enumerate(stories) if i % 20]
        self.steps, self.batch_size, self.seeds = (12, 128, 2) if smoke else (1000, 1024, 3)
        self.site = f"resid_post.{self.lm.config.n_layers // 2}"
        self.params = {
            "trained": self.lm.params,
            "random weights": saes.random_weights(self.lm.params, jax.random.key(11)),
        }
        self.texts = self.lm.tokenizer.str_tokens(range(self.lm.config.d_vocab))
        self.special = self.tokens(self.held_out).special_ids

    def tokens(self, stories, epochs=1, seed=None):
        return read_tokens(stories, self.lm.tokenizer, n_ctx=128, batch_size=16, seed=seed, epochs=epochs)

    def stream(self, stories, sites, *, weights="trained", epochs=None, seed=1):
        tokens = self.tokens(stories, epochs, seed)
        return ActivationStream(
            self.lm.model, self.params[weights], tokens, sites, batch_size=self.batch_size, key=jax.random.key(2)
        )

    def config(
        self, architecture, *, n_latents=N_LATENTS, site=None, seed=0, rate=2e-3, steps=None
    ) -> saes.TrainConfig:
        """Adam, a warm-up of 5 %, a linear decay over the last 20 %; dead after 200,000 rows without firing."""
        steps = steps or self.steps
        sae = saes.SAEConfig(
            architecture=architecture, d_in=self.lm.config.d_model, n_latents=n_latents, site=site or self.site,
            normalize="sqrt_d",
        )  # fmt: skip
        return saes.TrainConfig(
            sae=sae, steps=steps, learning_rate=rate, warmup_steps=steps // 20, decay_steps=steps // 5,
            sparsity_warmup_steps=steps // 20, seed=seed, log_every=steps, dead_after=200_000,
        )  # fmt: skip


def train(setting: Setting, configs: list[saes.TrainConfig], weights: str = "trained") -> tuple[list[saes.SAE], float]:
    """An ensemble on one stream, and its seconds."""
    sites = sorted({config.sae.site for config in configs})
    start = time.perf_counter()
    stream = setting.stream(setting.train, sites, weights=weights)
    return saes.train_ensemble(configs, stream, progress=False), time.perf_counter() - start


def measure(setting: Setting, sae: saes.SAE, weights: str = "trained") -> dict:
    """One row of the table, beside the random dictionary of the same kind, size and L0; all on held-out stories."""
    params, site = setting.params[weights], sae.config.site
    rows = next(setting.stream(setting.train, [site], weights=weights))[site]
    own = _numbers(setting, sae, params, site, weights)
    shuffled = described(setting, sae, params, shuffle=jax.random.key(8))
    l0 = None if isinstance(sae.config.architecture, saes.TopK) else own["l0"]
    chance = saes.random_dictionary(sae.config, jax.random.key(5), rows, l0=l0)
    random = _numbers(setting, chance, params, site, weights)
    architecture = sae.config.architecture
    about = {"kind": architecture.name, "n_latents": sae.config.n_latents, "site": site, "model": weights}
    control = {name: random[name] for name in ("fvu", "over_zero", "over_mean", "described")}
    return {**about, **own, "described_shuffled": shuffled.count(F1), "random": control}


def _numbers(setting: Setting, sae: saes.SAE, params, site: str, weights: str) -> dict:
    seen = saes.evaluate(sae, setting.stream(setting.held_out, [site], weights=weights, epochs=1))
    lost = saes.loss_recovered(sae, setting.lm.model, params, setting.tokens(setting.held_out), exclude=setting.special)
    found = described(setting, sae, params)
    numbers = {name: getattr(seen, name) for name in ("fvu", "l0", "dead", "norm_ratio")}
    numbers |= {name: getattr(lost, name) for name in ("clean", "spliced", "zero", "mean", "over_zero", "over_mean")}
    numbers = {name: round(float(value), 4) if np.isfinite(value) else None for name, value in numbers.items()}
    return {**numbers, "described": found.count(F1), "kinds": by_kind(found)}


def described(setting: Setting, sae: saes.SAE, params, shuffle=None) -> saes.Predicates:
    """Predicates chosen on an eighth of the stories to train on, judged on the held-out ones."""
    keys = (None, None) if shuffle is None else tuple(jax.random.split(shuffle))
    count = lambda batches, key: saes.count_tokens(
        sae, setting.lm.model, params, batches, exclude=setting.special, shuffle=key
    )
    return saes.predicates(
        count(setting.tokens(setting.train[::8]), keys[0]),
        count(setting.tokens(setting.held_out), keys[1]),
        setting.texts,
    )


def by_kind(found: saes.Predicates) -> dict[str, int]:
    """How many latents each kind of predicate describes."""
    kinds = found.dataset()["kind"].values[found.described(F1)]
    return {str(kind): int((kinds == kind).sum()) for kind in sorted(set(kinds))}


def part_sparsity(setting: Setting) -> dict:
    """TopK at five sparsities, in one program; on the trained model, and on the one of random weights."""
    ks = (2, 8) if setting.smoke else (2, 4, 8, 16, 32)
    out = {}
    for weights in setting.params:
        configs = [setting.config(saes.TopK(k=k)) for k in ks]
        trained, seconds = train(setting, configs, weights)
        out[weights] = [measure(setting, sae, weights) for sae in trained]
        out[f"{weights}, seconds"] = round(seconds, 1)
    return out


def part_size(setting: Setting) -> dict:
    """TopK of five sizes."""
    sizes = (128, 256) if setting.smoke else (128, 256, 1024, 2048)
    rows = []
    for n in sizes:
        [sae], seconds = train(setting, [setting.config(saes.TopK(k=K), n_latents=n)])
        rows.append({**measure(setting, sae), "seconds": round(seconds, 1)})
    return {"rows": rows}


def part_layers(setting: Setting) -> dict:
    """TopK at each layer, in one program on one forward pass."""
    sites = [f"resid_post.{i}" for i in range(setting.lm.config.n_layers)][: 2 if setting.smoke else None]
    trained, seconds = train(setting, [setting.config(saes.TopK(k=K), site=site) for site in sites])
    return {"rows": [measure(setting, sae) for sae in trained], "seconds": round(seconds, 1)}


RATES = (2e-3, 6e-3)
FAMILIES = {
    "topk": [saes.TopK(k=k) for k in (4, 8, 16)],
    "batch_topk": [saes.BatchTopK(k=k) for k in (4, 8, 16)],
    "matryoshka": [saes.Matryoshka(widths=(64, 128, 256), k=k) for k in (4, 8, 16)],
    "relu": [saes.ReLU(l1_coefficient=c) for c in (1.0, 2.0, 4.0)],
    "jump_relu": [saes.JumpReLU(l0_coefficient=c, threshold=1.0, bandwidth=1.0) for c in (0.3, 1.0, 3.0)],
    "gated": [saes.Gated(l1_coefficient=c) for c in (2.0, 4.0, 6.0)],
}
"""A short run moves a threshold little, so that of JumpReLU begins at 1: rows have a length of 8 here."""


def part_families(setting: Setting) -> dict:
    """Each architecture at three sparsities, each at the same two learning rates: the better one on texts to train on is told."""
    out: dict = {"learning_rates": RATES}
    for name, architectures in FAMILIES.items():
        grid = [(a, rate) for a in architectures[: 1 if setting.smoke else None] for rate in RATES]
        trained, seconds = train(setting, [setting.config(a, rate=rate) for a, rate in grid])
        errors = [
            saes.evaluate(sae, setting.stream(setting.train[::40], [setting.site], epochs=1)).fvu for sae in trained
        ]
        rows = []
        for first in range(0, len(grid), len(RATES)):
            best = first + int(np.argmin(errors[first : first + len(RATES)]))
            architecture, rate = grid[best]
            about = {"sparsity": getattr(architecture, "k", None) or architecture.sparsity, "learning_rate": rate}
            rows.append({**measure(setting, trained[best]), **about})
        out[name], out[f"{name}, seconds"] = rows, round(seconds, 1)
    return out


def part_ablation(setting: Setting) -> dict:
    """What single latents do to the next token's logits, beside changes of the same length in random directions."""
    [sae], _ = train(setting, [setting.config(saes.TopK(k=K))])
    seen = saes.evaluate(sae, setting.stream(setting.held_out, [setting.site], epochs=1))
    often = np.argsort(-np.asarray(seen.firing_rate))[: 4 if setting.smoke else 64]
    batch = next(setting.tokens(setting.held_out))
    found = saes.ablation_effects(sae, setting.lm.model, setting.lm.params, batch, often, exclude=setting.special)
    names = ("effect", "spread", "random_effect", "random_spread")
    return {"latents": len(often)} | {name: round(float(np.nanmean(getattr(found, name))), 4) for name in names}


def part_steps(setting: Setting) -> dict:
    """TopK trained for longer; two seeds on the same rows, of which the first is told."""
    rows = []
    for steps in (4, 8) if setting.smoke else (1_000, 4_000, 16_000):
        trained, seconds = train(setting, [setting.config(saes.TopK(k=K), seed=seed, steps=steps) for seed in range(2)])
        shared = compared(setting, trained)["mean"]["recall"]
        rows.append({"steps": steps, **measure(setting, trained[0]), "shared": shared, "seconds": round(seconds, 1)})
    return {"rows": rows}


def part_seeds(setting: Setting) -> dict:
    """How far dictionaries of other seeds have the same latents: the decoder of one against that of the next."""
    configs = [setting.config(saes.TopK(k=K), seed=seed) for seed in range(setting.seeds)]
    return compared(setting, train(setting, configs)[0])


def compared(setting: Setting, trained: list[saes.SAE]) -> dict:
    """The live latents of each dictionary against those of each later one."""
    held_out = list(setting.stream(setting.held_out, [setting.site], epochs=1))
    alive = [np.asarray(saes.evaluate(sae, held_out).firing_rate) > 0 for sae in trained]
    pairs = []
    for i, j in itertools.combinations(range(len(trained)), 2):
        truth = trained[j].params["W_dec"][alive[j]]
        found = saes.recovery(trained[i], truth, alive=alive[i], threshold=0.7).summary()
        pairs.append({name: round(value, 4) for name, value in found.items()})
    mean = {name: round(float(np.mean([pair[name] for pair in pairs])), 4) for name in pairs[0]}
    return {"threshold": 0.7, "alive": [int(mask.sum()) for mask in alive], "pairs": pairs, "mean": mean}


PARTS = {
    "sparsity": part_sparsity,
    "size": part_size,
    "layers": part_layers,
    "families": part_families,
    "steps": part_steps,
    "seeds": part_seeds,
    "ablation": part_ablation,
}


def draw(results: dict, file: Path) -> None:
    """FVU against L0."""
    topk = results["sparsity"]["trained"]
    words = {
        "topk": "TopK",
        "batch_topk": "BatchTopK",
        "matryoshka": "Matryoshka",
        "relu": "ReLU, L1",
        "jump_relu": "JumpReLU",
        "gated": "Gated",
    }
    families = {words[name]: results["families"][name] for name in FAMILIES}
    control = {"random TopK": [{"l0": row["l0"], "fvu": row["random"]["fvu"]} for row in topk]}
    viz.plot_pareto(families, control=control, size=f"stories260k, {topk[0]['site']}, {N_LATENTS} latents").savefig(
        file
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the folder stories260k")
    parser.add_argument("--text", required=True, help="stories, with <|endoftext|> between them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--smoke", action="store_true", help="a few steps of each")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file, setting = given.out / "results.json", Setting(given.model, given.text, given.smoke)
    for name in given.parts:
        results = json.loads(file.read_text()) if file.is_file() else {}
        results[name] = PARTS[name](setting)
        file.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        print(name, "is done", flush=True)
        if {"sparsity", "families"} <= set(results):
            draw(results, given.out / "pareto.png")


if __name__ == "__main__":
    main()
