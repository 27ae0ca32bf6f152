"""Steering by latents and by mean differences: `python -m experiments.steering.run --out FOLDER [--seeds 1 2 3 4 5] [--smoke]`.

Each seed writes its numbers into FOLDER/results.json as soon as it is done, beside those that are there.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.steering import measure, subject
from experiments.steering.measure import clamp, hold, push, remove
from experiments.steering.subject import ASK, GRAMMAR, MODEL, N_CTX, WARM
from jaxinterp import saes

SITES = ["resid_post.0", "resid_post.1"]
SCALES = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
TOLD = (1.0, 2.0, 5.0, 10.0)


class Setting:
    """The sizes of a run."""

    def __init__(self, smoke: bool = False):
        self.model_steps, self.steps = (3, 3) if smoke else (2400, 12_000)
        self.n_latents, self.k = (32, 3) if smoke else (128, 3)
        self.documents, self.measured, self.prompts = (64, 32, 4) if smoke else (512, 128, 32)
        self.controls = 1 if smoke else 2
        self.topics = range(1 if smoke else GRAMMAR.n_topics)
        self.scales, self.told = ((1.0, 5.0), (5.0,)) if smoke else (SCALES, TOLD)


class Subject:
    """A trained model with one dictionary, two sets of documents and what is known of its latents."""

    def __init__(self, setting: Setting, seed: int, params: dict, sae: saes.SAE):
        self.setting, self.params, self.sae = setting, params, sae
        keys = jax.random.split(jax.random.key(5_000 + seed), 4)
        self.keys = keys
        sample = lambda key, n: GRAMMAR.sample(key, n, n_ctx=N_CTX)
        self.chosen_on, self.held_out = (sample(key, setting.documents) for key in keys[:2])
        self.acts = [subject.encoded(params, sae, documents) for documents in (self.chosen_on, self.held_out)]
        behind = self.acts[0][:, 1:]
        self.largest, self.density = behind.max((0, 1)), (behind > 0).mean((0, 1))
        self.rng = np.random.default_rng(seed)
        self.measured = jax.tree.map(lambda x: x[: setting.measured], self.held_out)

    def rows(self, *, slots: bool = True) -> tuple:
        """Latents and topics of the documents for choosing, and of the held-out ones."""
        both = zip(self.acts, (self.chosen_on, self.held_out), strict=True)
        return tuple(x for acts, documents in both for x in subject.topic_rows(acts, documents, slots=slots))

    def alike(self, latent: int, taken: list[int], density: np.ndarray | None = None) -> np.ndarray:
        """Latents drawn at random from the 16 nearest in (log) density that are not `taken`."""
        density = self.density if density is None else density
        distance = np.abs(np.log(np.maximum(density, 1e-9)) - np.log(max(density[latent], 1e-9)))
        distance[[latent, *taken]] = np.inf
        return self.rng.choice(np.argsort(distance, kind="stable")[:16], self.setting.controls, replace=False)

    def directions(self) -> list:
        """Random directions of length 1."""
        drawn = self.rng.standard_normal((self.setting.controls, MODEL.config.d_model))
        return list(jnp.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), jnp.float32))


def latents_of(one: Subject, shuffled: np.random.Generator) -> dict:
    """The best latent for each topic, and the same with the topics of documents shuffled."""
    latents, held = subject.find(*one.rows())
    acts, _, held_acts, _ = everywhere = one.rows(slots=False)
    everywhere = subject.auroc(held_acts, everywhere[3])
    acts, labels, held_acts, held_labels = one.rows()
    mixed = subject.find(acts, shuffled.permutation(labels), held_acts, shuffled.permutation(held_labels))[1]
    return {
        "latents": latents, "auroc": held, "auroc_everywhere": [float(everywhere[i, j]) for j, i in enumerate(latents)],
        "auroc_shuffled": mixed, "density": one.density[latents].tolist(), "largest": one.largest[latents].tolist(),
    }  # fmt: skip


def steer(one: Subject, found: dict, vectors, levels) -> list[dict]:
    """Every intervention on every topic, over scales; a scale of 1 is the latent's largest activation."""
    clean = measure.log_probabilities(one.params, one.measured.tokens)
    rows: list[dict] = []

    def cell(method: str, topic: int, scale: float, make=None, *data) -> None:
        logs = clean if make is None else measure.log_probabilities(one.params, one.measured.tokens, make, *data)
        numbers = measure.outcome(logs, clean, one.measured, topic)
        rows.append({"method": method, "topic": topic, "scale": scale, **{k: float(v) for k, v in numbers.items()}})

    for topic in one.setting.topics:
        latent, largest = found["latents"][topic], found["largest"][topic]
        v = vectors[topic] / jnp.linalg.norm(vectors[topic])
        cell("nothing", topic, 0.0)
        cell("latent", topic, 0.0, clamp, one.sae, latent, 0.0)
        cell("difference removed", topic, 0.0, remove, one.sae, v)
        cell("difference held", topic, 0.0, hold, one.sae, v, levels[topic])
        controls, directions = one.alike(latent, found["latents"]), one.directions()
        for other, direction in zip(controls, directions, strict=True):
            cell("random latent", topic, 0.0, clamp, one.sae, int(other), 0.0)
            cell("random direction removed", topic, 0.0, remove, one.sae, direction)
        for scale in one.setting.scales:
            cell("latent", topic, scale, clamp, one.sae, latent, scale * largest)
            cell("difference", topic, scale, push, one.sae, scale * largest * v)
            for other, direction in zip(controls, directions, strict=True):
                if scale in one.setting.told:
                    cell("random latent", topic, scale, clamp, one.sae, int(other), scale * largest)
                    cell("random direction", topic, scale, push, one.sae, scale * largest * direction)
    return rows


