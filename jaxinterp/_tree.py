"""Frozen dataclasses that are pytrees."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

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
    return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)


def is_traced(x: Any) -> bool:
    """Whether `x` is a tracer, whose value is not known yet."""
    return isinstance(x, jax.core.Tracer)
