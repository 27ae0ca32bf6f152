"""Checkpoints of any pytree: arrays by Orbax, and beside them what each leaf is, so that the bits and the kinds come back."""

import contextlib
import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, MissingFileError, SaveError, WeightsError
from jaxinterp._processes import from_all
from jaxinterp._typing import PyTree
from jaxinterp.store._atomic import atomic_folder
from jaxinterp.store._results import StoreMismatchError

FORMAT = "jaxinterp tree 1"
LEAVES, ARRAYS = "tree.json", "arrays"

SCALARS = {
    "bool": (lambda x: x, bool),
    "int": (lambda x: x, int),
    "float": (float.hex, float.fromhex),
    "complex": (lambda x: [x.real.hex(), x.imag.hex()], lambda parts: complex(*map(float.fromhex, parts))),
    "str": (lambda x: x, str),
}
"""Python's own values: how each is written as JSON, exactly, and read."""


def save_tree(tree: PyTree, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes any pytree to a folder: parameters, the state of an optimizer, keys, counters.

    Leaves are arrays of JAX (also cut over a mesh, and typed keys), arrays and scalars of NumPy, and Python's numbers and texts.
    Every bit comes back by `load_tree`. The folder appears whole under its name or not at all. What belongs to the structure of
    the tree (None, the classes of its nodes, their static fields) is not written: `load_tree` takes it from `like`.

    With several processes all of them call this, on a folder that all can reach. Leaves that are no arrays over all processes are
    written as process 0 has them.

    Args:
        tree: what to write.
        folder: its final name. It must not exist, or be empty, unless `overwrite`.
        overwrite: replaces an existing folder, if that is a checkpoint of a tree and holds nothing else.

    Returns:
        The folder.

    Raises:
        InputError: leaves that cannot be written; all are named.
        SaveError: the folder cannot be written, or is not to be replaced.

    Example:
        >>> import tempfile
        >>> state = {"w": jnp.ones((2, 3)), "key": jax.random.key(0), "step": 7}
        >>> folder = save_tree(state, Path(tempfile.mkdtemp()) / "step-7")
        >>> load_tree(folder, like=state)["step"]
        7
    """
    folder = Path(folder).expanduser().absolute()
    records, arrays = taken_apart(tree)
    with _folder_of_all(folder, overwrite) as temporary:
        if arrays:
            import orbax.checkpoint as ocp

            try:
                with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
                    writer.save(temporary / ARRAYS, args=ocp.args.PyTreeSave(arrays))
            except (OSError, ValueError) as error:
                raise SaveError(
                    f"Could not write {folder}: {reason_of(error)}. Nothing was left under that name that was not there before. "
                    "Free some space or choose a place that you may write to, and save again."
                ) from error
        if jax.process_index() == 0:
            content = {"format": FORMAT, "leaves": records}
            (temporary / LEAVES).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def load_tree(folder: str | Path, like: PyTree) -> PyTree:
    """Reads a pytree that `save_tree` wrote.

    Args:
        folder: what `save_tree` gave.
        like: a tree of the same structure, whose leaves say what comes back: an array of JAX (or a `jax.ShapeDtypeStruct` with a
            sharding) one on the same devices, cut in the same way, whatever mesh it was saved from; an array or scalar of NumPy,
            or a Python value, its own kind. A `jax.Array` that is tied to no device (`jnp.zeros(3)`), or a struct without a
            sharding, goes to the default device. Its values are not looked at. With several processes all of them call this.

    Returns:
        The tree, with the bits that were saved.

    Raises:
        MissingFileError: there is no such checkpoint.
        WeightsError: it is broken.
        StoreMismatchError: it holds another tree: all leaves that are missing, unexpected, or of another shape or dtype.

    Example:
        >>> import tempfile
        >>> folder = save_tree({"w": jnp.arange(3)}, Path(tempfile.mkdtemp()) / "a")
        >>> load_tree(folder, like={"w": jax.ShapeDtypeStruct((3,), jnp.int32)})["w"]
        Array([0, 1, 2], dtype=int32)
    """
    folder = Path(folder).expanduser().absolute()
    return rebuilt(folder, _read_records(folder), like)


def reason_of(error: Exception) -> str:
    """Why something could not be written, in the system's words where it has some: TensorStore puts them into a long line."""
    error = error.__cause__ if type(error) is Exception and isinstance(error.__cause__, Exception) else error
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return f"{lines[0]:.300}" if lines else type(error).__name__


def rebuilt(folder: Path, records: list[dict[str, Any]], like: PyTree, *, partial: bool = False) -> PyTree:
    """The tree whose leaves `records` tells (or a part of it), with the arrays under `folder`."""
    leaves, structure = jax.tree.flatten(like)
    names = _names(like)
    wanted = [record for record in records if not partial or record["path"] in names]
    _check_same(folder, wanted, {name: _kind(leaf) for name, leaf in zip(names, leaves, strict=True)})
    where = {record["path"]: i for i, record in enumerate(records)}
    arrays = _read_arrays(
        folder, {str(where[name]): leaf for name, leaf in zip(names, leaves, strict=True)}, records, partial
    )
    made = []
    for name, leaf in zip(names, leaves, strict=True):
        record = records[where[name]]
        if record["type"] in SCALARS:
            made.append(SCALARS[record["type"]][1](record["value"]))
        else:
            made.append(_as(leaf, arrays[str(where[name])], record.get("impl")))
    return jax.tree.unflatten(structure, made)


def _names(tree: PyTree) -> list[str]:
    """What each leaf is called, in JAX's own notation; leaves of nodes that name their children alike are numbered."""
    seen: Counter[str] = Counter()
    names = []
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path) or "the leaf"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> str:
    """What a leaf is, as messages say it: "float32[2, 3]", "key<fry>[]", "int"; empty where it is nothing that can be kept."""
    if type(leaf).__name__ in SCALARS and type(leaf).__module__ == "builtins":
        return type(leaf).__name__
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return ""
    if _is_key(leaf):
        return f"{leaf.dtype}{list(leaf.shape)}"
    dtype = np.dtype(leaf.dtype)
    legal = dtype.kind in "biufcV" and dtype.names is None and not dtype.hasobject and dtype.isnative
    return f"{dtype}{list(leaf.shape)}" if legal else ""


