"""What a pool is filled from."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxinterp._typing import Array


class Chunk(NamedTuple):
    """What a source read on the host, for the devices of this process.

    Attributes:
        arrays: what `compute` takes.
        is_kept: bool [devices along `data` of this process, R], which rows are wanted.
        passes: how many passes over its elements the source has begun; 0: it does not count them.
        is_barren: whether nothing was wanted in a whole pass before this chunk, and in this chunk.
    """

    arrays: Any
    is_kept: np.ndarray
    passes: int = 0
    is_barren: bool = False


@runtime_checkable
class RowSource(Protocol):
    """Where the rows of a pool come from: forward passes over tokens, or a folder; what shuffles on a disk would be another.

    Attributes:
        widths: by key of the site.
        dtype: of the rows.
        rows: R, how many one device along `data` gets at a time, wanted or not.
        description: for JSON.
    """

    widths: dict[str, int]
    dtype: Any
    rows: int
    description: dict[str, Any]

    def read(self) -> Chunk | None:
        """The next chunk, on the host; None at the end, and from then on."""
        ...

    def nothing(self) -> Any:
        """The arrays of a chunk of which nothing is wanted, for a process that has no more when others have."""
        ...

    def compute(self, arrays: Any, /) -> tuple[dict[str, Array], Array]:
        """The rows by key, [n * R, width], and their documents, int32 [n * R], cut over `data`; all processes call it."""
        ...

    def state(self) -> Any:
        """Where the reader of this process stands, for JSON: a dictionary, with "passes": how many it has begun."""
        ...

    def restore(self, state: Any) -> None:
        """Goes on from there."""
        ...
