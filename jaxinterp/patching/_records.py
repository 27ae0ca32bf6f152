"""Where the results of a sweep go while it runs: arrays in memory, or a store on the disk that a later run goes on from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import types
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp._version import __version__
from jaxinterp.mesh import is_writer
from jaxinterp.patching._cone import Suffix
from jaxinterp.patching._plan import Plan
from jaxinterp.patching._prepare import Prepared
from jaxinterp.store import ResultStore, read_manifest

Arrays = dict[str, tuple[tuple[int, ...], Any]]


class Records:
    """Values [n, M, B], and kept logits [n, B, P, tokens] of each metric, filled chunk by chunk."""

    def __init__(self, arrays: Arrays, store: ResultStore | None):
        self._store = store
        self._arrays = {} if store else {k: np.zeros(shape, dtype) for k, (shape, dtype) in arrays.items()}

    @property
    def finished(self) -> frozenset[int]:
        """The chunks that need not run."""
        return frozenset() if self._store is None else self._store.done

    def write(self, chunk: int, rows: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Keeps a finished chunk."""
        if self._store is not None:
            self._store.write(chunk, rows, values)
        for name, array in self._arrays.items():
            array[rows] = values[name]

    def read(self, name: str) -> np.ndarray:
        """All rows; of cells that did not run, zeros or NaN."""
        return self._arrays[name] if self._store is None else np.array(self._store.read(name))


@contextlib.contextmanager
def open_records(
    path: str | os.PathLike[str] | None, facts: Mapping[str, Any], arrays: Arrays, plan: Plan
) -> Iterator[Records]:
    """The records of a sweep. An interrupt inside says how to go on.

    With several processes the first one writes; the others run the chunks that it asks for, and get its arrays at the end.
    """
    store = None
    if path is not None and is_writer():
        store = ResultStore.open(path, facts=facts, arrays=arrays, chunks=len(plan.chunks))
    records = Records(arrays, store)
    try:
        yield records
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(_how_to_go_on(path, records, plan)) from interrupt
    finally:
        if store is not None:
            store.close()


def _how_to_go_on(path: Any, records: Records, plan: Plan) -> str:
    if path is None:
        return "The sweep was interrupted and kept nothing. With store='a folder' a second call goes on from where it stopped."
    done = sum(plan.chunks[i].n for i in records.finished)
    return (
        f"The sweep was interrupted with {done} of {plan.n_run} cells kept in {path}. The same call goes on from there."
    )


def stored_suffixes(path: str | os.PathLike[str] | None) -> tuple[Suffix, ...]:
    """The compiled sweeps that a store was begun with, to be held to: the same chunks give the same bits."""
    manifest = None if path is None else read_manifest(Path(path))
    return () if manifest is None else tuple(_as_suffix(row) for row in manifest["facts"].get("compiled", []))


def _as_suffix(row: list[Any]) -> Suffix:
    return Suffix._make(tuple(field) if isinstance(field, list) else field for field in row)


def facts_of(prepared: Prepared, plan: Plan, about: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever changes a result or the cut into chunks, as JSON; of arrays and functions a checksum."""
    job = prepared.jobs[0]
    config = getattr(job.model, "config", None)
    source = prepared.source
    return {
        "model": describe(job.model) if config is None else repr(config),
        "model functions": describe(job.model),
        "params": checksum(job.params),
        "base": checksum((prepared.base, prepared.mask)),
        "source": None if source is None else checksum(tuple(source)),
        "metric": {name: describe(metric) for name, metric in prepared.metrics.items()},
        "cells": [
            list(map(list, prepared.cells.axes)),
            [list(sites) for sites in dict.fromkeys(job.cells.sites for job in prepared.jobs)],
            checksum([(job.rows, job.cells.parts) for job in prepared.jobs]),
        ],
        **about,
        "compiled": [list(suffix) for suffix in plan.suffixes],
        "devices": [jax.devices()[0].platform, jax.device_count(), *plan.mesh],
        "versions": {"jax": jax.__version__, "jaxinterp": __version__},
    }


_DEEP = 8


def describe(thing: Any, depth: int = 0) -> str:
    """What a function, a bundle of functions or an edit computes, as far as its code and its values tell."""
    inside = lambda *parts: ", ".join(describe(part, depth + 1) for part in parts)
    if depth > _DEEP:
        return type(thing).__qualname__
    if isinstance(thing, functools.partial):
        return f"partial({inside(thing.func, thing.args, thing.keywords)})"
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = (f"{f.name}={inside(getattr(thing, f.name))}" for f in dataclasses.fields(thing))
        return f"{type(thing).__qualname__}({', '.join(fields)})"
    if isinstance(thing, types.FunctionType):
        held = [cell.cell_contents for cell in thing.__closure__ or ()]
        return f"{thing.__module__}.{thing.__qualname__}:{_code(thing.__code__)}({inside(*held)})"
    if isinstance(thing, Mapping):
        return "{" + ", ".join(f"{key}: {inside(value)}" for key, value in thing.items()) + "}"
    if isinstance(thing, (list, tuple)):
        return f"[{inside(*thing)}]"
    if hasattr(thing, "dtype"):
        return checksum(thing)
    if isinstance(thing, (str, int, float, bool, type(None))):
        return repr(thing)
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def _code(code: types.CodeType) -> str:
    def constant(c: Any) -> str:
        if isinstance(c, types.CodeType):
            return _code(c)
        return repr(sorted(map(repr, c))) if isinstance(c, frozenset) else repr(c)  # a set has no order of its own

    return f"{zlib.crc32(code.co_code + repr((list(map(constant, code.co_consts)), code.co_names)).encode()):08x}"


_WHOLE = 1 << 30


def checksum(tree: Any) -> str:
    """A checksum of the arrays of a tree and of their shapes; of an array above a GiB evenly spaced numbers count."""
    code = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        step = 1 + getattr(leaf, "nbytes", 0) // _WHOLE
        array = np.asarray(leaf if step == 1 else leaf.reshape(-1)[::step])
        code = zlib.crc32(f"{jax.tree_util.keystr(path)} {array.dtype} {np.shape(leaf)}".encode(), code)
        code = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data if array.size else b"", code)
    return f"{code:08x}"