def taken_apart(tree: PyTree) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A record of each leaf, and the arrays by the number of their leaf."""
    records, arrays, faults = [], {}, []
    for i, (name, leaf) in enumerate(zip(_names(tree), jax.tree.leaves(tree), strict=True)):
        record: dict[str, Any] = {"path": name, "type": _kind(leaf)}
        if not record["type"]:
            dtype = f" of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else ""
            faults.append(f"{name} is a {type(leaf).__module__}.{type(leaf).__name__}{dtype}")
        elif record["type"] in SCALARS:
            record["value"] = SCALARS[record["type"]][0](leaf)
        else:
            if _is_key(leaf):
                record["impl"] = str(jax.random.key_impl(leaf))
                leaf = jax.random.key_data(leaf)
            if leaf.size:  # Orbax writes no empty array
                whole = isinstance(leaf, jax.Array) and (jax.process_count() == 1 or not leaf.is_fully_addressable)
                arrays[str(i)] = leaf if whole else np.asarray(leaf)
        records.append(record)
    if faults:
        raise InputError(
            f"A checkpoint of a tree keeps arrays, NumPy's scalars, and Python's {', '.join(SCALARS)}; of this tree "
            f"{'; '.join(faults)}. Nothing was written. Leave such leaves out, or make them a static part of the structure."
        )
    return records, arrays


@contextlib.contextmanager
def _folder_of_all(folder: Path, replace: bool) -> Iterator[Path]:
    """`atomic_folder` for all processes: the first one makes it and gives it its name, when all have written."""
    with contextlib.ExitStack() as stack:
        temporary, failed = folder, ""
        if jax.process_index() == 0:
            try:
                if replace:
                    _check_replaceable(folder)
                temporary = stack.enter_context(atomic_folder(folder, replace=replace))
            except SaveError as error:
                failed = str(error)
        name, failed = json.loads(from_all(json.dumps([temporary.name, failed]))[0])
        if failed:
            raise SaveError(failed)
        yield folder.with_name(name)
        from_all("written")
    from_all("there")


def _check_replaceable(folder: Path) -> None:
    """Raises unless all that `folder` holds is what a checkpoint of a tree holds, so that nothing else is ever deleted."""
    others = sorted(p.name for p in folder.iterdir() if p.name not in (LEAVES, ARRAYS)) if folder.is_dir() else []
    if others:
        raise SaveError(
            f"{folder} holds {', '.join(others[:5])}, so it is not a checkpoint of a tree alone, and overwrite=True would delete "
            "it. Nothing was written. Choose another folder, or empty this one first."
        )


def _read_records(folder: Path) -> list[dict[str, Any]]:
    file = folder / LEAVES
    if not file.is_file():
        raise MissingFileError(
            f"{folder} holds no checkpoint of a tree: it has no {LEAVES}. Was it written by save_tree?"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, and {FORMAT!r} is read")
        return [{"path": str(record["path"]), "type": str(record["type"]), **record} for record in content["leaves"]]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{file} cannot be read ({error}). Copy the folder again, or load an earlier one."
        ) from error


def _check_same(folder: Path, records: list[dict[str, Any]], like: Mapping[str, str]) -> None:
    there = {record["path"]: record["type"] for record in records}
    lines = [
        f"{name} is missing in the checkpoint ({like[name] or 'like has nothing that is kept'})"
        for name in like
        if name not in there
    ]
    lines += [f"{name} is unexpected: {there[name]}" for name in there if name not in like]
    lines += [
        f"{name} is {there[name]}, should be {like[name] or 'a leaf of a kind that is kept'}"
        for name in there
        if name in like and there[name] != like[name]
    ]
    if lines:
        raise StoreMismatchError(
            f"The checkpoint in {folder} holds another tree than `like`, in {len(lines)} of its leaves:\n  "
            + "\n  ".join(lines)
            + "\nGive as `like` a tree of the model, optimizer and settings that it was saved with, or load another checkpoint."
        )


def _read_arrays(folder: Path, like: Mapping[str, Any], records: list[dict[str, Any]], partial: bool) -> dict[str, Any]:
    """The arrays by the number of their leaf: those tied to devices as they should be, others as NumPy's; of keys their data."""
    how, arrays = {}, {}
    for number, leaf in like.items():
        if records[int(number)]["type"] in SCALARS:
            continue
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if not data.size:
            arrays[number] = np.zeros(data.shape, data.dtype)
        else:
            how[number] = (data, _sharding(leaf))
    if how:
        import orbax.checkpoint as ocp

        arguments = {
            number: ocp.RestoreArgs(restore_type=np.ndarray)
            if sharding is None or (sharding.is_fully_addressable and jax.process_count() > 1)
            else ocp.ArrayRestoreArgs(sharding=sharding, global_shape=data.shape, dtype=data.dtype)
            for number, (data, sharding) in how.items()
        }
        request = ocp.args.PyTreeRestore(item=dict.fromkeys(how, 0), restore_args=arguments, **_partial(ocp, partial))
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                arrays |= reader.restore(folder / ARRAYS, args=request)
        except Exception as error:
            if type(error) is not Exception and not isinstance(error, (OSError, ValueError, KeyError)):
                raise  # Orbax raises a plain one for files that it cannot read
            raise WeightsError(
                f"The arrays in {folder} are truncated or corrupt ({reason_of(error)}). Copy the folder again; or delete it, to "
                "go on from an earlier one."
            ) from error
    return arrays


def _partial(ocp: Any, wanted: bool) -> dict[str, Any]:
    """How Orbax is told to read a part of what is there: newer releases have a word for it."""
    if not wanted:
        return {}
    fields = {field.name for field in dataclasses.fields(ocp.args.PyTreeRestore)}
    return {"partial_restore": True} if "partial_restore" in fields else {"transforms": {}}


def _sharding(leaf: Any) -> Any:
    """Where an array of JAX is tied to; None for one that is not, and for everything else."""
    if isinstance(leaf, jax.Array):
        return leaf.sharding if leaf.committed else None
    return getattr(leaf, "sharding", None)


def _as(like: Any, array: Any, impl: str | None) -> Any:
    """An array that was read, as the kind of leaf that `like` is."""
    if isinstance(like, (np.ndarray, np.generic)):
        return array if isinstance(like, np.ndarray) else array[()]
    sharding = _sharding(like)
    if isinstance(array, np.ndarray):
        weak = getattr(like, "weak_type", False) and array.ndim == 0
        array = jnp.asarray(array.item() if weak else array)
        array = array if sharding is None else jax.device_put(array, sharding)
    return array if impl is None else jax.random.wrap_key_data(array, impl=impl)
