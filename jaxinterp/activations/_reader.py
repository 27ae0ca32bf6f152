"""The elements of a source, through grain: shuffled or not, for some passes, a part by each process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Reader:
    """An iterator over every n-th element, read ahead by threads.

    Args:
        source: has a length, and elements by number.
        seed: of the order, another one in each pass; None: the source's own order.
        epochs: passes; None: no end.
        shard: (i, n): every n-th element of all passes, from the i-th on.
        threads: that read.
        ahead: how many elements they may be ahead.
    """

    def __init__(
        self, source: Any, *, seed: int | None, epochs: int | None, shard: tuple[int, int], threads: int, ahead: int
    ):
        import grain

        data = grain.MapDataset.source(source)
        data = data if seed is None else data.shuffle(seed)
        data = data.repeat(epochs)[shard[0] :: shard[1]]
        self._iterator = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
        self._count, self._shard, self._taken = len(source), shard, 0

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> Any:
        element = next(self._iterator)
        self._taken += 1
        return element

    @property
    def passes(self) -> int:
        """How many passes it has begun."""
        last = self._shard[0] + (self._taken - 1) * self._shard[1]
        return last // self._count + 1 if self._taken else 0

    def state(self) -> dict[str, Any]:
        """Where it stands, for JSON; "passes": how many it has begun."""
        return {"grain": self._iterator.get_state(), "taken": self._taken, "passes": self.passes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from there, also with another number of passes, if no fewer than were begun."""
        self._iterator.set_state(state["grain"])
        self._taken = int(state["taken"])
