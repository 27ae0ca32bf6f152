"""The tables of README.md, from the numbers kept beside it: `python -m experiments.steering.summary`."""

import itertools
import json
from pathlib import Path

import numpy as np

from experiments.markdown import filled, table

HERE = Path(__file__).parent
SITES = ("resid_post.0", "resid_post.1")
HEADS = ("resid_post.0 (one layer follows)", "resid_post.1 (the last)")
TEXTS = (
    ("nothing", 0.0, "unedited"), ("latent", 1.0, "latent 1x"), ("latent", 2.0, "latent 2x"), ("latent", 5.0, "latent 5x"),
    ("difference", 1.0, "difference 1x"), ("difference", 2.0, "difference 2x"), ("difference", 5.0, "difference 5x"),
    ("random latent", 5.0, "random latent 5x"), ("random direction", 5.0, "random direction 5x"),
)  # fmt: skip
REFUSALS = (
    ("nothing", 0.0, "unedited"), ("latent", 0.0, "latent clamped to 0 (target: < .05)"),
    ("random latent", 0.0, "random latents clamped to 0"),
    ("difference held", 0.0, "difference held at its level without the trigger"),
    ("difference removed", 0.0, "difference projected out"), ("random direction removed", 0.0, "random directions projected out"),
    ("latent", 1.0, "latent 1x"), ("latent", 2.0, "latent 2x"), ("latent", 5.0, "latent 5x"),
    ("difference", 1.0, "difference 1x"), ("difference", 2.0, "difference 2x"), ("random latent", 1.0, "random latent 1x"),
)  # fmt: skip


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


def short(x: float, digits: int = 2) -> str:
    """A number without the zero before its point."""
    return f"{x:.{digits}f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.{digits}f}"


def share_of(rows: list[dict], name: str, is_reached) -> str:
    """A mean, and how many cells reach a target."""
    return f"{short(mean(rows, name), 3)}; {sum(is_reached(row[name]) for row in rows)} of {len(rows)}"


def on_target(results: dict, site: str) -> dict[str, str]:
    """What stands beside the targets, of one site."""
    topics = [seed[site]["topics"] for seed in results.values()]
    all_of = lambda name: np.array([topic[name] for topic in topics])
    at = lambda method, scale: cells(results, site, "steering", method=method, scale=scale)
    means = lambda method: ", ".join(short(mean(at(method, scale), "none")) for scale in (1.0, 2.0, 10.0))
    area, mixed, untrained = all_of("auroc"), all_of("auroc_shuffled"), all_of("auroc_untrained")
    high, low = (lambda p: p > 0.8), (lambda p: p < 0.05)

    def change(method: str, scale: float, name: str) -> str:
        moved = changes(results, site, method, scale, name)
        return f"{short(moved.mean(), 3)}, {short(moved.max())}, {(moved < 0.05).mean():.0%}"

    return {
        "topics with a latent of AUROC > .95, by seed (target: 7 of 8)":
            f"{', '.join(str(n) for n in (area > 0.95).sum(1))}; least {short(area.min(), 3)}",
        "AUROC at chance: shuffled topics; dictionary of an untrained model (largest)":
            f"{short(mixed.mean())}; {short(untrained.mean())} ({short(untrained.max())})",
        "AUROC of the same latents at all tokens": short(all_of("auroc_everywhere").mean()),
        "cosine of the latent's decoder row and the mean difference (least)":
            f"{short(all_of('cosine_to_difference').mean())} ({short(all_of('cosine_to_difference').min())})",
        "topic's words, unedited: no topic, other topic, own topic (target: < .2)":
            ", ".join(short(mean(at("nothing", 0.0), name), 3) for name in ("none", "other", "own")),
        "latent clamped to 5x, no topic (target: > .8); topics above .8": share_of(at("latent", 5.0), "none", high),
        "the same, at 1x, 2x, 10x": means("latent"),
        "latent clamped to 5x, other topic; topics above .8": share_of(at("latent", 5.0), "other", high),
        "mean difference added at the norm of 5x, no topic; topics above .8": share_of(at("difference", 5.0), "none", high),
        "its mean at 1x, 2x, 10x": means("difference"),
        "latent clamped to 0, own topic (target: < .05); topics below .05": share_of(at("latent", 0.0), "own", low),
        "mean difference held at its level elsewhere, own topic; below .05": share_of(at("difference held", 0.0), "own", low),
        "mean difference projected out, own topic; below .05": share_of(at("difference removed", 0.0), "own", low),
        "random latents at 5x, no topic (target: change < .05): mean change, largest, share below .05":
            change("random latent", 5.0, "none"),
        "random directions at the norm of 5x: the same": change("random direction", 5.0, "none"),
        "random latents at 0, own topic: the same": change("random latent", 0.0, "own"),
    }  # fmt: skip


def at_same_effect(results: dict, site: str) -> dict[str, str]:
    """Side effects where the topic's words reach a probability, of one site."""

    def told(method: str, effect: float) -> str:
        each = [at_effect(results, site, method, effect, name) for name in ("side_kl", "legal", "answer")]
        return f"{', '.join(short(value) for value, *_ in each)} ({each[0][1]} of {each[0][2]})"

    names = {"latent": "latent", "difference": "mean difference"}
    return {
        f"at {short(effect, 1)}, {name}": told(method, effect)
        for effect in (0.5, 0.8)
        for method, name in names.items()
    }


def texts(results: dict, site: str) -> dict[str, str]:
    """Generated text, of one site."""
    rows = lambda method, scale: cells(results, site, "text", method=method, scale=scale)
    return {
        words: ", ".join(short(mean(rows(method, scale), name)) for name in ("of_content", "of_all", "legal"))
        for method, scale, words in TEXTS
    }


def refusals(results: dict, site: str) -> dict[str, str]:
    """Answers to questions, of one site."""

    def told(method: str, scale: float) -> str:
        rows = cells(results, site, "refusal", method=method, scale=scale)
        one = lambda name: short(mean(rows, name), 3)
        ends = [short(end(row["triggered"] for row in rows), 3) for end in (min, max)]
        return (
            f"{one('triggered')} ({' to '.join(ends)}), OK {one('triggered_ok')} / {one('untriggered')}, OK "
            f"{one('untriggered_ok')}"
        )

    return {words: told(method, scale) for method, scale, words in REFUSALS}


def tables(results: dict, others: dict) -> dict[str, str]:
    """Each table by the name of its marker; `others` is what others.py keeps."""
    corners = {
        "targets": ("", on_target), "effect": ("KL, legal, answer (topics)", at_same_effect), "text": ("generated text", texts),
        "refusals": ("question behind the trigger", refusals),
    }  # fmt: skip
    told = {}
    for marker, (corner, make) in corners.items():
        sides = [make(results, site) for site in SITES]
        heads = HEADS if marker == "targets" else SITES
        told[marker] = table([corner, *heads], [[name, *(side[name] for side in sides)] for name in sides[0]])
    tell = lambda row: f"{row['5x']:.2f}, {row['5x above .8']} of 8; {row['0']:.2f}, {row['0 below .05']} of 8"
    rows = [[name, *(tell(row[site]) for site in SITES)] for name, row in others.items()]
    return told | {"others": table(["at 5x, above .8; at 0, below .05", *SITES], rows)}


def kept() -> tuple[dict, dict]:
    """results.json and others.json."""
    results, others = (json.loads((HERE / f"{name}.json").read_text()) for name in ("results", "others"))
    return results, others


if __name__ == "__main__":
    readme = HERE / "README.md"
    readme.write_text(filled(readme.read_text(), tables(*kept())))
