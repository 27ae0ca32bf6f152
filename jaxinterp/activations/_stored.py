"""Streams of activations that are on a disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp._errors import InputError, WeightsError, closest
from jaxinterp._typing import Array, PRNGKeyArray
from jaxinterp.activations._mesh import check_mesh, local_parts, mesh_of, shard_of
from jaxinterp.activations._pool import AXIS
from jaxinterp.activations._reader import Reader
from jaxinterp.activations._shards import DOCUMENTS, open_shards, read_manifest
from jaxinterp.activations._source import Chunk
from jaxinterp.activations._stream import ActivationStream

BLOCK = 1024
"""Rows that are read together, at most."""


def stored_activations(
    folder: str | Path,
    *,
    batch_size: int,
    key: PRNGKeyArray,
    sites: Sequence[str] | None = None,
    buffer_size: int | None = None,
    epochs: int | None = 1,
    mesh: Mesh | None = None,
    dtype: Any = None,
) -> ActivationStream:
    """A stream of activations that `write_activations` kept.

    Blocks of rows are read through grain in random order, another one in each pass, a part by each process, into the same pool on
    the devices as harvested rows; see `ActivationStream`. Files are mapped, so a store may be larger than the memory.

    Args:
        folder: what `write_activations` gave.
        batch_size: rows of a batch, over all devices.
        key: a typed key: of the order in which blocks are read, which a state goes on with under the same key alone, and of rows.
        sites: which to read, by key ("resid_post.3"); None: all.
        buffer_size: rows of the pool; None: 32 batches, or four blocks on each device, whichever is more.
        epochs: passes; None: no end.
        mesh: with an axis `data`; None: one device.
        dtype: what is served; None: what was kept.

    Returns:
        A stream.

    Raises:
        MissingFileError, WeightsError: no such folder; shards that are missing, truncated or of another run (all files are
            named); writing it was not finished.
        InputError: a site that is not there; sizes that do not fit.

    Example:
        >>> import tempfile
        >>> from jaxinterp.activations import from_arrays, write_activations
        >>> rows = {"x": np.eye(6, dtype=np.float32)}
        >>> stream = from_arrays(rows, batch_size=3, key=jax.random.key(0), epochs=1)
        >>> folder = write_activations(stream, Path(tempfile.mkdtemp()) / "x")
        >>> stream = stored_activations(folder, batch_size=3, key=jax.random.key(1))
        >>> sum(float(batch["x"].sum()) for batch in stream)
        6.0
    """
    folder = Path(folder).expanduser().absolute()
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise WeightsError(
            f"{folder} was not written to its end: it has {len(manifest['shards'])} shards. Call write_activations again with "
            "the same stream, made anew, and it goes on."
        )
    names = list(manifest["widths"]) if sites is None else list(sites)
    unknown = [name for name in names if name not in manifest["widths"]]
    if unknown or not names:
        raise InputError(
            f"sites={names}: {unknown or 'none'} of that in {folder}. {closest(str(unknown), manifest['widths'])}"
        )
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs={epochs}: give 1 or more, or None for no end.")
    mesh = mesh_of() if mesh is None else mesh
    check_mesh(mesh)
    shards = open_shards(folder, manifest)
    seed = int(jax.random.bits(jax.random.fold_in(key, 0), dtype=jnp.uint32))
    source = StoredRows(shards, names, jnp.dtype(manifest["dtype"]), epochs, seed, mesh)
    source.description = {
        "kind": "stored", "stream": manifest["stream"], "provenance": manifest["provenance"], "rows": manifest["rows"],
        "sites": names, "epochs": epochs, "order_from_key": seed,
        "shards": [shard["crc32"][DOCUMENTS] for shard in manifest["shards"]],
    }  # fmt: skip
    return ActivationStream.over(
        source, batch_size=batch_size, buffer_size=buffer_size, mesh=mesh, key=jax.random.fold_in(key, 1), dtype=dtype
    )


class StoredRows:
    """Blocks of stored rows, in random order; a `RowSource`."""

    def __init__(
        self, shards: Sequence[dict[str, np.ndarray]], names: Sequence[str], dtype: Any, epochs: int | None, seed: int,
        mesh: Mesh,
    ):  # fmt: skip
        self.widths = {name: shards[0][name].shape[1] for name in names}
        self.dtype, self.mesh, self.description = dtype, mesh, {}
        self._parts = len(local_parts(mesh))
        counts = [len(shard[DOCUMENTS]) for shard in shards]
        self.rows = min(BLOCK, max(counts))
        blocks = _Blocks(
            shards, names, dtype, [(i, at) for i, n in enumerate(counts) for at in range(0, n, self.rows)], self.rows
        )
        how = dict(threads=2, ahead=2 * self._parts)
        self._reader = Reader(blocks, seed=seed, epochs=epochs, shard=shard_of(mesh), **how)

    def read(self) -> Chunk | None:
        """A block for each device of this process."""
        blocks = [block for _ in range(self._parts) if (block := next(self._reader, None)) is not None]
        if not blocks:
            return None
        kept = np.zeros((self._parts, self.rows), bool)
        rows, documents = self.nothing()
        for i, (values, numbers) in enumerate(blocks):
            here = slice(i * self.rows, i * self.rows + len(numbers))
            kept[i, : len(numbers)], documents[here] = True, numbers
            for name, value in values.items():
                rows[name][here] = value
        return Chunk((rows, documents), kept)

    def nothing(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Arrays of the right shapes."""
        count = self._parts * self.rows
        return {name: np.zeros((count, width), self.dtype) for name, width in self.widths.items()}, np.full(
            count, -1, np.int32
        )

    def compute(self, arrays: Any, /) -> tuple[dict[str, Array], Array]:
        """The same on the devices."""
        cut = NamedSharding(self.mesh, P(AXIS))
        return jax.tree.map(lambda array: jax.make_array_from_process_local_data(cut, array), arrays)

    def state(self) -> Any:
        """Where the reader stands, for JSON."""
        return self._reader.state()

    def restore(self, state: Any) -> None:
        """Goes on from there."""
        self._reader.restore(state)


class _Blocks:
    """What grain reads: a block by its number, as rows by site and their documents."""

    def __init__(self, shards: Any, names: Sequence[str], dtype: Any, starts: Sequence[tuple[int, int]], rows: int):
        self.shards, self.names, self.dtype, self.starts, self.rows = shards, names, dtype, starts, rows

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
        shard, at = self.starts[int(i)]
        part = {name: np.array(self.shards[shard][name][at : at + self.rows]) for name in (*self.names, DOCUMENTS)}
        documents = part.pop(DOCUMENTS)
        return {name: rows.view(self.dtype) for name, rows in part.items()}, documents
