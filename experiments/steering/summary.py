"""Means over topics and seeds, and targets: `python -m experiments.steering.summary FOLDER` prints what the README tells."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np

SITES = ("resid_post.0", "resid_post.1")


def cells(results: dict, site: str, part: str, **where) -> list[dict]:
    """The cells of all seeds that have these values."""
    rows = [
        row
        for seed in results.values()
        for row in (seed[site][part]["cells"] if part == "refusal" else seed[site][part])
    ]
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def mean(rows: list[dict], name: str) -> float:
    """The mean of a number over cells."""
    return float(np.mean([row[name] for row in rows]))


def curve(results: dict, site: str, method: str, name: str) -> tuple[list[float], list[float]]:
    """Scales, and the mean over topics and seeds at each."""
    scales = sorted({row["scale"] for row in cells(results, site, "steering", method=method)} - {0.0})
    return [0.0, *scales], [
        mean(cells(results, site, "steering", method=method if s else "nothing", scale=s), name) for s in (0.0, *scales)
    ]


def at_effect(results: dict, site: str, method: str, effect: float, name: str) -> tuple[float, int, int]:
    """A number where the topic's probability first reaches an effect, between two scales by a straight line.

    Returns:
        The mean over those topics of all seeds that reach it, how many they are, and of how many.
    """
    values, total = [], 0
    for seed in results.values():
        rows = seed[site]["steering"]
        for topic in sorted({row["topic"] for row in rows}):
            own = [
                r
                for r in rows
                if r["topic"] == topic and (r["method"] == "nothing" or (r["method"] == method and r["scale"]))
            ]
            own, total = sorted(own, key=lambda row: row["scale"]), total + 1
            for low, high in itertools.pairwise(own):
                if low["none"] < effect <= high["none"]:
                    share = (effect - low["none"]) / (high["none"] - low["none"])
                    values.append(low[name] + share * (high[name] - low[name]))
                    break
    return float(np.mean(values)) if values else float("nan"), len(values), total


def changes(results: dict, site: str, method: str, scale: float, name: str) -> np.ndarray:
    """The absolute change of a topic's probability in each cell of a control."""
    out = []
    for seed in results.values():
        rows = seed[site]["steering"]
        before = {row["topic"]: row[name] for row in rows if row["method"] == "nothing"}
        out += [abs(r[name] - before[r["topic"]]) for r in rows if r["method"] == method and r["scale"] == scale]
    return np.array(out)


def tell(results: dict, site: str) -> None:
    """Prints everything about one site."""
    topics = [seed[site]["topics"] for seed in results.values()]
    for name in ("auroc", "auroc_everywhere", "auroc_shuffled", "auroc_untrained", "cosine_to_difference"):
        each = np.array([t[name] for t in topics])
        print(
            f"{name}: mean {each.mean():.3f}, least {each.min():.3f}, above .95 by seed {(each > 0.95).sum(1).tolist()}"
        )
    print("dictionary", [seed[site]["dictionary"] for seed in results.values()])
    for method in ("nothing", "latent", "difference", "random latent", "random direction"):
        scales, _ = curve(results, site, method, "none") if method != "nothing" else ([0.0], [])
        for scale in scales if method == "nothing" else scales[1:]:
            rows = cells(results, site, "steering", method=method, scale=scale)
            numbers = {
                n: round(mean(rows, n), 3) for n in ("none", "other", "own", "anywhere", "side_kl", "legal", "answer")
            }
            print(method, scale, numbers, "above .8:", sum(r["none"] > 0.8 for r in rows), "of", len(rows))
    for method in ("latent", "difference held", "difference removed", "random latent", "random direction removed"):
        rows = cells(results, site, "steering", method=method, scale=0.0)
        worst = max(row["own"] for row in rows)
        below = sum(row["own"] < 0.05 for row in rows)
        print("ablated:", method, round(mean(rows, "own"), 3), "worst", worst, "below .05:", below, "of", len(rows))
    for method in ("random latent", "random direction"):
        for scale in (1.0, 5.0, 10.0):
            change = changes(results, site, method, scale, "none")
            print(
                "change:",
                method,
                scale,
                f"mean {change.mean():.3f} largest {change.max():.3f} below .05: {(change < 0.05).mean():.2f}",
            )
    change = changes(results, site, "random latent", 0.0, "own")
    print(f"change of own, random latent ablated: mean {change.mean():.3f} largest {change.max():.3f}")
    for method in ("latent", "difference"):
        for effect in (0.5, 0.8):
            print(
                "at",
                effect,
                method,
                {n: at_effect(results, site, method, effect, n) for n in ("side_kl", "legal", "answer")},
            )
    for name in ("text", "refusal"):
        seen = {(row["method"], row["scale"]): 0 for row in cells(results, site, name)}
        for method, scale in seen:
            rows = cells(results, site, name, method=method, scale=scale)
            told = [n for n in rows[0] if n not in ("method", "scale", "topic")]
            worst = {"largest": max(row["triggered"] for row in rows)} if name == "refusal" else {}
            print(name, method, scale, {n: round(mean(rows, n), 4) for n in told} | worst)


if __name__ == "__main__":
    kept = json.loads((Path(sys.argv[1]) / "results.json").read_text())
    print({seed: {"loss": numbers["loss"], **numbers["seconds"]} for seed, numbers in kept.items()})
    for place in SITES:
        print("\n##", place)
        tell(kept, place)
