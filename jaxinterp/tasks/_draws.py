"""Seeded choices of templates and words, in NumPy: texts are made on the host, from a JAX key."""

import collections
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import is_traced

T = TypeVar("T")

Split = Literal["all", "train", "held_out"]

_ENUMERABLE = 1_000_000


def generator(key: Any) -> np.random.Generator:
    """A NumPy generator that is seeded by a typed JAX key: the same key gives the same draws."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape != ():
        raise InputError(f"`key` must be one typed key, such as jax.random.key(0); got {_describe(key)}.")
    if is_traced(key):
        raise InputError(
            "Prompts are texts and cannot be made inside jit or vmap: make them before, from a concrete key."
        )
    return np.random.default_rng([int(word) for word in np.asarray(jax.random.key_data(key)).ravel()])


def check_count(n: int) -> None:
    """Raises `InputError` unless `n` is a whole number of at least 1."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise InputError(f"`n` must be a whole number of at least 1; got {n!r}.")


def template_indices(templates: Split | Sequence[int], *, total: int, train: int) -> list[int]:
    """The chosen templates: all, the first `train`, the others, or the given indices."""
    named = {"all": range(total), "train": range(train), "held_out": range(train, total)}
    if isinstance(templates, str):
        if templates not in named:
            raise InputError(
                f"templates={templates!r}: legal are 'all', 'train', 'held_out', or indices of 0 to {total - 1}."
            )
        return list(named[templates])
    chosen = [int(index) for index in templates]
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0 or max(chosen) >= total:
        raise InputError(f"templates={chosen}: give different indices of 0 to {total - 1}, at least one.")
    return chosen


def word_list(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def balanced(rng: np.random.Generator, items: Sequence[Any], n: int) -> list[Any]:
    """`n` items in random order, each as often as the others, give or take one."""
    rounds = [rng.permutation(len(items)).tolist() for _ in range(-(-n // len(items)))]
    order = [index for these in rounds for index in these][:n]
    return [items[order[i]] for i in rng.permutation(n)]


def pick(words: Sequence[str], digits: Sequence[int]) -> list[str]:
    """Different words, one for each digit: each digit counts in what the ones before have left over."""
    pool = list(words)
    return [pool.pop(digit) for digit in digits]


def distinct_draws(
    rng: np.random.Generator, slots: Sequence[T], radices: Sequence[int], *, kind: str
) -> list[tuple[T, tuple[int, ...]]]:
    """A random tuple of digits for each slot, below `radices`, no two the same for equal slots; `kind` says what a slot is."""
    capacity = math.prod(radices)
    remaining: dict[T, list[tuple[int, ...]]] = {}
    for slot, count in collections.Counter(slots).items():
        if count > capacity:
            raise InputError(
                f"{len(slots)} pairs are asked for, {count} of them with one {kind}, but only {capacity} different ones exist "
                f"for each {kind}: ask for fewer, or give more names or templates."
            )
        remaining[slot] = _digits(rng, radices, count)
    return [(slot, remaining[slot].pop()) for slot in slots]


def _digits(rng: np.random.Generator, radices: Sequence[int], count: int) -> list[tuple[int, ...]]:
    if math.prod(radices) <= _ENUMERABLE:
        codes = rng.choice(math.prod(radices), size=count, replace=False)
        return list(zip(*(column.tolist() for column in np.unravel_index(codes, radices)), strict=True))
    found: dict[tuple[int, ...], None] = {}  # in a space this large a repeat is rare
    while len(found) < count:
        found[tuple(rng.integers(0, radices).tolist())] = None
    return list(found)


def _describe(key: Any) -> str:
    if isinstance(key, jax.Array):
        return f"an array of shape {key.shape} and type {key.dtype}"
    return f"{key!r}, a {type(key).__name__}"
