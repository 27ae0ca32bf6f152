"""Batches of shuffled activations from a source of rows: the loop around the pool."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp import mesh as meshes
from jaxinterp._errors import InputError, JaxinterpError, StreamEmptyError
from jaxinterp._typing import Array, Params, PRNGKeyArray
from jaxinterp.activations import _pool
from jaxinterp.activations._description import as_text, check_state, named
from jaxinterp.activations._harvest import Harvest
from jaxinterp.activations._mesh import check_mesh, local_parts, mesh_of, shard_of
from jaxinterp.activations._pool import AXIS
from jaxinterp.activations._source import RowSource
from jaxinterp.models import Model

PATIENCE = 64
"""Passes in a row that may give nothing before that is an error."""

MANY, FEW = 100, 4096
"""A warning tells of more than so many passes over tokens of which each gives fewer rows than that."""


class ActivationStream:
    """Batches of activations from a model and tokens, in random order, each row once in a pass over the tokens.

    One forward pass under jit, which stops behind the last layer that is asked for, gives the rows of all sites. They are
    appended in place to a pool on the devices, until that is full. Then the whole pool is shuffled, over all devices along the
    mesh's `data` axis, and batches are slices of it. When half of it is used the rest stays, new rows join it, and all is
    shuffled again. So a batch is a uniform draw from what was read and not yet used, whatever the order of documents. The rows of
    a batch belong together across sites.

    Iterating ends when the tokens do. Rows that are left then are fewer than a batch: `remainder()` has them.

    Args:
        model: the model.
        params: its parameters, on the mesh in any way (`jaxinterp.weights.shard`) or not.
        tokens: made by `read_tokens`.
        sites: "resid_post.3" or ("resid_post", 3) for a site in a layer, "embed" for one outside; or TransformerLens's names.
        batch_size: rows of a batch, over all devices.
        buffer_size: rows of the pool, over all devices; None: 32 batches or four passes of the model, whichever is more. For a
            moment of each shuffle one site's rows are there twice.
        mesh: with an axis `data`, over which tokens and rows are cut. None: that of the parameters, or their one device.
        key: a typed key.
        exclude: token ids whose rows are left out; "special": all special tokens of the tokenizer, BOS among them. Where tokens
            were read without one, give the ids, or () to keep all. Padding is always left out.
        exclude_positions: positions whose rows are left out, counted from the first token of a piece, BOS included.
        dtype: what is kept and served, such as "bfloat16"; None: what the model computes in.
        timed: whether `timings` counts; that waits for the devices at each refill.

    Attributes:
        widths: by key of the site ("resid_post.3", "embed"), how many numbers a row has. Sites of heads are laid flat.
        batch_size, dtype, mesh: as given or found.
        served: rows served so far.
        timings: seconds at refills, where `timed`: "read" (tokens on the host), "harvest" (forward passes and appending),
            "shuffle".
        description: the model's config and a checksum of its parameters, sites, tokens, exclusions, sizes; for JSON.

    Raises:
        InputError: sizes that do not fit, a mesh without `data`; while it runs: NaN or infinity in what the model gives (the site
            and the document are named), nothing left by the exclusions, exclude="special" without a tokenizer.
        UnvisitedSiteError, SiteIndexError, SiteTypeError: sites that the model does not have, or that are not by token.
        StreamEmptyError: (from `next`) the tokens have ended. It is a StopIteration.

    Example:
        >>> import jax, jaxinterp as ji
        >>> lm = ji.zoo.load("stories")
        >>> tokens = ji.activations.read_tokens(["Once upon a time there was a dog. " * 9], lm.tokenizer, n_ctx=16, batch_size=2)
        >>> stream = ji.activations.ActivationStream(
        ...     lm.model, lm.params, tokens, ["resid_post.1", "embed"], batch_size=32, key=jax.random.key(0))
        >>> batch = next(stream)
        >>> sorted((name, x.shape[0]) for name, x in batch.items())
        [('embed', 32), ('resid_post.1', 32)]
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        tokens: Any,
        sites: Sequence[Any],
        *,
        batch_size: int,
        buffer_size: int | None = None,
        mesh: Mesh | None = None,
        key: PRNGKeyArray,
        exclude: Sequence[int] | str = "special",
        exclude_positions: Sequence[int] = (),
        dtype: Any = None,
        timed: bool = False,
    ):
        mesh = mesh_of(params) if mesh is None else mesh
        check_mesh(mesh)
        if tuple(tokens.shard) != shard_of(mesh):
            raise InputError(
                f"The tokens are part {tokens.shard[0]} of {tokens.shard[1]}, and the devices of this process hold another part "
                f"of the mesh's axis `data`: read them with shard={shard_of(mesh)}."
            )
        if isinstance(exclude, str) and exclude != "special":
            raise InputError(f'exclude={exclude!r}: give token ids, or "special" for all special tokens.')
        ids = tokens.special_ids if isinstance(exclude, str) else tuple(exclude)
        if ids is None:
            raise InputError(
                "The tokens were read without a tokenizer, so nobody knows which ids are special, BOS among them. Give those "
                "whose rows are to be left out, as in exclude=(0,), or exclude=() to keep all; or give read_tokens the tokenizer."
            )
        skip = {"tokens": ids, "positions": tuple(exclude_positions)}
        source = Harvest(model, params, tokens, sites, mesh, skip)
        self._open(source, batch_size, buffer_size, mesh, key, dtype, timed)

    @classmethod
    def over(
        cls,
        source: RowSource,
        *,
        batch_size: int,
        buffer_size: int | None,
        mesh: Mesh,
        key: PRNGKeyArray,
        dtype: Any = None,
    ) -> ActivationStream:
        """A stream over another source of rows."""
        stream = object.__new__(cls)
        stream._open(source, batch_size, buffer_size, mesh, key, dtype, False)
        return stream

    def _open(
        self,
        source: RowSource,
        batch_size: int,
        buffer_size: int | None,
        mesh: Mesh,
        key: PRNGKeyArray,
        dtype: Any,
        timed: bool,
    ) -> None:
        n, rows = mesh.shape[AXIS], source.rows
        if batch_size < 1 or batch_size % n:
            raise InputError(f"batch_size={batch_size} cannot be cut over {n} devices along `data`: give a multiple.")
        least = n * _up(max(2 * rows + 2, rows + batch_size // n), n)
        asked = max(32 * batch_size, 4 * n * rows) if buffer_size is None else buffer_size
        size = n * _up(-(-asked // n), n)
        if size < least:
            raise InputError(
                f"buffer_size={asked}: up to {n * rows} rows are read at a time, of which the pool must hold twice as many, or "
                f"as many and a batch of {batch_size}. Give {least} or more, or read less at a time."
            )
        self._source, self.mesh, self._timed = source, mesh, timed
        self.widths, self.dtype = dict(source.widths), jnp.dtype(source.dtype if dtype is None else dtype)
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise InputError(f"dtype={self.dtype}: activations are kept as floating-point numbers.")
        self.batch_size, self._room = batch_size, size // n
        self.description = source.description | {
            "dtype": str(self.dtype), "batch_size": batch_size, "buffer_size": size, "devices": n,
            "processes": jax.process_count(), "readers": shard_of(mesh)[1],
        }  # fmt: skip
        self.timings = {"read": 0.0, "harvest": 0.0, "shuffle": 0.0}
        self._values, self._documents = _pool.empty(self.widths, self.dtype, size, mesh)
        self._counts = np.zeros(n, np.int32)  # rows that each device holds, known in every process
        self._here = local_parts(mesh)
        self._faults = self._no_faults()
        self._key, self._refills, self._level, self._ended, self.served = key, 0, 0, False, 0
        self._last: Array | None = None
        self._broken, self._passes, self._warned = "", 0, False

    def __iter__(self) -> ActivationStream:
        return self

    def __next__(self) -> dict[str, Array]:
        """The next batch, by key of the site, [batch_size, width], cut over `data`."""
        self._check_sound()
        left = int(self._counts.sum())
        while not self._ended and (2 * left <= self._level or left < self.batch_size):
            self._refill()
            left = int(self._counts.sum())
        if left == self.served == 0:
            raise InputError(self._nothing_left("the whole of it was read"))
        if left < self.batch_size:
            raise StreamEmptyError(
                f"the stream has ended: it had {self.served + left} rows, and {self.served} were served in batches of "
                f"{self.batch_size}; {left} are left, which `remainder()` gives. For more, read the tokens with epochs=None "
                "(no end) or more epochs, or give more text."
            )
        size = self.batch_size // self.mesh.shape[AXIS]
        batch, self._last = _pool.take(self._values, self._documents, self._counts, size=size, mesh=self.mesh)
        self._counts = self._counts - np.int32(size)
        self.served += self.batch_size
        return batch

    def documents(self) -> Array:
        """The document that each row of the batch served last came from, int32 [batch_size], cut as the batch is."""
        if self._last is None:
            raise InputError("no batch was served yet: call next(stream) first.")
        return self._last

    def remainder(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The rows in the pool that were not served yet, on the host, and their documents; all processes call it."""
        self._check_sound()
        is_there = np.arange(self._room)[None] < self._counts[:, None]
        rows = jax.tree.map(
            lambda x: x.reshape(*is_there.shape, *x.shape[1:])[is_there], meshes.fetch((self._values, self._documents))
        )
        return rows[0], rows[1]

    def state(self) -> dict[str, Any]:
        """Everything that the following batches depend on, for `jaxinterp.store.save_tree`; all processes call it.

        It holds a copy of the pool. Of a stream in which NaN or infinity was found it keeps that too: a stream restored from it
        raises the same error.
        """
        source = json.dumps(meshes.from_all(json.dumps(self._source.state())))
        return self._state(jax.tree.map(jnp.copy, (self._values, self._documents)), source)

    def state_shapes(self) -> dict[str, Any]:
        """The tree of `state()` without a copy of the pool: what to give `load_tree` or `Checkpoints.restore` as `like`.

        In place of the pool's arrays stand `jax.ShapeDtypeStruct`s with their shardings; the rest is of the kinds that `state()`
        has, and no state to restore.
        """
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        return self._state(jax.tree.map(shape, (self._values, self._documents)), "")

    def _state(self, pool: tuple[Any, Any], source: str) -> dict[str, Any]:
        return {
            "values": pool[0], "documents": pool[1], "counts": self._counts.copy(), "key": self._key, "refills": self._refills,
            "level": self._level, "ended": self._ended, "served": self.served, "fault": self._broken,
            "description": as_text(self.description), "source": source,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()` of a stream made in the same way on a mesh of the same size: the same batches, bit for bit.

        The tokens may have other epochs than the state's, but no fewer than were begun: so a stream that has ended goes on with
        what was left and the next pass. The stream's own pool is freed first, and the state's is copied once.
        """
        sources = [json.loads(text) for text in json.loads(state["source"])]
        same = check_state(state, self.description, max(source.get("passes", 0) for source in sources))
        self._source.restore(sources[jax.process_index()])
        self._counts, self._key = np.array(state["counts"], np.int32), state["key"]
        self._refills, self._level, self.served = int(state["refills"]), int(state["level"]), int(state["served"])
        self._ended, self._broken = bool(state["ended"]) and same, str(state["fault"])
        self._last, self._faults = None, self._no_faults()
        del self._values, self._documents
        cut, pool = NamedSharding(self.mesh, P(AXIS)), (dict(state["values"]), state["documents"])
        self._values, self._documents = jax.tree.map(lambda x: jax.device_put(x, cut, may_alias=False), pool)

    def _check_sound(self) -> None:
        if self._broken:
            raise InputError(self._broken)

    def _no_faults(self) -> Array:
        faults = np.full((self.mesh.shape[AXIS], len(self.widths)), _pool.FINE, np.int32)
        return meshes.put(faults, self.mesh, P(AXIS))

    def _refill(self) -> None:
        """Reads until the pool is full or the source ends, and shuffles."""
        before, idle = int(self._counts.sum()), 0
        while not self._ended and (room := (self._room - int(self._counts.max())) // self._source.rows):
            held = int(self._counts.sum())
            is_barren = self._append(room)
            idle = idle + room if int(self._counts.sum()) == held else 0
            if not self._ended and (is_barren or idle >= PATIENCE):
                read = f"{self._passes} epochs were begun" if is_barren else f"{idle} passes of the model gave no row"
                raise InputError(self._nothing_left(read))
        start = time.perf_counter()
        key = jax.random.fold_in(self._key, self._refills)
        dealt, laid = _pool.orders(key, self._counts, self._documents, mesh=self.mesh)
        move = lambda rows: _pool.shuffle(rows, dealt, laid, mesh=self.mesh)
        self._values = {name: move(rows) for name, rows in self._values.items()}
        self._documents = move(self._documents)
        self._measure("shuffle", start, self._documents, self._values)
        total, n = int(self._counts.sum()), len(self._counts)
        self._counts = (total // n + (np.arange(n) < total % n)).astype(np.int32)
        self._level, self._refills = total, self._refills + 1
        if total > before:
            self._check_finite()
        self._warn_of_repetition()

    def _nothing_left(self, read: str) -> str:
        tokens = self.description.get("tokens")
        source = named(tokens["source"]) if tokens else "the source"
        return (
            f"{source} gives no row ({read}): exclude and exclude_positions leave nothing of these tokens. Exclude less, as in "
            "exclude=(), or give a text with more than special tokens."
        )

    def _warn_of_repetition(self) -> None:
        """Once, where a pass over the tokens gives less than a batch, and there were many."""
        rows = self.served + int(self._counts.sum())
        if self._warned or self._passes <= MANY or rows >= self._passes * min(self.batch_size, FEW):
            return
        self._warned = True
        warnings.warn(
            f"{named(self.description['tokens']['source'])} was read {self._passes} times: an epoch of it gives about "
            f"{-(-rows // self._passes)} rows, fewer than a batch of {self.batch_size}, so a batch has the same rows many times. "
            "Give more text, or fewer epochs.",
            UserWarning,
            stacklevel=4,
        )

    def _append(self, count: int) -> bool:
        """Up to `count` chunks from the source behind the rows of the pool; in each process as many.

        Gives whether a whole pass over the source gave nothing to any process.
        """
        kept, is_barren, failed = self._counts[self._here], False, None
        for _ in range(count):
            start = time.perf_counter()
            try:
                chunk = None if failed else self._source.read()
            except JaxinterpError as error:  # told to all processes behind the loop; the source has read on meanwhile
                chunk, failed, self._broken = None, error, str(error)
            self._measure("read", start)
            if chunk is None:
                self._ended = not failed
            else:
                self._passes, is_barren = chunk.passes, chunk.is_barren
            if (chunk is None or is_barren) and jax.process_count() == 1:
                break
            start = time.perf_counter()
            is_kept = np.zeros((len(kept), self._source.rows), bool) if chunk is None else chunk.is_kept
            new, documents = self._source.compute(self._source.nothing() if chunk is None else chunk.arrays)
            order = np.argsort(~is_kept, axis=1, kind="stable").astype(np.int32)
            places = np.concatenate([kept[:, None], is_kept.sum(1, dtype=np.int32)[:, None], order], axis=1)
            places = jax.make_array_from_process_local_data(NamedSharding(self.mesh, P(AXIS)), places)
            self._values, self._documents, self._faults = _pool.append(
                self._values, self._documents, self._faults, new, documents, places, mesh=self.mesh
            )
            kept = kept + is_kept.sum(1, dtype=np.int32)
            self._measure("harvest", start, self._documents, self._values)
        is_barren = self._agree(kept, is_barren)
        if self._broken:
            raise failed or InputError(self._broken)
        return is_barren

    def _agree(self, kept: np.ndarray, is_barren: bool) -> bool:
        """What all processes hold and met: rows by device, whether all sources have ended or are barren, what is broken."""
        mine = json.dumps([self._here, kept.tolist(), self._ended, is_barren or self._ended, self._broken])
        told = [json.loads(text) for text in meshes.from_all(mine)]
        self._counts, self._ended = self._counts.copy(), all(ended for _, _, ended, _, _ in told)
        for parts, counts, *_ in told:
            self._counts[parts] = counts
        self._broken = next((broken for *_, broken in told if broken), "")
        return all(barren for _, _, _, barren, _ in told)

    def _check_finite(self) -> None:
        """The one place where the host waits for what the devices computed."""
        worst = np.asarray(_pool.first_faults(self._faults, mesh=self.mesh))
        faults = [
            f"{name} (document {document})"
            for name, document in zip(self.widths, worst, strict=True)
            if document < _pool.FINE
        ]
        if faults:
            self._broken = (
                f"NaN or infinity in the activations of {', '.join(faults)}; nothing of this refill was served. Leave the "
                "document out, or compute or keep in a wider dtype (float16 overflows above 65504)."
            )
            raise InputError(self._broken)

    def _measure(self, what: str, start: float, *arrays: Any) -> None:
        if self._timed:
            jax.block_until_ready(arrays)
            self.timings[what] += time.perf_counter() - start


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
