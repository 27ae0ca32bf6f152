"""The active latents of a batch as a list, and the texts around them. On the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp.saes._site import Batch
from jaxinterp.saes._sparse import SparseLatents

LATENTS_OF_ROW = 64
"""Of a row with more active latents, so many are remembered as active together."""


class Events(NamedTuple):
    """Where latents are active in the R = B * T tokens of a batch: E events in the order of rows, then latents.

    Attributes:
        rows, latents, values: [E].
        numbers: [R], which of the tokens that are counted each is, from 0; meaningless at those that are not.
        counted: how many are counted.
        texts: [R], equal for tokens of the same text.
        windows: int32 [R, W], the tokens around each, -1 where its text has none.
        before: where the token itself stands in its window.
        n: number of latents.
    """

    rows: np.ndarray
    latents: np.ndarray
    values: np.ndarray
    numbers: np.ndarray
    counted: int
    texts: np.ndarray
    windows: np.ndarray
    before: int
    n: int

    def hashes(self) -> np.ndarray:
        """A number for each token [R], equal where windows are equal up to the token itself."""
        read = (self.windows[:, : self.before + 1] + 2).astype(np.uint64)
        powers = np.cumprod(np.full(read.shape[1], 0x9E3779B97F4A7C15, np.uint64))
        return (read * powers).sum(axis=1, dtype=np.uint64)

    def look(self, events: np.ndarray) -> dict[str, np.ndarray]:
        """Tokens and activations around some events, [n, W] each."""
        rows, latents = self.rows[events], self.latents[events]
        places = rows[:, None] + np.arange(self.windows.shape[1]) - self.before
        wanted = places * self.n + latents[:, None]
        own = self.rows * self.n + self.latents
        at = np.minimum(np.searchsorted(own, wanted), len(own) - 1)
        tokens = self.windows[rows]
        found = (own[at] == wanted) & (tokens >= 0)
        return {"tokens": tokens, "activations": np.where(found, self.values[at], 0).astype(np.float32)}

    def sets(self, rows: np.ndarray) -> np.ndarray:
        """The latents that are active in some rows, the strongest first, -1 behind them: int32 [n, at most LATENTS_OF_ROW]."""
        wanted = np.zeros(len(self.texts), bool)
        wanted[rows] = True
        events = np.flatnonzero(wanted[self.rows])
        own = self.rows[events]
        order = np.lexsort((-self.values[events], own))
        rank = np.arange(len(order)) - np.searchsorted(own, own)
        out = np.full((len(self.texts), LATENTS_OF_ROW), -1, np.int32)
        kept = rank < LATENTS_OF_ROW
        out[own[kept], rank[kept]] = self.latents[events[order]][kept]
        return out[rows]


def events_of(
    codes: np.ndarray | SparseLatents, batch: Batch, context: tuple[int, int], threshold: float, where: str
) -> Events:
    """The events of a batch, whose activations [R, N] or of k latents are on the host."""
    kept = np.asarray(batch.kept).ravel()
    if isinstance(codes, SparseLatents):
        values, n = np.asarray(codes.values), codes.n_latents
    else:
        values, n = np.asarray(codes), codes.shape[1]
    if not np.isfinite(values[kept]).all():
        raise InputError(
            f"The activations of latents of {where} are not all finite: the site, or the dictionary, is not."
        )
    rows, columns = np.nonzero((values > threshold) & kept[:, None])
    values = values[rows, columns]
    latents = columns
    if isinstance(codes, SparseLatents):
        latents = np.asarray(codes.indices)[rows, columns].astype(np.int64)
        order = np.argsort(rows * n + latents)
        rows, latents, values = rows[order], latents[order], values[order]
    tokens = np.asarray(batch.tokens)
    segments = np.asarray(batch.how.get("segments", np.zeros_like(tokens)))
    windows = _windows(tokens, segments, *context)
    texts = (np.arange(len(tokens))[:, None] * (segments.max() + 2) + segments + 1).ravel()
    return Events(rows, latents, values, np.cumsum(kept) - 1, int(kept.sum()), texts, windows, context[0], n)


def _windows(tokens: np.ndarray, segments: np.ndarray, before: int, behind: int) -> np.ndarray:
    """The tokens around each, [B * T, W], -1 outside of its text."""
    around = np.arange(tokens.shape[1])[:, None] + np.arange(before + 1 + behind)
    padded = lambda a: np.pad(a, ((0, 0), (before, behind)), constant_values=-1)[:, around]  # [B, T, W]
    same = (padded(segments) == segments[..., None]) & (segments[..., None] >= 0)
    return np.where(same, padded(tokens), -1).reshape(-1, around.shape[1]).astype(np.int32)
