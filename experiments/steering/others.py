"""The same clamps on other dictionaries, one seed: `python -m experiments.steering.others` writes others.json."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.steering import measure, subject
from experiments.steering.run import SITES, Setting, Subject, latents_of
from jaxinterp import saes

SEED = 1
SETTING = Setting()


class Other(NamedTuple):
    """Another dictionary, or another length of training."""

    architecture: saes.Architecture
    n_latents: int = SETTING.n_latents
    steps: int = SETTING.steps
    model_steps: int = SETTING.model_steps


TOPK = saes.TopK(k=3, auxiliary=None)
OTHERS = {
    "TopK, k = 3, of 128 latents": Other(TOPK),
    "the same, 2,000 batches": Other(TOPK, steps=2_000),
    "the same, 600 batches": Other(TOPK, steps=600),
    "the same, model of 600 steps": Other(TOPK, model_steps=600),
    "the same, 600 batches, model of 600 steps": Other(TOPK, steps=600, model_steps=600),
    "TopK, k = 3, of 48": Other(TOPK, 48),
    "TopK, k = 4, of 256": Other(saes.TopK(k=4, auxiliary=None), 256),
    "BatchTopK, k = 3, of 128": Other(saes.BatchTopK(k=3, auxiliary=None)),
    "Matryoshka (16, 48, 128), k = 3": Other(saes.Matryoshka(widths=(16, 48), k=3, auxiliary=None)),
    "ReLU, L1 of 3, of 128": Other(saes.ReLU(l1_coefficient=3.0)),
}


def clamped(params: dict, sae: saes.SAE) -> dict:
    """A topic's latent at 5 times its largest activation, and at 0: means over topics, and how many reach the target."""
    one = Subject(SETTING, SEED, params, sae)
    found, clean = latents_of(one, one.rng), measure.log_probabilities(params, one.measured.tokens)

    def outcome(topic: int, scale: float) -> dict:
        latent, amount = found["latents"][topic], scale * found["largest"][topic]
        logs = measure.log_probabilities(params, one.measured.tokens, measure.clamp, sae, latent, amount)
        return measure.outcome(logs, clean, one.measured, topic)

    up = [float(outcome(topic, 5.0)["none"]) for topic in SETTING.topics]
    down = [float(outcome(topic, 0.0)["own"]) for topic in SETTING.topics]
    return {
        "auroc above .95": sum(area > 0.95 for area in found["auroc"]), "5x": round(float(np.mean(up)), 3),
        "5x above .8": sum(p > 0.8 for p in up), "0": round(float(np.mean(down)), 3), "0 below .05": sum(p < 0.05 for p in down),
    }  # fmt: skip


if __name__ == "__main__":
    model = functools.cache(lambda steps: subject.train_model(SEED, steps=steps)[0])
    results = {}
    for name, other in OTHERS.items():
        params = model(other.model_steps)
        trained = subject.train_dictionaries(
            params, SEED, SITES, steps=other.steps, n_latents=other.n_latents, architecture=other.architecture
        )
        results[name] = {sae.config.site: clamped(params, sae) for sae in trained}
        print(name, "is done", flush=True)
    Path(__file__).with_name("others.json").write_text(json.dumps(results, indent=1) + "\n")
