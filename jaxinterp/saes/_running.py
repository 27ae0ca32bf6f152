"""What a pass over texts keeps of each latent: contexts of largest key, and a histogram whose bins grow. On the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxinterp.saes._events import LATENTS_OF_ROW, Events

BINS = 64
"""Of a histogram. The largest activation lies in the upper half of them, since a bin's width is a power of 2."""

PARTNER_SAMPLE = 64
"""Tokens of each latent at which the others are counted."""

NOTHING = -(2**30)
"""The exponent of a latent that has no activation yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Largest:
    """For each of N latents the entries of largest key, in slots without an order; filled in place.

    Attributes:
        keys: [N, slots], -inf in empty slots.
        data: what belongs to an entry, [N, slots, ...] each.
    """

    keys: np.ndarray
    data: dict[str, np.ndarray]

    def offer(
        self,
        latents: np.ndarray,
        keys: np.ndarray,
        look: Callable[[np.ndarray], dict[str, np.ndarray]],
        *,
        texts: np.ndarray | None = None,
        identities: np.ndarray | None = None,
    ) -> None:
        """Takes those of some entries that are among the largest; of equal keys the earlier one.

        Args:
            latents, keys: of the entries, [E].
            look: the data of those whose numbers it is given.
            texts: [E], only the largest entry of a latent in each is offered.
            identities: uint64 [E], of equal ones of a latent only the largest entry is kept; also against those that were taken
                earlier, whose identities are among the data.
        """
        offered = np.flatnonzero(keys > self.keys.min(axis=1)[latents])
        if texts is not None:
            offered = offered[first_of(keys[offered], texts[offered], latents[offered])]
        touched, owner = np.unique(latents[offered], return_inverse=True)
        n_slots = self.keys.shape[1]
        n_old = len(touched) * n_slots
        owner = np.concatenate([np.repeat(np.arange(len(touched)), n_slots), owner])
        rival = np.concatenate([self.keys[touched].ravel(), keys[offered]])
        if identities is not None:
            same = np.concatenate([self.data["identities"][touched].ravel(), identities[offered]])
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
        taken, at = offered[new - n_old], (touched[owner[new]], slots)
        self.keys[at] = keys[taken]
        for name, value in look(taken).items():
            self.data[name][at] = value
        if identities is not None:
            self.data["identities"][at] = identities[taken]

    def ordered(self, by: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """How many entries each latent has [N], and their data from the largest of `by` [N, slots] on; behind them is nothing."""
        by = np.where(self.keys > -np.inf, by, -np.inf)
        order = np.argsort(-by, axis=1, kind="stable")
        sort = lambda a: np.take_along_axis(a, order.reshape(*order.shape, *[1] * (a.ndim - 2)), axis=1)
        return (self.keys > -np.inf).sum(axis=1), {name: sort(a) for name, a in self.data.items()}


def largest(n: int, slots: int, **data: tuple[tuple[int, ...], Any, Any]) -> Largest:
    """Empty slots; `data` gives shape, dtype and the value of nothing."""
    filled = {name: np.full((n, slots, *shape), nothing, dtype) for name, (shape, dtype, nothing) in data.items()}
    return Largest(keys=np.full((n, slots), -np.inf), data=filled)


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


@dataclasses.dataclass
class Running:
    """What the pass has seen."""

    fired: np.ndarray
    total: np.ndarray
    counts: np.ndarray
    exponents: np.ndarray
    top: Largest
    sample: Largest
    partners: Largest
    rows: int = 0


def nothing_yet(n: int, n_top: int, n_sample: int, width: int) -> Running:
    """Before the first batch."""
    texts = dict(tokens=((width,), np.int32, -1), activations=((width,), np.float32, 0.0))
    return Running(
        fired=np.zeros(n, np.int64),
        total=np.zeros(n, np.float64),
        counts=np.zeros((n, BINS), np.int64),
        exponents=np.full(n, NOTHING, np.int64),
        top=largest(n, n_top, identities=((), np.uint64, 0), **texts),
        sample=largest(n, n_sample, **texts),
        partners=largest(n, PARTNER_SAMPLE, sets=((LATENTS_OF_ROW,), np.int32, -1)),
    )


def add(running: Running, events: Events) -> None:
    """Counts the events of a batch."""
    rows, latents, values = events.rows, events.latents, events.values
    n = len(running.fired)
    running.fired += np.bincount(latents, minlength=n)
    running.total += np.bincount(latents, weights=values, minlength=n)
    count_into(running.counts, running.exponents, latents, values)
    numbers = (running.rows + events.numbers[rows]) * n + latents
    running.top.offer(
        latents, values.astype(np.float64), events.look, texts=events.texts[rows], identities=events.hashes()[rows]
    )
    order = -draws(numbers)
    running.sample.offer(latents, order, events.look)
    running.partners.offer(latents, order, lambda taken: {"sets": events.sets(rows[taken])})
    running.rows += events.counted
