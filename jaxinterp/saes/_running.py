"""What a pass over texts keeps of each latent: the entries of largest key, and a histogram whose bins grow. On the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

BINS = 64
"""Of a histogram. The largest activation lies in the upper half of them, since a bin's width is a power of 2."""

NOTHING = -(2**30)
"""The exponent of a latent that has no activation yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Largest:
    """For each of N latents the entries of largest key, in slots without an order; filled in place.

    Attributes:
        keys: [N, slots], -inf in empty slots.
        identities: uint64 [N, slots], of equal ones of a latent only the entry of largest key is kept.
        data: what belongs to an entry, [N, slots, ...] each.
    """

    keys: np.ndarray
    identities: np.ndarray
    data: dict[str, np.ndarray]

    def offer(
        self, latents: np.ndarray, keys: np.ndarray, identities: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Takes those of some entries that are among the largest; of equal keys the earlier one.

        Returns:
            Which entries were taken, and (latents, slots) where their data are to be put.
        """
        passed = np.flatnonzero(keys > self.keys.min(axis=1)[latents])
        touched, owner = np.unique(latents[passed], return_inverse=True)
        n_slots = self.keys.shape[1]
        n_old = len(touched) * n_slots
        owner = np.concatenate([np.repeat(np.arange(len(touched)), n_slots), owner])
        rival = np.concatenate([self.keys[touched].ravel(), keys[passed]])
        same = np.concatenate([self.identities[touched].ravel(), identities[passed]])
        rival[~first_of(rival, same, owner)] = -np.inf
        order = np.lexsort((-rival, owner))
        rank = np.arange(len(order)) - np.searchsorted(owner[order], owner[order])
        kept = order[(rank < n_slots) & (rival[order] > -np.inf)]
        stays = np.zeros(n_old, bool)
        stays[kept[kept < n_old]] = True
        stays = stays.reshape(-1, n_slots)
        self.keys[touched] = np.where(stays, self.keys[touched], -np.inf)
        new = kept[kept >= n_old]  # in the order of their owners
        free = np.argsort(stays, axis=1, kind="stable")
        slots = free[owner[new], np.arange(len(new)) - np.searchsorted(owner[new], owner[new])]
        taken, at = passed[new - n_old], (touched[owner[new]], slots)
        self.keys[at], self.identities[at] = keys[taken], identities[taken]
        return taken, at

    def ordered(self, by: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """How many entries each latent has [N], and their data from the largest of `by` [N, slots] on; behind them is nothing."""
        by = np.where(self.keys > -np.inf, by, -np.inf)
        order = np.argsort(-by, axis=1, kind="stable")
        sort = lambda a: np.take_along_axis(a, order.reshape(*order.shape, *[1] * (a.ndim - 2)), axis=1)
        return (self.keys > -np.inf).sum(axis=1), {name: sort(a) for name, a in self.data.items()}


def largest(n: int, slots: int, **data: tuple[tuple[int, ...], Any, Any]) -> Largest:
    """Empty slots; `data` gives shape, dtype and the value of nothing."""
    filled = {name: np.full((n, slots, *shape), nothing, dtype) for name, (shape, dtype, nothing) in data.items()}
    return Largest(keys=np.full((n, slots), -np.inf), identities=np.zeros((n, slots), np.uint64), data=filled)


def first_of(keys: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """Whether an entry has the largest key of its group (bool); of equal keys the earlier one."""
    order = np.lexsort((-keys, *groups))
    begins = np.ones(len(keys), bool)
    begins[1:] = np.any([group[order][1:] != group[order][:-1] for group in groups], axis=0)
    found = np.zeros(len(keys), bool)
    found[order[begins]] = True
    return found


def draws(numbers: np.ndarray) -> np.ndarray:
    """A random number of [0, 1) for each of some different integers, always the same.

    Source: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators (the finalizer of SplitMix64).
    """
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def count_into(counts: np.ndarray, exponents: np.ndarray, latents: np.ndarray, values: np.ndarray) -> None:
    """Adds activations to histograms, in place.

    Bin i of a latent is [i w, (i + 1) w) with w = 2^exponent / BINS, where the exponent is the least with all values below
    2^exponent. When a larger value comes, neighboring bins are joined; so counts are exact, whatever the order.

    Args:
        counts: [N, BINS].
        exponents: [N], `NOTHING` where nothing was counted yet.
        latents, values: which latents, and their activations, positive.
    """
    old = exponents.copy()
    np.maximum.at(exponents, latents, np.frexp(values)[1])
    growth = np.minimum(exponents - old, BINS.bit_length() - 1)
    for joined in set(growth.tolist()) - {0}:
        grown = np.flatnonzero(growth == joined)
        fewer = counts[grown].reshape(len(grown), BINS >> joined, 1 << joined).sum(axis=2)
        counts[grown] = 0
        counts[grown, : BINS >> joined] = fewer
    bins = np.ldexp(values.astype(np.float64), BINS.bit_length() - 1 - exponents[latents]).astype(np.int64)
    counts += np.bincount(latents * BINS + bins, minlength=counts.size).reshape(counts.shape)
