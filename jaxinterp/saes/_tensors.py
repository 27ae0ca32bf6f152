"""Tensors of dictionaries in files: checked against a config, renamed, transposed, rounded where asked and never otherwise."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, WeightsError
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._form import Tensor
from jaxinterp.weights import read_safetensors, write_safetensors

DTYPES = ("float32", "bfloat16", "float16")


@functools.lru_cache
def shapes_of(config: SAEConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a dictionary, without making one."""
    sample = jax.ShapeDtypeStruct((2, config.width_out), jnp.float32)
    init = lambda sample: config.architecture.init(jax.random.key(0), config, sample)
    return {name: leaf.shape for name, leaf in jax.eval_shape(init, sample).items()}


def check(params: Mapping[str, np.ndarray], config: SAEConfig, what: str) -> None:
    """Refuses parameters that are not those of a config.

    Raises:
        WeightsError: some are missing, too many, of another shape, or hold values that are not finite; all are named.
    """
    shapes = shapes_of(config)
    faults = [f"{name} is missing" for name in shapes if name not in params]
    faults += [f"{name} is not of this dictionary" for name in params if name not in shapes]
    for name, value in params.items():
        faults += _faults_of(name, value, shapes.get(name, value.shape))
    _raise(faults, what)


def take(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, Tensor],
    idle: Mapping[str, Callable[[np.ndarray], str]],
    config: SAEConfig,
    path: Path,
) -> dict[str, np.ndarray]:
    """Our parameters out of the tensors of a file, as views.

    Args:
        tensors: all of the file.
        names: which tensor each parameter is.
        idle: tensors that may be there beside, each with what is wrong with its values.
        config: what they must fit.
        path: the file, for messages.

    Raises:
        WeightsError: as `check`, by the names that the tensors have in the file.
    """
    shapes = shapes_of(config)
    known = {tensor.name for tensor in names.values()}
    faults = [f"{tensor.name} is missing" for tensor in names.values() if tensor.name not in tensors]
    faults += [
        f"{name} is not understood, and might change the computation"
        for name in tensors
        if name not in known and name not in idle
    ]
    for ours, (name, transposed) in names.items():
        if name in tensors:
            faults += _faults_of(name, tensors[name], shapes[ours][::-1] if transposed else shapes[ours])
    for name in idle.keys() & tensors.keys():
        fault = idle[name](tensors[name])
        faults += [f"{name}: {fault}"] if fault else []
    _raise(faults, str(path))
    return {ours: tensors[name].T if transposed else tensors[name] for ours, (name, transposed) in names.items()}


def give(params: Mapping[str, np.ndarray], names: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Our parameters by the names that a form has for them."""
    return {name: params[ours].T if transposed else params[ours] for ours, (name, transposed) in names.items()}


def _faults_of(name: str, value: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    if value.shape != shape:
        return [f"{name} is {list(value.shape)}, should be {list(shape)}"]
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return [f"{name} is of {value.dtype}, should be floating-point numbers"]
    return [] if np.isfinite(value).all() else [f"{name} holds NaN or infinity"]


def _raise(faults: list[str], what: str) -> None:
    if faults:
        raise WeightsError(f"{what} does not hold what its config says:\n  " + "\n  ".join(faults))


def on_host(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters as numpy arrays.

    Raises:
        InputError: they lie over several processes.
    """
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in params.values()):
        raise InputError(
            "These parameters lie over several processes, and a folder is written by one that has all of them. Keep them by "
            "jaxinterp.store.save_tree(sae.params, folder), which each process calls."
        )
    return {name: np.asarray(leaf) for name, leaf in params.items()}


def with_dtype(value: np.ndarray, dtype: str | None) -> np.ndarray:
    """Rounded to a dtype; None: as it is, but for float64, which becomes float32."""
    wanted = dtype or ("float32" if value.dtype == np.float64 else value.dtype.name)
    return value.astype(jnp.dtype(wanted), copy=False)


def exactly(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """In a dtype that holds the values exactly.

    Raises:
        WeightsError: it cannot.
    """
    result = value.astype(jnp.dtype(dtype), copy=False)
    if not np.array_equal(result.astype(np.float64), value.astype(np.float64)):
        raise WeightsError(
            f"{name} was {dtype} in the file that it came from, and has values now that {dtype} cannot hold exactly. Give "
            f"save(..., dtype='float32') to keep them, or dtype={dtype!r} to round them."
        )
    return result


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors or .npz file.

    Raises:
        WeightsError: the file is truncated or corrupt, or holds pickles.
    """
    if path.suffix != ".npz":
        return read_safetensors(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{path} is truncated or corrupt, or holds objects that are no arrays: {error}. Download or copy the file again."
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors as .safetensors or .npz.

    Raises:
        InputError: .npz has no bfloat16.
    """
    if path.suffix != ".npz":
        return write_safetensors(path, tensors)
    if any(value.dtype == jnp.bfloat16 for value in tensors.values()):
        raise InputError(f"{path.suffix} files hold no bfloat16: give save(..., dtype='float32') or 'float16'.")
    np.savez(path, **{name: np.ascontiguousarray(value) for name, value in tensors.items()})  # type: ignore[arg-type]
    return None
