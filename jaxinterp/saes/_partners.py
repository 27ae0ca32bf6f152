"""Which latents are active together, from the rows of a sample of each latent's own tokens."""

from __future__ import annotations

import numpy as np

from jaxinterp.saes._directions import Ranked

ELEMENTS = 2**22
"""Of the table of counts that is made at a time, of some latents against all."""


def coactive_latents(sets: np.ndarray, sizes: np.ndarray, fired: np.ndarray, n: int) -> tuple[Ranked, np.ndarray]:
    """The latents of largest Jaccard index with each.

    Args:
        sets: int [N, sample, most], the latents that are active in each row of a sample; -1 where there are fewer.
        sizes: [N], how many rows of it there are.
        fired: [N], at how many tokens each latent is active in all.
        n: how many are wanted.

    Returns:
        Those with their Jaccard index, and the share of a latent's rows in which each is active: [N, n].
    """
    count = len(fired)
    n = min(n, count - 1)
    ids, index, shares = (
        np.full((count, n), -1, np.int32),
        np.zeros((count, n), np.float32),
        np.zeros((count, n), np.float32),
    )
    size = max(1, ELEMENTS // count)
    for start in range(0, count if n else 0, size):
        block = sets[start : start + size]
        local = np.broadcast_to(np.arange(len(block))[:, None, None], block.shape)
        there = (block >= 0) & (np.arange(block.shape[1])[None, :, None] < sizes[start : start + size, None, None])
        flat = local[there] * count + block[there]
        together = np.bincount(flat, minlength=len(block) * count).reshape(-1, count)
        together[np.arange(len(block)), start + np.arange(len(block))] = 0
        share = together / np.maximum(sizes[start : start + size, None], 1)
        own, other = fired[start : start + size, None], fired[None]
        both = np.minimum(share * own, other)
        jaccard = both / np.maximum(own + other - both, 1)
        best = np.argpartition(-jaccard, n - 1, axis=1)[:, :n]
        pick = lambda a, at: np.take_along_axis(a, at, axis=1)
        best = pick(best, np.lexsort((best, -pick(jaccard, best)), axis=1))
        here = slice(start, start + len(block))
        index[here], shares[here] = pick(jaccard, best), pick(share, best)
        ids[here] = np.where(index[here] > 0, best, -1)
    return Ranked(ids=ids, values=index), shares