def write(one: Subject, found: dict, vectors) -> list[dict]:
    """Generated text: prompts of documents without a topic, continued."""
    none = np.flatnonzero(np.asarray(one.held_out.topic) == GRAMMAR.n_topics)[: one.setting.prompts]
    prompts, rows = one.held_out.tokens[none, :WARM], []

    def cell(method: str, topic: int, scale: float, make=None, *data) -> None:
        text = measure.continued(one.params, prompts, one.keys[2], make, *data)
        rows.append({"method": method, "topic": topic, "scale": scale, **measure.text_outcome(text, topic)})

    for topic in one.setting.topics:
        latent, largest = found["latents"][topic], found["largest"][topic]
        v = vectors[topic] / jnp.linalg.norm(vectors[topic])
        other, direction = int(one.alike(latent, found["latents"])[0]), one.directions()[0]
        cell("nothing", topic, 0.0)
        for scale in (1.0, 2.0, 5.0):
            cell("latent", topic, scale, clamp, one.sae, latent, scale * largest)
            cell("difference", topic, scale, push, one.sae, scale * largest * v)
        cell("random latent", topic, scale, clamp, one.sae, other, scale * largest)
        cell("random direction", topic, scale, push, one.sae, scale * largest * direction)
    return rows


def refuse(one: Subject) -> dict:
    """The latent that tells at a question whether the trigger was there: clamped to 0, and clamped on."""
    asks = [np.asarray(documents.kind) == ASK for documents in (one.chosen_on, one.held_out)]
    triggered = [np.asarray(d.triggered)[a][:, None] for d, a in zip((one.chosen_on, one.held_out), asks, strict=True)]
    acts = [x[a] for x, a in zip(one.acts, asks, strict=True)]
    (latent,), (area,) = subject.find(acts[0], triggered[0], acts[1], triggered[1])
    rows = np.asarray(subject.residuals(one.params, one.sae, one.chosen_on.tokens))[asks[0]]
    v = subject.mean_differences(rows, triggered[0])[0]
    largest = float(acts[0][:, latent].max())
    density = (acts[0][triggered[0][:, 0]] > 0).mean(0)  # at questions behind a trigger
    result = {"latent": latent, "auroc": area, "largest": largest, "density": float(density[latent]), "cells": []}

    def cell(method: str, scale: float, make=None, *data) -> None:
        logs = measure.log_probabilities(one.params, one.held_out.tokens, make, *data)
        result["cells"].append({"method": method, "scale": scale, **measure.refusals(logs, one.held_out)})

    cell("nothing", 0.0)
    cell("latent", 0.0, clamp, one.sae, latent, 0.0)
    cell("difference removed", 0.0, remove, one.sae, v)
    v = v / jnp.linalg.norm(v)
    cell("difference held", 0.0, hold, one.sae, v, float((rows[~triggered[0][:, 0]] @ np.asarray(v)).mean()))
    for other, direction in zip(one.alike(latent, [], density), one.directions(), strict=True):
        cell("random latent", 0.0, clamp, one.sae, int(other), 0.0)
        cell("random direction removed", 0.0, remove, one.sae, direction)
        cell("random latent", 1.0, clamp, one.sae, int(other), largest)
    for scale in (1.0, 2.0, 5.0):
        cell("latent", scale, clamp, one.sae, latent, scale * largest)
        cell("difference", scale, push, one.sae, scale * largest * v)
    return result


