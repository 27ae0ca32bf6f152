"""One safetensors file: a checked header, tensors read lazily, and the same bytes written back.

A file is eight bytes (the length N of the header, little-endian), N bytes of JSON that give each tensor's dtype,
shape and place, and the tensors' bytes one after another. Reading is a memory map, so a tensor costs nothing until it
is used; a header is believed only after every rule of the format was checked against the size of the file. The
header's own bytes are kept, so a checkpoint can be written back byte for byte.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import MissingFileError, WeightsError

MAX_HEADER = 100_000_000
"""Bytes of the longest legal header; a longer one is corrupt, or meant to exhaust memory."""

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn), "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes that weights may have; the others are for buffers, or belong to quantized checkpoints."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file: its dtype (a key of `DTYPES`), shape, and bytes `start` to `end` after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """A checked header: the entries in the order of their bytes, and the header's bytes as they stand in the file."""

    entries: tuple[Entry, ...]
    text: bytes

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return self.entries[-1].end if self.entries else 0


def read_header(path: Path) -> Header:
    """The checked header of the safetensors file at `path`.

    Raises:
        WeightsError: the file is truncated or corrupt, or its header is larger than the format allows.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            raise _broken(path, f"it has {size} bytes, fewer than the 8 that give the header's length")
        if length > MAX_HEADER:
            raise _broken(path, f"its header would be {length:,} bytes long; the format allows {MAX_HEADER:,}")
        if length > size - 8:
            raise _broken(path, f"its header should be {length:,} bytes long, and only {size - 8:,} bytes follow")
        text = file.read(length)
    header = parse_header(text, path)
    if header.size != size - 8 - length:
        raise _broken(
            path, f"its tensors should take {header.size:,} bytes, and {size - 8 - length:,} bytes follow the header"
        )
    return header


def parse_header(text: bytes, path: Path) -> Header:
    """Checks the bytes of a header and lists its tensors.

    Raises:
        WeightsError: the header is not what the format allows. The message names every faulty tensor.
    """
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except ValueError as error:  # covers bad UTF-8, bad JSON and duplicate names
        raise _broken(path, f"its header is not legal JSON ({error})") from error
    except RecursionError as error:
        raise _broken(path, "its header is nested too deep") from error
    if not isinstance(table, dict):
        raise _broken(path, "its header is not a table of tensors")
    notes = table.pop("__metadata__", {})
    if not isinstance(notes, dict) or any(not isinstance(value, str) for value in notes.values()):
        raise _broken(path, "its __metadata__ is not a table of strings")
    entries, faults = [], []
    for name, row in table.items():
        try:
            entries.append(_entry(name, row))
        except (KeyError, TypeError, ValueError) as error:
            faults.append(f"{name}: {error.args[0] if error.args else error}")
    if faults:
        raise _broken(path, "its header describes tensors that cannot be: " + "; ".join(faults))
    entries.sort(key=lambda e: (e.start, e.end))
    place = 0
    for entry in entries:
        if entry.start != place:
            raise _broken(
                path,
                f"the bytes of {entry.name} start at {entry.start:,} where {place:,} was expected: tensors overlap "
                "or leave a gap",
            )
        place = entry.end
    return Header(entries=tuple(entries), text=text)


def _entry(name: str, row: Any) -> Entry:
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("it needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("shape and data_offsets are lists of integers from 0 up")
    if len(offsets) != 2:
        raise ValueError("data_offsets is a start and an end")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        raise ValueError(
            f"{dtype} of shape {shape} takes {expected:,} bytes, and data_offsets give it {offsets[1] - offsets[0]:,}"
        )
    return Entry(name=name, dtype=dtype, shape=tuple(shape), start=offsets[0], end=offsets[1])


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"named twice: {sorted({n for n in names if names.count(n) > 1})}")
    return table


def _broken(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path} is truncated or corrupt: {what}. Download or copy the file again (compare its size with the original's)."
    )


def read_tensor(path: Path, header: Header, entry: Entry) -> np.ndarray:
    """A read-only view of one tensor in the file, paged in by the system when it is used."""
    if entry.end == entry.start:
        return np.zeros(entry.shape, DTYPES[entry.dtype])
    return np.memmap(
        path, dtype=DTYPES[entry.dtype], mode="r", offset=8 + len(header.text) + entry.start, shape=entry.shape
    ).view(np.ndarray)


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Header:
    """A header for tensors (name, dtype, shape), in the order given but wider dtypes first, so that all are aligned."""
    ordered = sorted(tensors, key=lambda t: -DTYPES[t[1]].itemsize)
    entries, place = [], 0
    for name, dtype, shape in ordered:
        end = place + math.prod(shape) * DTYPES[dtype].itemsize
        entries.append(Entry(name=name, dtype=dtype, shape=tuple(shape), start=place, end=end))
        place = end
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for e in entries:
        table[e.name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.start, e.end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    return Header(entries=tuple(entries), text=text + b" " * (-len(text) % 8))


def metadata(header: Header) -> dict[str, str]:
    """The free text that a file carries beside its tensors, such as `{"format": "pt"}`."""
    return json.loads(header.text).get("__metadata__", {})


def write(path: Path, header: Header, value: Callable[[str], np.ndarray]) -> None:
    """Writes a file tensor by tensor, so that only one is in memory at a time.

    Args:
        path: the file, which is made or replaced. Not atomic by itself: see `jaxinterp.store`.
        header: what stands in it.
        value: gives the array of a name, with the dtype and shape that the header says.
    """
    with path.open("wb") as file:
        file.write(len(header.text).to_bytes(8, "little"))
        file.write(header.text)
        for entry in header.entries:
            _write_array(file, entry, value(entry.name))


def _write_array(file: BinaryIO, entry: Entry, array: np.ndarray) -> None:
    if array.shape != entry.shape or array.dtype != DTYPES[entry.dtype]:
        raise AssertionError(f"{entry.name}: {array.dtype}{array.shape} does not fit {entry.dtype}{entry.shape}")
    file.write(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data if array.size else b"")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file by name, as read-only views that the system pages in when they are used.

    Raises:
        MissingFileError: there is no such file.
        WeightsError: the file is truncated or corrupt.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}.")
    header = read_header(path)
    return {entry.name: read_tensor(path, header, entry) for entry in header.entries}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays as one file, bit for bit. Not atomic by itself: see `jaxinterp.store`.

    Args:
        path: the file, which is made or replaced.
        tensors: by name; their dtypes are among those of the format.
        metadata: free text that the file carries.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write_safetensors(path, {"x": np.arange(3, dtype=np.float32)})
        >>> read_safetensors(path)["x"].tolist()
        [0.0, 1.0, 2.0]
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    rows = [(name, names[array.dtype], array.shape) for name, array in tensors.items()]
    write(path, make_header(rows, metadata or {}), lambda name: tensors[name])
