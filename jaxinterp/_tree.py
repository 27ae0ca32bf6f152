"""Frozen dataclasses that are pytrees."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
from jax.core import Tracer

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A field that is part of the tree's structure: hashable, compared by jit, never an array."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen, keyword-only dataclass whose fields are the children of a pytree.

    Fields made by `static()` belong to the structure. Nothing is validated inside, since JAX rebuilds such objects from
    anything (tracers, shapes, sentinels): the functions that make them validate.

    Example:
        >>> @pytree
        ... class Line:
        ...     slope: float
        ...     name: str = static()
        >>> jax.tree.leaves(Line(slope=2.0, name="a"))
        [2.0]
    """
    cls = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]

    def flatten(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(tree, name) for name in data], tuple(getattr(tree, name) for name in meta)

    def flatten_with_keys(tree: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        leaves, structure = flatten(tree)
        return [(jax.tree_util.GetAttrKey(name), leaf) for name, leaf in zip(data, leaves, strict=True)], structure

    def unflatten(structure: tuple[Any, ...], leaves: Iterable[Any]) -> Any:
        tree = object.__new__(cls)  # without __init__, whose annotations hold for what a caller makes only
        for name, value in zip([*data, *meta], [*leaves, *structure], strict=True):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def is_traced(x: Any) -> bool:
    """Whether `x` is a tracer, whose value is not known yet."""
    return isinstance(x, Tracer)
