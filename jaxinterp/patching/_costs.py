"""What a computation costs, counted without running it; and what a device has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax


def matrix_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of the matrix products in `fn(*args)`: two for each multiply-add.

    Args:
        fn: a function of arrays. A loop of traced length counts as one turn, of several branches the dearest counts.
        *args: arrays, or `jax.ShapeDtypeStruct`s: nothing is computed.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_count_one(equation) for equation in jaxpr.eqns)


def _count_one(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    inner = [_count(j) for j in _inner(equation.params)]
    if equation.primitive.name == "cond":
        return max(inner, default=0)
    return sum(inner) * (equation.params["length"] if equation.primitive.name == "scan" else 1)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def tree_bytes(tree: Any) -> int:
    """The size of all arrays of a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def default_budget() -> int:
    """Bytes that a sweep may take where none are given: half of what is free on an accelerator, a quarter on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return (int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))) // 2
    return min(_free_memory(), 32 << 30) // 4


def _free_memory() -> int:
    """Free bytes of the system, or of the control group (a container) where that has less."""
    free = [
        _available(),
        _group_free("memory.max", "memory.current"),
        _group_free("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ]
    return min([n for n in free if n is not None], default=4 << 30)


def _available() -> int | None:
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _group_free(limit: str, usage: str) -> int | None:
    try:
        most, used = ((Path("/sys/fs/cgroup") / name).read_text().strip() for name in (limit, usage))
        return None if most == "max" else max(int(most) - int(used), 0)
    except (OSError, ValueError):
        return None
