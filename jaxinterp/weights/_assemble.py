"""Tensors of a checkpoint to parameters: each stack of layers is filled in place, with what this process's devices hold."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxinterp._errors import InputError, WeightsError
from jaxinterp._typing import Params
from jaxinterp.mesh import from_all
from jaxinterp.models import TransformerConfig
from jaxinterp.weights._checkpoint import Checkpoint
from jaxinterp.weights._mapping import Fitted, unflatten

LEGAL_DTYPES = ("float32", "bfloat16", "float16")
ALIGNMENT = 64
"""Bytes to whose multiples XLA aligns arrays; memory that begins elsewhere would be copied."""
PIECE = 1 << 20
"""How many values are looked at and copied at a time."""

Index = tuple[tuple[int, int], ...]
"""A part of an array: where it starts and stops on each axis."""


def legal_dtype(dtype: Any) -> np.dtype:
    """`dtype` as numpy's; an error unless parameters may have it."""
    try:
        result = jnp.dtype(dtype)
    except TypeError:
        result = None
    if result is None or result.name not in LEGAL_DTYPES:
        raise InputError(f"dtype = {dtype!r} is not legal for parameters. Legal: {', '.join(LEGAL_DTYPES)}.")
    return result


def assemble(
    checkpoint: Checkpoint,
    fitted: Fitted,
    config: TransformerConfig,
    dtype: np.dtype,
    shardings: Mapping[str, Sharding] | None = None,
) -> Params:
    """The parameters of a model, read from its checkpoint.

    The files are mapped, not read, and each stack of layers is filled in place, in memory that a CPU device then uses as it is:
    beside the result there are a few stacks at most, and on a CPU none. With `shardings` a process reads and holds only what its
    devices hold.

    Args:
        checkpoint: the opened folder, whose tensors fit (see `check`).
        fitted: which tensor holds what.
        config: the model.
        dtype: of the parameters; each tensor is rounded to it.
        shardings: where each parameter goes, by path; None: JAX's default device. With several processes, all call this.

    Raises:
        WeightsError: tensors hold NaN or infinite values, or values outside of `dtype`; all of them are named.
    """
    entries, flat = checkpoint.entries, {}
    where = lambda path: None if shardings is None else shardings[path]
    seen: dict[str, _Seen] = {}
    for place in fitted.places:
        stacks = [
            _empty_stacks((len(place.names),) * place.layered + shape, dtype, where(path))
            for path, shape in zip(place.paths, place.shapes, strict=True)
        ]
        for layer, name in enumerate(place.names):
            tally = seen.setdefault(name, _Seen(dtype))
            parts = place.transform.load(checkpoint.read(*entries[name]), place.shapes)
            for pieces, part in zip(stacks, parts, strict=True):
                for index, stack in pieces.items():
                    _fill(stack, index, part, layer if place.layered else None, tally)
        flat |= {
            path: _on_devices(pieces, (len(place.names),) * place.layered + shape, where(path))
            for path, shape, pieces in zip(place.paths, place.shapes, stacks, strict=True)
        }
    faults = [f"{name} ({tally.fault()})" for name, tally in seen.items() if tally.fault()]
    if shardings is not None:  # each process has read its own part, and all have to stop
        faults = sorted({line for text in from_all("\n".join(faults)) for line in text.splitlines()})
    if faults:
        raise WeightsError(
            f"The weights in {checkpoint.folder} are not all finite numbers: {', '.join(faults)}. A model with such "
            "weights gives NaN for every prompt. Load an earlier checkpoint, or, where values are too large for "
            "float16, load as float32 or bfloat16."
        )
    return unflatten(config, flat)


def _empty_stacks(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding | None) -> dict[Index, np.ndarray]:
    """Memory for each part of a parameter that a device of this process holds; equal parts once."""
    indices = {_whole(shape)} if sharding is None else set(_indices(shape, sharding).values())
    return {index: _aligned(tuple(stop - start for start, stop in index), dtype) for index in indices}


def _whole(shape: tuple[int, ...]) -> Index:
    return tuple((0, n) for n in shape)


def _indices(shape: tuple[int, ...], sharding: Sharding) -> dict[Any, Index]:
    """Which part of an array each device of this process holds."""
    table = sharding.addressable_devices_indices_map(shape)
    return {
        device: tuple(part.indices(n)[:2] for part, n in zip(index or (), shape, strict=True))
        for device, index in table.items()
    }


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that begins where XLA wants an array to begin, so that a CPU device can take it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _fill(stack: np.ndarray, index: Index, part: np.ndarray, layer: int | None, seen: "_Seen") -> None:
    """Copies what `index` speaks of from a parameter's value, of one layer or whole, and looks at it on the way."""
    if layer is not None:
        (first, stop), index = index[0], index[1:]
        if not first <= layer < stop:
            return
        stack = stack[layer - first, ...]
    target, part = np.atleast_1d(stack), np.atleast_1d(part[tuple(slice(*ends) for ends in index)])
    rows = max(1, PIECE // max(1, part[:1].size))
    for start in range(0, len(part), rows):
        piece, place = part[start : start + rows], target[start : start + rows]
        with np.errstate(over="ignore", invalid="ignore"):
            place[...] = piece
        seen.look(piece if seen.narrows(piece) else place)  # the same values, and quicker to look at


def _on_devices(pieces: Mapping[Index, np.ndarray], shape: tuple[int, ...], sharding: Sharding | None) -> jax.Array:
    """The filled memory as an array; nothing else refers to it, so that nothing can write to what a device holds."""
    if sharding is None:
        return jax.block_until_ready(jax.device_put(pieces[_whole(shape)], may_alias=True))
    parts = [
        jax.device_put(pieces[index], device, may_alias=True) for device, index in _indices(shape, sharding).items()
    ]
    return jax.block_until_ready(jax.make_array_from_single_device_arrays(shape, sharding, parts))


class _Seen:
    """What was not finite among values, or would not be as `dtype`."""

    def __init__(self, dtype: np.dtype):
        self.dtype, self.limit = dtype, float(jnp.finfo(dtype).max)
        self.size = self.nan = self.infinite = 0
        self.largest = 0.0

    def narrows(self, values: np.ndarray) -> bool:
        return float(jnp.finfo(values.dtype).max) > self.limit

    def look(self, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        self.size += values.size
        if not finite.all():
            nan = int(np.isnan(values).sum())
            self.nan, self.infinite = self.nan + nan, self.infinite + int((~finite).sum()) - nan
        elif values.size and self.narrows(values):
            self.largest = max(self.largest, abs(float(values.max())), abs(float(values.min())))

    def fault(self) -> str:
        if self.nan or self.infinite:
            return f"{self.nan} NaN and {self.infinite} infinite of {self.size}"
        too_large = self.largest > self.limit
        return f"a value of size {self.largest:.3g}, too large for {self.dtype.name}" if too_large else ""


def value_fault(tensor: np.ndarray, dtype: np.dtype) -> str:
    """What is not finite in an array, or would not be as `dtype`; empty where all is well."""
    seen = _Seen(dtype)
    seen.look(tensor)
    return seen.fault()


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
