"""How wrong first-order scores are: exact effects of some cells beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import ArrayLike

if TYPE_CHECKING:
    import xarray as xr

TOP = 10
"""How many of the strongest cells are audited beside the sample, and what recall is about."""
STRATA = 8
"""Bins of equal size by |score|, from each of which the sample takes as many cells."""
ZERO = 1e-5
"""An effect below this share of the metric counts as zero: it is rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """Scores and exact effects of the same cells.

    Attributes:
        site: whose cells they are.
        cells: an `xarray.Dataset` along the axis "cell": score, effect (exact, by `patching.sweep`), stratum (0 is the weakest by
            |score|; -1 for the strongest cells, which are audited whatever is drawn), and the cells' layer, head, ... as
            coordinates.
        spearman: rank correlation of score and effect over the audited cells whose effect is not zero; NaN under three of them.
        recall: of the ten audited cells with the largest |effect|, the share that is among the ten with the largest |score|; of
            fewer, where fewer have an effect. It says nothing of cells that were not audited. The ten with the largest |score|
            of all cells always are.
        sign_agreement: the share of the audited cells whose effect is not zero where the score has its sign.
        n_nonzero: audited cells whose effect is not zero: above 1e-5 of the largest of the metric and the effects.
    """

    site: str
    cells: Any
    spearman: float
    recall: float
    sign_agreement: float
    n_nonzero: int

    def __str__(self) -> str:
        return (
            f"{self.site}: {self.cells.sizes['cell']} cells audited, {self.n_nonzero} with an effect; "
            f"Spearman {self.spearman:.3f}, recall of the top ten {self.recall:.2f}, sign agreement {self.sign_agreement:.3f}"
        )


def choose(score: np.ndarray, layer: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The cells to audit: the strongest by |score|, and a sample of the others.

    The others are sorted by |score| into bins of equal size; each bin gives as many cells, drawn from its layers by turns.

    Args:
        score: [n_cells], NaN for a cell that no prompt has.
        layer: [n_cells].
        n: size of the sample.
        rng: draws it.

    Returns:
        Indices of cells, and the stratum of each: -1 for the strongest.
    """
    order = np.argsort(np.abs(score), kind="stable")  # NaN last
    order = order[: int(np.isfinite(score).sum())]
    top, rest = order[::-1][:TOP], order[::-1][TOP:][::-1]
    chosen, strata = [top], [np.full(len(top), -1)]
    if len(rest) <= n:
        return np.concatenate([top, rest]), np.concatenate([strata[0], np.zeros(len(rest), int)])
    bins = np.array_split(rest, min(STRATA, n))
    share = _even([len(members) for members in bins], n)
    for i, (members, k) in enumerate(zip(bins, share, strict=True)):
        drawn = rng.permutation(members)
        turn = np.zeros(len(drawn), int)
        for value in np.unique(layer[drawn]):
            of_layer = layer[drawn] == value
            turn[of_layer] = np.arange(of_layer.sum())
        chosen.append(drawn[np.argsort(turn, kind="stable")[:k]])
        strata.append(np.full(min(k, len(drawn)), i))
    return np.concatenate(chosen), np.concatenate(strata)


def _even(sizes: Sequence[int], n: int) -> list[int]:
    """How many of n to take from each bin: as many from each as it has; what does not divide, from the last ones."""
    share = [0] * len(sizes)
    while n > 0 and share != list(sizes):
        open_bins = [i for i, size in enumerate(sizes) if share[i] < size]
        for i in open_bins if n >= len(open_bins) else open_bins[::-1][:n]:
            share[i] += 1
            n -= 1
    return share


def make_audit(
    site: str,
    scores: xr.Dataset,
    n: int,
    seed: int,
    exact: Callable[[str, Sequence[Mapping[str, Any]]], np.ndarray],
) -> Audit:
    """Compares the scores of one site with exact effects.

    Args:
        site: the site.
        scores: its scores over some axes.
        n: size of the sample.
        seed: of the draw.
        exact: `(site, cells) -> effects [n_cells]`; a cell is a mapping such as {"layer": 3, "head": 2}.
    """
    import xarray as xr

    axes = [str(dim) for dim in scores["score"].dims]
    grid = np.stack(np.meshgrid(*(np.arange(scores.sizes[a]) for a in axes), indexing="ij"), -1).reshape(-1, len(axes))
    score = scores["score"].values.reshape(-1)
    layer = grid[:, axes.index("layer")] if "layer" in axes else np.zeros(len(grid), int)
    ids, stratum = choose(score, layer, n, np.random.default_rng(seed))
    columns = {a: scores[a].values[grid[ids, i]] for i, a in enumerate(axes)}
    cells = [{a: column[i].item() for a, column in columns.items()} for i in range(len(ids))]
    effect = exact(site, cells)
    metric = max(abs(float(scores["base"])), abs(float(scores.get("source", scores["base"]))))
    numbers = agreement(score[ids], effect, metric)
    table = xr.Dataset(
        {
            "score": ("cell", score[ids]),
            "effect": ("cell", np.asarray(effect, np.float32)),
            "stratum": ("cell", stratum),
        },
        {a: ("cell", column) for a, column in columns.items()},
        {
            "site": site,
            "seed": seed,
            **{k: v for k, v in scores.attrs.items() if k in ("metric", "unit", "n_prompts")},
            **numbers,
        },
    )
    return Audit(site=site, cells=table, **numbers)


def agreement(score: np.ndarray, effect: np.ndarray, metric: float = 0.0) -> dict[str, Any]:
    """Spearman, recall of the top ten and sign agreement of scores with exact effects; see `Audit`.

    Args:
        score, effect: [n].
        metric: the largest of the metric's values, which says what is rounding.
    """
    score, effect = np.asarray(score, np.float64), np.asarray(effect, np.float64)
    there = np.abs(effect) > ZERO * max(metric, float(np.abs(effect).max(initial=0.0)))
    n = int(there.sum())
    k = min(TOP, n)
    best = np.argsort(-np.abs(np.where(there, effect, 0.0)), kind="stable")[:k]
    guess = np.argsort(-np.abs(score), kind="stable")[:k]
    return {
        "spearman": spearman(score[there], effect[there]),
        "recall": len(set(best.tolist()) & set(guess.tolist())) / k if k else float("nan"),
        "sign_agreement": float((np.sign(score[there]) == np.sign(effect[there])).mean()) if n else float("nan"),
        "n_nonzero": n,
    }


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation of two lists of numbers; equal numbers share the mean of their ranks.

    Args:
        a, b: [n].

    Returns:
        -1 to 1; NaN for fewer than three numbers, or where one list is constant.

    Example:
        >>> import numpy as np, jaxinterp as ji
        >>> ji.attribution.spearman(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.3, 0.2]))
        0.5

    Source: Spearman 1904.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"spearman of shapes {list(a.shape)} and {list(b.shape)}; give two lists of the same length.")
    if len(a) < 3:
        return float("nan")
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size > 0 else float("nan")


def _ranks(a: np.ndarray) -> np.ndarray:
    """0 is the smallest; equal numbers share the mean of their ranks."""
    _, place, count = np.unique(a, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count + 1) / 2)[place]
