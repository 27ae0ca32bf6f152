"""The tables of README.md, made from results.json beside it: `python -m experiments.sae_ladder.summary`."""

import json
import re
from pathlib import Path

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


def table(first: list[str], rows: list[list[str]]) -> str:
    """A table of GitHub's."""
    heads = [*first, *HEADS]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    stable = "\n".join(
        f"| {' | '.join(line)} |" for line in (names, ["---"] * 7, [f"{seeds[name]:.3f}" for name in names])
    )
    effects = "\n".join([
        "| | effect (root mean square of the logits) | share of the vocabulary that moves |", "| --- | --- | --- |",
        f"| {ablation['latents']} latents | {ablation['effect']:.3f} | {ablation['spread']:.3f} |",
        f"| random directions | {ablation['random_effect']:.3f} | {ablation['random_spread']:.3f} |",
    ])  # fmt: skip
    return {
        "sparsity": table(["model", "k"], by_k),
        "size": table(["latents"], [[str(row["n_latents"]), *cells(row)] for row in results["size"]["rows"]]),
        "layers": table(["site"], [[row["site"], *cells(row)] for row in results["layers"]["rows"]]),
        "steps": table(
            ["steps", "shared with another seed"],
            [[f"{row['steps']:,}", f"{row['shared']:.2f}", *cells(row)] for row in results["steps"]["rows"]],
        ),
        "families": table(["architecture", "sparsity", "learning rate"], families),
        "seeds": stable,
        "ablation": effects,
    }


def filled(page: str, results: dict) -> str:
    """A page with its tables between their markers."""
    for name, text in tables(results).items():
        page = re.sub(rf"(?s)(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
    return page


if __name__ == "__main__":
    readme = HERE / "README.md"
    readme.write_text(filled(readme.read_text(), json.loads((HERE / "results.json").read_text())))
