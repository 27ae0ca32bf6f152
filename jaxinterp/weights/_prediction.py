"""The most likely next tokens of a prompt, as a table."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class PredictedToken(NamedTuple):
    """One candidate: its text, id, logit, and probability (a fraction of 1)."""

    token: str
    id: int
    logit: float
    probability: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model expects after a prompt; prints as a table.

    Attributes:
        prompt: the tokens that were read, as text, BOS included where it was prepended.
        rows: the candidates, most likely first.
    """

    prompt: tuple[str, ...]
    rows: tuple[PredictedToken, ...]

    def __iter__(self) -> Iterator[PredictedToken]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rank: int) -> PredictedToken:
        return self.rows[rank]

    def __str__(self) -> str:
        width = max([5, *(len(repr(row.token)) for row in self.rows)])
        lines = [f"after {len(self.prompt)} tokens: ...{''.join(self.prompt[-8:])!r}"]
        lines.append(f"{'rank':>4}  {'token':<{width}}  {'id':>6}  {'logit':>8}  probability")
        for rank, row in enumerate(self.rows):
            lines.append(f"{rank:>4}  {row.token!r:<{width}}  {row.id:>6}  {row.logit:>8.3f}  {row.probability:.4f}")
        return "\n".join(lines)

    __repr__ = __str__


def top_rows(logits: np.ndarray, k: int) -> list[tuple[int, float, float]]:
    """The `k` largest of logits [V]: (id, logit, probability), ties by the smaller id."""
    exact = logits.astype(np.float64)
    probability = np.exp(exact - exact.max())
    probability /= probability.sum()
    order = np.argsort(-exact, kind="stable")[:k]
    return [(int(i), float(exact[i]), float(probability[i])) for i in order]
