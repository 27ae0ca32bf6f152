"""Streams of what is there already: arrays, and functions of a key."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp import mesh as meshes
from jaxinterp._errors import InputError, StreamEmptyError
from jaxinterp._typing import Array, ArrayLike, PRNGKeyArray
from jaxinterp.activations._description import as_text, check_state
from jaxinterp.activations._mesh import check_mesh, mesh_of
from jaxinterp.activations._pool import AXIS


class DrawnStream:
    """A stream of which each batch is a function of the key and the number of rows before it; see `from_arrays`, `from_function`.

    It has what `ActivationStream` has: `widths`, `batch_size`, `dtype`, `next`, `documents()` (here the numbers of the rows),
    `remainder()`, `state()`, `state_shapes()`, `restore(...)`, `description`, `served`.
    """

    def __init__(
        self, draw: Callable[[PRNGKeyArray, int], tuple[dict[str, Array], Any]], shapes: Mapping[str, Any], total: int | None,
        batch_size: int, key: PRNGKeyArray, mesh: Mesh, description: Mapping[str, Any],
    ):  # fmt: skip
        self.widths = {name: int(shape.shape[1]) for name, shape in shapes.items()}
        self.dtype = jnp.result_type(*{jnp.dtype(shape.dtype) for shape in shapes.values()})
        self.batch_size, self.mesh, self.total, self.served = batch_size, mesh, total, 0
        self.description = {**description, "dtype": str(self.dtype), "batch_size": batch_size}
        self._draw, self._key, self._last = draw, key, None

    def __iter__(self) -> DrawnStream:
        return self

    def __next__(self) -> dict[str, Array]:
        """The next batch."""
        if self.total is not None and self.served + self.batch_size > self.total:
            raise StreamEmptyError(
                f"the stream has ended: it had {self.total} rows, and {self.served} were served in batches of "
                f"{self.batch_size}; {self.total - self.served} are left, which `remainder()` gives. For more, give more epochs "
                "or rows, or None for no end."
            )
        batch, self._last = self._draw(self._key, self.served)
        self.served += self.batch_size
        return batch

    def documents(self) -> ArrayLike:
        """The number of each row of the batch served last, [batch_size], cut as the batch is."""
        if self._last is None:
            raise InputError("no batch was served yet: call next(stream) first.")
        return self._last

    def remainder(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The rows that are fewer than a batch at the end, on the host, and their numbers; none before the end."""
        left = 0 if self.total is None else self.total - self.served
        left = left if left < self.batch_size else 0
        return jax.tree.map(lambda x: x[:left], meshes.fetch(self._draw(self._key, self.served)))

    def state(self) -> dict[str, Any]:
        """Where it stands."""
        return {"key": self._key, "served": self.served, "description": as_text(self.description)}

    def state_shapes(self) -> dict[str, Any]:
        """What to give `load_tree` or `Checkpoints.restore` as `like`; here `state()`, which is small."""
        return self.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from there, with the key of the state: the same batches, bit for bit.

        The stream may have other epochs than the state's, but no fewer than were begun.
        """
        passes = -(-int(state["served"]) // self.description["rows"]) if "epochs" in self.description else 0
        check_state(state, self.description, passes)
        self._key, self.served, self._last = state["key"], int(state["served"]), None


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    batch_size: int,
    key: PRNGKeyArray,
    epochs: int | None = None,
    mesh: Mesh | None = None,
) -> DrawnStream:
    """A stream of the rows of arrays, in a new random order in each pass; each row exactly once in a pass.

    A batch may hold the last rows of a pass and the first of the next. The arrays are kept whole on each device.

    Args:
        arrays: by name, [n, width]; the rows of equal number belong together.
        batch_size: rows of a batch, at most n.
        key: a typed key.
        epochs: passes; None: no end. What is left at the end and is fewer than a batch is in `remainder()`.
        mesh: with an axis `data`, over which batches are cut; None: that of the arrays, or one device.

    Returns:
        A stream.

    Raises:
        InputError: arrays that are not [n, width] of floating-point numbers of one n, or not finite; sizes that do not fit.

    Example:
        >>> stream = from_arrays({"x": np.eye(4, dtype=np.float32)}, batch_size=2, key=jax.random.key(0), epochs=1)
        >>> sorted(int(i) for _ in stream for i in stream.documents())
        [0, 1, 2, 3]
    """
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    mesh = mesh_of(arrays) if mesh is None else mesh
    faults = [
        f"{name!r} is {x.dtype}{list(x.shape)}" for name, x in arrays.items()
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating)
    ]  # fmt: skip
    counts = {x.shape[0] for x in arrays.values() if x.ndim}
    if faults or len(counts) != 1:
        raise InputError(
            f"arrays: {'; '.join(faults) or f'they have {sorted(counts)} rows'}. Give floating-point numbers [n, width], as many "
            "rows in each."
        )
    n = counts.pop()
    _check_sizes(mesh, batch_size, n)
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs={epochs}: give 1 or more, or None for no end.")
    for name, x in arrays.items():
        broken = np.flatnonzero(~np.asarray(jnp.isfinite(x).all(axis=1)))
        if broken.size:
            raise InputError(f"NaN or infinity in {name!r}, first in row {broken[0]} ({broken.size} rows).")
    held = meshes.put(arrays, mesh)
    order = jax.jit(lambda key, epoch: jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32))
    orders: dict[str, Any] = {"epoch": -1}  # those of the pass at hand and of the next one

    def draw(key: PRNGKeyArray, served: int) -> tuple[dict[str, Array], Array]:
        epoch, first = divmod(served, n)
        if orders["epoch"] != epoch or orders["key"] is not key:
            orders.update(epoch=epoch, key=key, both=jnp.concatenate([order(key, epoch), order(key, epoch + 1)]))
        return _rows(held, orders["both"], first, size=batch_size, mesh=mesh)

    check = sum(zlib.crc32(np.asarray(x[:1024]).tobytes()) for x in arrays.values())
    about = {
        "kind": "arrays",
        "rows": n,
        "widths": {k: x.shape[1] for k, x in arrays.items()},
        "epochs": epochs,
        "crc32": check,
    }
    return DrawnStream(draw, arrays, None if epochs is None else n * epochs, batch_size, key, mesh, about)


def from_function(
    sample: Callable[[PRNGKeyArray, int], Mapping[str, Array]], *, batch_size: int, key: PRNGKeyArray, n: int | None = None,
    mesh: Mesh | None = None,
) -> DrawnStream:  # fmt: skip
    """A stream of synthetic rows: batch i is `sample(fold_in(key, i), batch_size)`, jitted.

    Args:
        sample: (key, rows) -> by name [rows, width].
        batch_size: rows of a batch.
        key: a typed key.
        n: how many rows there are; None: no end.
        mesh: with an axis `data`, over which batches are cut; None: one device.

    Returns:
        A stream.

    Raises:
        InputError: sizes that do not fit; a function that gives something else.

    Example:
        >>> stream = from_function(lambda key, n: {"x": jax.random.normal(key, (n, 3))}, batch_size=4, key=jax.random.key(0))
        >>> next(stream)["x"].shape, stream.widths
        ((4, 3), {'x': 3})
    """
    mesh = mesh_of() if mesh is None else mesh
    _check_sizes(mesh, batch_size, n)
    shapes = jax.eval_shape(lambda key: dict(sample(key, batch_size)), key)
    wrong = {name: x.shape for name, x in shapes.items() if len(x.shape) != 2 or x.shape[0] != batch_size}
    if wrong or not shapes:
        raise InputError(f"sample gives {wrong or 'nothing'}; it should give arrays [{batch_size}, width] by name.")
    cut = NamedSharding(mesh, P(AXIS))

    @functools.partial(jax.jit, out_shardings=cut)
    def rows(key: PRNGKeyArray, number: Any) -> dict[str, Array]:
        return dict(sample(jax.random.fold_in(key, number), batch_size))

    draw = lambda key, served: (rows(key, np.uint32(served // batch_size)), np.arange(served, served + batch_size))
    name = f"{getattr(sample, '__module__', '')}.{getattr(sample, '__qualname__', type(sample).__name__)}"
    return DrawnStream(draw, shapes, n, batch_size, key, mesh, {"kind": "function", "function": name, "rows": n})


@functools.partial(jax.jit, static_argnames=("size", "mesh"))
def _rows(
    arrays: dict[str, Array], order: Array, first: Any, *, size: int, mesh: Mesh
) -> tuple[dict[str, Array], Array]:
    index = lax.dynamic_slice_in_dim(order, first, size)
    rows = {name: x[index] for name, x in arrays.items()}
    return lax.with_sharding_constraint((rows, index), NamedSharding(mesh, P(AXIS)))


def _check_sizes(mesh: Mesh, batch_size: int, n: int | None) -> None:
    check_mesh(mesh)
    parts = mesh.shape[AXIS]
    if batch_size < 1 or batch_size % parts:
        raise InputError(f"batch_size={batch_size} cannot be cut over {parts} devices along `data`: give a multiple.")
    if n is not None and n < batch_size:
        raise InputError(
            f"There are {n} rows, fewer than one batch of {batch_size}: give more, or a smaller batch_size."
        )
