"""The same clamps on other dictionaries, one seed: `python -m experiments.steering.others` (writes others.json here)."""

import json
from pathlib import Path

import numpy as np

from experiments.steering import measure, subject
from experiments.steering.run import SITES, Setting, Subject, latents_of
from jaxinterp import saes

SEED = 0
OTHERS = {
    "TopK, k = 3, of 128 latents": (saes.TopK(k=3, auxiliary=None), 128),
    "TopK, k = 3, of 48": (saes.TopK(k=3, auxiliary=None), 48),
    "TopK, k = 3, of 24": (saes.TopK(k=3, auxiliary=None), 24),
    "TopK, k = 2, of 32": (saes.TopK(k=2, auxiliary=None), 32),
    "BatchTopK, k = 2, of 48": (saes.BatchTopK(k=2, auxiliary=None), 48),
    "Matryoshka (16, 48, 128), k = 3": (saes.Matryoshka(widths=(16, 48), k=3, auxiliary=None), 128),
    "ReLU, L1 of 3, of 48": (saes.ReLU(l1_coefficient=3.0), 48),
}


def clamped(setting: Setting, params: dict, sae: saes.SAE) -> dict:
    """A topic's latent at 5 times its largest activation, and at 0: means over topics, and how many reach the target."""
    one = Subject(setting, SEED, params, sae)
    found, clean = latents_of(one, one.rng), measure.log_probabilities(params, one.measured.tokens)

    def outcome(topic: int, scale: float) -> dict:
        latent, amount = found["latents"][topic], scale * found["largest"][topic]
        logs = measure.log_probabilities(params, one.measured.tokens, measure.clamp, sae, latent, amount)
        return measure.outcome(logs, clean, one.measured, topic)

    up = [float(outcome(topic, 5.0)["none"]) for topic in setting.topics]
    down = [float(outcome(topic, 0.0)["own"]) for topic in setting.topics]
    return {
        "auroc above .95": sum(area > 0.95 for area in found["auroc"]), "5x": round(float(np.mean(up)), 3),
        "5x above .8": sum(p > 0.8 for p in up), "0": round(float(np.mean(down)), 3), "0 below .05": sum(p < 0.05 for p in down),
    }  # fmt: skip


def table(results: dict) -> str:
    """The table of README.md."""
    tell = lambda row: f"{row['5x']:.2f}, {row['5x above .8']} of 8; {row['0']:.2f}, {row['0 below .05']} of 8"
    lines = [["at 5x, above .8; at 0, below .05", *SITES], ["---"] * 3]
    lines += [[name, *(tell(row[site]) for site in SITES)] for name, row in results.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    setting = Setting()
    params, _ = subject.train_model(SEED, steps=setting.model_steps)
    results = {}
    for name, (architecture, n_latents) in OTHERS.items():
        trained = subject.train_dictionaries(
            params, SEED, SITES, steps=setting.steps, n_latents=n_latents, architecture=architecture
        )
        results[name] = {sae.config.site: clamped(setting, params, sae) for sae in trained}
    Path(__file__).with_name("others.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