def run_seed(setting: Setting, seed: int) -> dict:
    """Every number of one seed: of the model, its data and its dictionaries."""
    start = time.perf_counter()
    params, loss = subject.train_model(seed, steps=setting.model_steps)
    result = {"loss": loss, "seconds": {"model": time.perf_counter() - start}}
    topk = saes.TopK(k=setting.k, auxiliary=None)
    how = dict(steps=setting.steps, n_latents=setting.n_latents, architecture=topk)
    untrained = MODEL.init(jax.random.key(9_000 + seed))
    dictionaries = subject.train_dictionaries(params, seed, SITES, **how)
    controls = subject.train_dictionaries(untrained, seed, SITES, **how)
    result["seconds"]["dictionaries"] = time.perf_counter() - start - result["seconds"]["model"]
    for sae, control in zip(dictionaries, controls, strict=True):
        one = Subject(setting, seed, params, sae)
        found = latents_of(one, one.rng)
        found["auroc_untrained"] = subject.find(*Subject(setting, seed, untrained, control).rows())[1]
        result[sae.config.site] = measured(one, found)
    result["seconds"]["all"] = time.perf_counter() - start
    return result


def measured(one: Subject, found: dict) -> dict:
    """Every number of one dictionary."""
    rows = np.asarray(subject.residuals(one.params, one.sae, one.chosen_on.tokens))
    rows, labels = subject.topic_rows(rows, one.chosen_on, slots=True)
    vectors = subject.mean_differences(rows, labels)
    units = np.asarray(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    levels = [float((rows[~labels[:, j]] @ units[j]).mean()) for j in range(len(units))]
    written = np.asarray(one.sae.params["W_dec"])[found["latents"]]
    found["cosine_to_difference"] = [float(x) for x in (written * units).sum(1)]
    behind = subject.residuals(one.params, one.sae, one.held_out.tokens)[:, 1:]
    seen = saes.evaluate(one.sae, behind.reshape(-1, behind.shape[-1]))
    return {
        "dictionary": {"fvu": float(seen.fvu), "l0": float(seen.l0)}, "topics": found,
        "steering": steer(one, found, vectors, levels), "text": write(one, found, vectors), "refusal": refuse(one),
    }  # fmt: skip


def rounded(tree):
    """Numbers to four places, for JSON; None for what is not defined."""
    if isinstance(tree, dict):
        return {name: rounded(x) for name, x in tree.items()}
    if isinstance(tree, list | tuple):
        return [rounded(x) for x in tree]
    if isinstance(tree, float):
        return round(tree, 4) if np.isfinite(tree) else None
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--smoke", action="store_true", help="a few steps, for tests")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "results.json"
    for seed in given.seeds:
        results = json.loads(file.read_text()) if file.is_file() else {}
        results[str(seed)] = rounded(run_seed(Setting(given.smoke), seed))
        file.write_text(json.dumps(results, separators=(",", ":"), allow_nan=False) + "\n")
        print("seed", seed, "is done", flush=True)
    from experiments.steering.figure import draw

    draw(json.loads(file.read_text()), given.out / "steering.png")


if __name__ == "__main__":
    main()
