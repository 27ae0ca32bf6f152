"""Every figure of the card of `stories`: `python -m experiments.zoo_stories.evaluate` measures the shipped model."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import jaxinterp as ji
from experiments.zoo_stories import circuit, data, ngram, pronouns
from experiments.zoo_stories.training import nats_per_byte

DATA = Path("../shared/data/tinystories.txt")
OCCURRENCES = 150
"""Names with at least so many in all stories count for the pronoun figure."""

OPENINGS = (
    "Once upon a time, there was a little girl named Lily.",
    "One day, Ben and Anna went to the park.",
    "Tom was sad because he lost his red ball.",
)


def common_names(stories: Sequence[str], least: int) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, int]]:
    """(she-names, he-names) with at least so many occurrences, and the counts of all; "Spot", a dog's name, is left out."""
    counts = pronouns.count_names(stories, data.SHE_NAMES + data.HE_NAMES)
    often = [name for name, count in counts.items() if count >= least and name != "Spot"]
    she = tuple(name for name in data.SHE_NAMES if name in often)
    return she, tuple(name for name in data.HE_NAMES if name in often), counts


def language_figures(lm: ji.LanguageModel, train: Sequence[str], held_out: Sequence[str], *, order: int = 8) -> dict:
    """Cost of held-out and (as many) training stories, and of the n-grams on the held-out ones."""
    figures = {}
    samples = {"held_out": held_out, "first_ten_held_out": held_out[:10], "training_sample": train[: len(held_out)]}
    for name, texts in samples.items():
        ids = data.encode(lm.tokenizer.backend, texts)
        figures[f"{name}_nats_per_byte"] = nats_per_byte(lm.model, lm.params, ids, data.count_bytes(texts))
    ids = data.encode(lm.tokenizer.backend, held_out)
    tokens = sum(len(story) + 1 for story in ids)
    figures["held_out_nats_per_token"] = figures["held_out_nats_per_byte"] * data.count_bytes(held_out) / tokens
    figures["bytes_per_token"] = data.count_bytes(held_out) / (tokens - len(ids))
    grams = {k: v for k, v in ngram.nats_per_byte(ngram.train(train, order), held_out).items() if k >= 3}
    best = min(grams, key=grams.__getitem__)
    figures["ngram_nats_per_byte"] = {str(k): v for k, v in grams.items()}
    figures["best_ngram_order"] = best
    figures["below_best_ngram"] = grams[best] - figures["held_out_nats_per_byte"]
    return figures


def pronoun_figures(lm: ji.LanguageModel, stories: Sequence[str], held_out: Sequence[str], least: int) -> dict:
    """Pronouns after openings about common names, about the rarer ones, and in the held-out stories."""
    she, he, counts = common_names(stories, least)
    rows, weights = data.scoring_windows(data.encode(lm.tokenizer.backend, held_out), lm.config.n_ctx)
    rarer = [[name for name in group if name not in she + he] for group in (data.SHE_NAMES, data.HE_NAMES)]
    return {
        "common_names": pronouns.accuracy(lm, she, he),
        "rarer_names": pronouns.accuracy(lm, *rarer) if any(rarer) else {},
        "occurrences": counts,
        "in_held_out_stories": pronouns.in_stories(lm, rows, weights),
    }


def figures(
    lm: ji.LanguageModel,
    stories: Sequence[str],
    *,
    order: int = 8,
    least: int = OCCURRENCES,
    openings: int = 3,
    **study,
) -> dict:
    """All of them, and greedy continuations; `study` goes to `circuit.study`."""
    train, held_out = data.split(stories)
    return {
        "parameters": int(sum(np.prod(x.shape) for x in jax.tree.leaves(lm.params))),
        "stories": {"training": len(train), "held_out": len(held_out)},
        **language_figures(lm, train, held_out, order=order),
        "pronouns": pronoun_figures(lm, stories, held_out, least),
        "circuit": circuit.study(lm, **study),
        "continuations": [lm.generate(opening, min(60, lm.config.n_ctx // 2)) for opening in OPENINGS[:openings]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None, help="a checkpoint folder; default: the zoo's")
    parser.add_argument("--data", type=Path, default=DATA, help="the stories")
    arguments = parser.parse_args()
    lm = ji.zoo.load("stories") if arguments.model is None else ji.load(arguments.model)
    print(json.dumps(figures(lm, data.read_stories(arguments.data)), indent=1))


if __name__ == "__main__":
    main()
