"""The tables of README.md, made from results.json beside it: `python -m experiments.sae_ladder.summary`."""

import json
from pathlib import Path

from experiments.markdown import filled, table

HERE = Path(__file__).parent
HEADS = (
    "FVU (random)", "L0", "dead", "length", "nats: clean, spliced, zero, mean", "recovered over zero (random)",
    "over mean (random)", "described (random, shuffled)",
)  # fmt: skip
WORDS = {
    "topk": "TopK", "batch_topk": "BatchTopK", "matryoshka": "Matryoshka", "relu": "ReLU, L1", "jump_relu": "JumpReLU",
    "gated": "Gated",
}  # fmt: skip


def cells(row: dict) -> list[str]:
    """One dictionary, with the random one of the same kind, size and L0 in brackets."""
    share = lambda x: "-" if x is None else f"{100 * x:.1f} %"
    random = row["random"]
    both = lambda name: f"{share(row[name])} ({share(random[name])})"
    return [
        f"{row['fvu']:.3f} ({random['fvu']:.2f})", f"{row['l0']:.1f}", share(row["dead"]), f"{row['norm_ratio']:.2f}",
        ", ".join(f"{row[name]:.2f}" for name in ("clean", "spliced", "zero", "mean")), both("over_zero"), both("over_mean"),
        f"{row['described']} ({random['described']}, {row['described_shuffled']})",
    ]  # fmt: skip


def tables(results: dict) -> dict[str, str]:
    """Each table by the name of its marker."""
    by_k = [
        [weights, f"{row['l0']:.0f}", *cells(row)]
        for weights in ("trained", "random weights")
        for row in results["sparsity"][weights]
    ]
    families = [
        [WORDS[name], f"{row['sparsity']:g}", f"{row['learning_rate']:g}", *cells(row)]
        for name in WORDS
        for row in results["families"][name]
    ]
    seeds, ablation = results["seeds"]["mean"], results["ablation"]
    names = ("mmcs", "recall", "hungarian", "hungarian_recall", "random_mmcs", "random_recall", "random_hungarian")
    effects = [
        [f"{ablation['latents']} latents", f"{ablation['effect']:.3f}", f"{ablation['spread']:.3f}"],
        ["random directions", f"{ablation['random_effect']:.3f}", f"{ablation['random_spread']:.3f}"],
    ]
    of = lambda heads, rows: table([*heads, *HEADS], rows)
    return {
        "sparsity": of(["model", "k"], by_k),
        "size": of(["latents"], [[str(row["n_latents"]), *cells(row)] for row in results["size"]["rows"]]),
        "layers": of(["site"], [[row["site"], *cells(row)] for row in results["layers"]["rows"]]),
        "steps": of(
            ["steps", "shared with another seed"],
            [[f"{row['steps']:,}", f"{row['shared']:.2f}", *cells(row)] for row in results["steps"]["rows"]],
        ),
        "families": of(["architecture", "sparsity", "learning rate"], families),
        "seeds": table(names, [[f"{seeds[name]:.3f}" for name in names]]),
        "ablation": table(
            ["", "effect (root mean square of the logits)", "share of the vocabulary that moves"], effects
        ),
    }


if __name__ == "__main__":
    readme = HERE / "README.md"
    readme.write_text(filled(readme.read_text(), tables(json.loads((HERE / "results.json").read_text()))))
