"""Lines of a journal: which chunk of which rows is on the disk, with checksums of the rows and of the line itself.

A line reads `chunk count rows checksums line-checksum`, as in `3 8 16:20,24:28 0a1b2c3d,99887766 5f4e3d2c`.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from jaxinterp._errors import InputError

PIECE = 1 << 22  # bytes read at a time, so that checking a store needs little memory
_LINE = re.compile(r"(\d+) (\d+) ((?:\d+:\d+)(?:,\d+:\d+)*) ([0-9a-f]{8}(?:,[0-9a-f]{8})*) ([0-9a-f]{8})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished chunk: its rows as runs (start, stop), and the CRC-32 of those rows in each array."""

    chunk: int
    runs: tuple[tuple[int, int], ...]
    checksums: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(stop - start for start, stop in self.runs)

    def line(self) -> bytes:
        """The entry as a line of the journal."""
        runs = ",".join(f"{start}:{stop}" for start, stop in self.runs)
        text = f"{self.chunk} {self.count} {runs} " + ",".join(f"{c:08x}" for c in self.checksums)
        return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def parse(line: bytes) -> Entry | None:
    """The entry of a line, or None where the line is not one that was written whole."""
    found = _LINE.fullmatch(line.decode("ascii", "replace"))
    if found is None or zlib.crc32(line[:-9]) != int(found[5], 16):
        return None
    runs = tuple((int(a), int(b)) for a, b in (run.split(":") for run in found[3].split(",")))
    return Entry(chunk=int(found[1]), runs=runs, checksums=tuple(int(c, 16) for c in found[4].split(",")))


def as_runs(rows: np.ndarray | slice, length: int) -> tuple[tuple[int, int], ...]:
    """Sorted rows, or a slice of them, as runs (start, stop) of an axis of `length`.

    Example:
        >>> as_runs(np.array([0, 1, 2, 5]), 8), as_runs(slice(2, None), 8)
        (((0, 3), (5, 6)), ((2, 8),))
    """
    if isinstance(rows, slice):
        start, stop, step = rows.indices(length)
        if step != 1 or stop <= start or (rows.stop is not None and rows.stop > length):
            raise InputError(
                f"rows={rows} of {length}: give a slice of step 1 with at least one row, inside the array."
            )
        return ((start, stop),)
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.size == 0 or not np.issubdtype(rows.dtype, np.integer):
        raise InputError(
            f"rows are {rows.dtype}{list(rows.shape)}: give a slice, or at least one row number in one axis."
        )
    rows = rows.astype(np.int64)
    if rows[0] < 0 or rows[-1] >= length or (np.diff(rows) <= 0).any():
        raise InputError(
            f"rows from {rows.min()} to {rows.max()} of an array with {length} rows: give them in increasing order, each once, "
            f"from 0 to {length - 1}."
        )
    ends = np.flatnonzero(np.diff(rows) > 1)
    starts = np.concatenate([rows[:1], rows[ends + 1]])
    stops = np.concatenate([rows[ends], rows[-1:]]) + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


def file_checksum(file: BinaryIO, offset: int, row_bytes: int, runs: tuple[tuple[int, int], ...]) -> int:
    """The CRC-32 of rows as they stand in an array's file, whose data begin at `offset`."""
    checksum = 0
    for start, stop in runs:
        file.seek(offset + start * row_bytes)
        for piece in _pieces(file, (stop - start) * row_bytes):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _pieces(file: BinaryIO, total: int) -> Iterator[bytes]:
    while total > 0:
        piece = file.read(min(total, PIECE))
        if not piece:
            return
        total -= len(piece)
        yield piece
