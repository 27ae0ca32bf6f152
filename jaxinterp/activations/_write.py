"""Keeping a stream on a disk, so that it can be read many times."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp import mesh as meshes
from jaxinterp._errors import InputError, JaxinterpError, SaveError
from jaxinterp.activations._description import differences
from jaxinterp.activations._shards import DOCUMENTS, FORMAT, MANIFEST, read_manifest, write_array, write_manifest
from jaxinterp.store import StoreMismatchError, load_tree, save_tree


def write_activations(
    stream: Any,
    folder: str | Path,
    *,
    rows: int | None = None,
    rows_per_shard: int = 1 << 18,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the rows of a stream as they are served, with what is left at its end, as shards that `stored_activations` reads.

    A shard is one .npy file for each site and one of document numbers; bfloat16 is kept as uint16. `manifest.json` has widths,
    dtype, the rows and checksums of each shard, the stream's description and key, and `provenance`. The state of the stream is
    kept with each shard, so that a writer that was killed goes on when it is called again with the same stream, made anew: what
    it gives in the end is the same to the bit. With several processes all call this, on a folder that all can reach; process 0
    writes.

    A stream that ends before `rows` is an error, and the folder is not complete then. What was written stays: the same call with
    rows=None, or as many as there are, goes on from the last shard.

    Args:
        stream: any stream of this package, new; one without an end needs `rows`.
        folder: new, empty, or of the same writing cut short. One that is complete already is left as it is.
        rows: how many to write; None: all that there are. The manifest has the number that was written.
        rows_per_shard: at least; a shard is a whole number of batches.
        provenance: whatever else is to be kept with it, for JSON.

    Returns:
        The folder.

    Raises:
        InputError: the stream ended before `rows`, or gave none.
        StoreMismatchError: the folder holds other activations.
        SaveError: the folder cannot be written, or holds something else. What was finished before stays usable.

    Example:
        >>> import tempfile
        >>> from jaxinterp.activations import from_arrays, stored_activations
        >>> stream = from_arrays({"x": np.eye(6, dtype=np.float32)}, batch_size=4, key=jax.random.key(0), epochs=1)
        >>> folder = write_activations(stream, Path(tempfile.mkdtemp()) / "x")
        >>> stored_activations(folder, batch_size=2, key=jax.random.key(0)).widths
        {'x': 6}
    """
    if (rows is not None and rows < 1) or rows_per_shard < 1:
        raise InputError(f"rows={rows}, rows_per_shard={rows_per_shard}: give 1 or more.")
    folder = Path(folder).expanduser().absolute()
    asked = {
        "stream": stream.description,
        "key": np.asarray(jax.random.key_data(stream.state_shapes()["key"])).tolist(),
        "rows_asked": rows,
        "rows_per_shard": rows_per_shard,
        "provenance": dict(provenance or {}),
    }
    try:
        asked = json.loads(json.dumps(asked))
    except TypeError as error:
        raise InputError(f"provenance is kept as JSON: {error}.") from error
    manifest = _of_writer(lambda: _begin(folder, stream, asked))
    if "state" in manifest:
        stream.restore(load_tree(folder / manifest["state"], like=stream.state_shapes()))
    while not manifest["complete"]:
        batches, ended = _next_shard(stream, manifest["rows"], rows, rows_per_shard)
        if ended:
            _check_enough(folder, manifest["rows"] + sum(len(documents) for _, documents in batches), rows)
        state = None if ended else f"state-{len(manifest['shards']) + 1:06}"
        if state is not None:
            save_tree(stream.state(), folder / state, overwrite=True)
        manifest = _of_writer(lambda: _finish_shard(folder, manifest, batches, state))  # noqa: B023
    return folder


def _begin(folder: Path, stream: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The manifest of what is there already, or a new one."""
    if not (folder / MANIFEST).is_file():
        if folder.is_file() or (folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir())):
            raise SaveError(f"{folder} holds something else than activations: nothing was written. Choose another one.")
        manifest = {
            "format": FORMAT, "complete": False, "widths": dict(stream.widths), "dtype": str(stream.dtype), **asked, "rows": 0,
            "shards": [],
        }  # fmt: skip
        write_manifest(folder, manifest)
        return manifest
    manifest, rows = read_manifest(folder), asked["rows_asked"]
    if rows == manifest["rows"] or (not manifest["complete"] and (rows is None or rows > manifest["rows"])):
        manifest["rows_asked"] = rows  # nothing that is there would be another
    if other := differences({name: manifest.get(name) for name in asked}, asked):
        raise StoreMismatchError(
            f"{folder} holds other activations: {other}. Nothing was changed. Choose another folder."
        )
    return manifest


def _next_shard(stream: Any, held: int, rows: int | None, rows_per_shard: int) -> tuple[list[Any], bool]:
    """The batches of the next shard on the host, with their documents, and whether it is the last one."""
    batches, count = [], 0
    while count < rows_per_shard and (rows is None or held + count < rows):
        batch = next(stream, None)
        ended = batch is None
        pair = stream.remainder() if ended else meshes.fetch((batch, stream.documents()))
        limit = len(pair[1]) if rows is None else min(len(pair[1]), rows - held - count)
        batches.append(jax.tree.map(lambda x: x[:limit], pair))  # noqa: B023
        count += limit
        if ended:
            return batches, True
    return batches, rows is not None and held + count >= rows


def _check_enough(folder: Path, count: int, rows: int | None) -> None:
    if count < (rows or 1):
        raise InputError(
            f"The stream ended after {count} rows, and {rows or 'some'} were to be written: {folder} is not complete. "
            + (f"Make it anew and call this again with rows=None or rows={count}; or write" if count else "Write")
            + " a stream of more text or epochs to another folder."
        )


def _finish_shard(folder: Path, manifest: dict[str, Any], batches: list[Any], state: str | None) -> dict[str, Any]:
    """Writes a shard, then the manifest that has it; states that no manifest names are taken away last."""
    rows = sum(len(documents) for _, documents in batches)
    shards = list(manifest["shards"])
    if rows:
        sites, documents = jax.tree.map(lambda *x: np.concatenate(x), *batches)
        arrays = {**sites, DOCUMENTS: documents.astype(np.int32)}
        crc32 = {site: write_array(folder, len(shards), site, array) for site, array in arrays.items()}
        shards.append({"rows": rows, "crc32": crc32})
    rows += manifest["rows"]
    manifest = {**manifest, "rows": rows, "shards": shards, "complete": state is None, "state": state}
    if state is None:
        del manifest["state"]
    write_manifest(folder, manifest)
    for old in folder.glob("state-*"):
        if old.name != state:
            shutil.rmtree(old, ignore_errors=True)
    return manifest


def _of_writer(write: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What process 0 gives when it writes, in all of them; what fails there is an error in all."""
    done: dict[str, Any] = {}
    if meshes.is_writer():
        try:
            done = {"value": write()}
        except (JaxinterpError, OSError) as error:
            if jax.process_count() == 1:
                raise
            done = {"error": str(error)}
    done = json.loads(meshes.from_all(json.dumps(done))[0])
    if "error" in done:
        raise SaveError(done["error"])
    return done["value"]
