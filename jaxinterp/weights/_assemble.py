"""Tensors of a checkpoint to parameters: one stack of layers at a time, converted as it is filled."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, WeightsError
from jaxinterp._typing import Params
from jaxinterp.models import TransformerConfig
from jaxinterp.weights._checkpoint import Checkpoint
from jaxinterp.weights._mapping import Fitted, Place, unflatten

LEGAL_DTYPES = ("float32", "bfloat16", "float16")


def legal_dtype(dtype: Any) -> np.dtype:
    """`dtype` as numpy's; an error unless parameters may have it."""
    try:
        result = jnp.dtype(dtype)
    except TypeError:
        result = None
    if result is None or result.name not in LEGAL_DTYPES:
        raise InputError(f"dtype = {dtype!r} is not legal for parameters. Legal: {', '.join(LEGAL_DTYPES)}.")
    return result


def assemble(checkpoint: Checkpoint, fitted: Fitted, config: TransformerConfig, dtype: np.dtype) -> Params:
    """The parameters of a model, read from its checkpoint.

    Beside the result itself, no more than the stack that is being filled is in memory; the files are mapped, not
    read.

    Args:
        checkpoint: the opened folder, whose tensors fit (see `check`).
        fitted: which tensor holds what.
        config: the model.
        dtype: of the parameters; each tensor is rounded to it.

    Raises:
        WeightsError: tensors hold NaN or infinite values, or values outside of `dtype`; all of them are named.
    """
    entries, faults, flat = checkpoint.entries, [], {}
    for place in fitted.places:
        stacks = [np.empty((len(place.names),) * place.layered + shape, dtype) for shape in place.shapes]
        for layer, name in enumerate(place.names):
            tensor = checkpoint.read(*entries[name])
            fault = value_fault(tensor, dtype)
            if fault:
                faults.append(f"{name} ({fault})")
            _fill(stacks, place, layer, tensor)
        flat |= {path: jnp.asarray(stack) for path, stack in zip(place.paths, stacks, strict=True)}
    if faults:
        raise WeightsError(
            f"The weights in {checkpoint.folder} are not all finite numbers: {', '.join(faults)}. A model with such "
            "weights gives NaN for every prompt. Load an earlier checkpoint, or, where values are too large for "
            "float16, load as float32 or bfloat16."
        )
    return unflatten(config, flat)


def _fill(stacks: Sequence[np.ndarray], place: Place, layer: int, tensor: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        for stack, part in zip(stacks, place.transform.load(tensor, place.shapes), strict=True):
            (stack[layer] if place.layered else stack)[...] = part


def value_fault(tensor: np.ndarray, dtype: np.dtype) -> str:
    """What is not finite in an array, or would not be as `dtype`; empty where all is well."""
    finite = np.isfinite(tensor)
    if not finite.all():
        nan = int(np.isnan(tensor).sum())
        return f"{nan} NaN and {int((~finite).sum()) - nan} infinite of {tensor.size}"
    limit = float(jnp.finfo(dtype).max)
    if float(jnp.finfo(tensor.dtype).max) > limit and tensor.size:
        largest = max(abs(float(tensor.max())), abs(float(tensor.min())))
        if largest > limit:
            return f"a value of size {largest:.3g}, too large for {dtype.name}"
    return ""


def read_buffers(checkpoint: Checkpoint, fitted: Fitted, config: TransformerConfig) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint that are no parameters, checked; equal ones share their memory.

    Raises:
        WeightsError: a buffer or a second copy of a tied tensor holds other values than the model computes with.
    """
    entries, faults, kept = checkpoint.entries, [], {}
    unique: dict[tuple[bytes, str, tuple[int, ...]], np.ndarray] = {}
    for name, fault in fitted.buffers.items():
        if name in entries:
            value = checkpoint.read(*entries[name])
            what = fault(value, config)
            if what:
                faults.append(f"{name}: {what}")
            kept[name] = unique.setdefault((value.tobytes(), value.dtype.name, value.shape), np.array(value))
    for name, other in fitted.twins.items():
        if name in entries:
            value, twin = checkpoint.read(*entries[name]), checkpoint.read(*entries[other])
            if value.shape != twin.shape or value.dtype != twin.dtype or not np.array_equal(value, twin):
                faults.append(
                    f"{name}: the config ties it to {other}, and it differs (untied weights need tie_word_embeddings = false)"
                )
    if faults:
        raise WeightsError(
            f"Tensors in {checkpoint.folder} contradict its config.json: {'; '.join(faults)}. Use the config.json of "
            "these weights."
        )
    return kept
