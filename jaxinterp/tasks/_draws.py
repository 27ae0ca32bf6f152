"""Seeded choices of templates and words, in NumPy: texts are made on the host, from a JAX key."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import is_traced

from ._build import Case

Split = Literal["all", "train", "held_out"]


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
    rounds = [rng.permutation(len(items)) for _ in range(-(-n // len(items)))]
    order = np.concatenate(rounds)[:n]
    return [items[i] for i in rng.permutation(order)]


def choose(rng: np.random.Generator, words: Sequence[str], count: int) -> list[str]:
    """`count` different words, in random order."""
    return [words[int(i)] for i in rng.choice(len(words), size=count, replace=False)]


def distinct_cases(slots: Sequence[Any], make: Callable[[Any, int], Case], *, tries: int = 200) -> list[Case]:
    """One case for each slot, no two with the same texts; `make(slot, i)` draws one."""
    seen: set[tuple[str, str]] = set()
    cases: list[Case] = []
    for i, slot in enumerate(slots):
        for _ in range(tries):
            case = make(slot, i)
            if (case.clean, case.corrupt) not in seen:
                break
        else:
            raise InputError(
                f"Only {len(cases)} different pairs were found of the {len(slots)} asked for: "
                "ask for fewer, or give more names or templates."
            )
        seen.add((case.clean, case.corrupt))
        cases.append(case)
    return cases


def _describe(key: Any) -> str:
    if isinstance(key, jax.Array):
        return f"an array of shape {key.shape} and type {key.dtype}"
    return f"{key!r}, a {type(key).__name__}"
