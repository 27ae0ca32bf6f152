"""Results of long computations, kept chunk by chunk as they finish.

A store is a folder: `manifest.json` says what is computed, one `.npy` file for each array holds its rows, and `done.log` gets a
line for each chunk after the chunk's rows were written, with their checksums. A process that is killed leaves at worst a
chunk without a line or half a line; both are computed again.
"""

import contextlib
import os
import re
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp._errors import InputError, MissingFileError, SaveError
from jaxinterp.store._atomic import atomic_file, take_lock
from jaxinterp.store._journal import PIECE, Entry, as_runs, file_checksum, parse
from jaxinterp.store._manifest import (
    FORMAT,
    LEFTOVER,
    MANIFEST,
    as_json,
    describe,
    differences,
    make_manifest,
    read_manifest,
)

JOURNAL = "done.log"


class StoreMismatchError(InputError):
    """A store or checkpoint holds something else than what is asked for: another computation's results, another tree."""


class ResultStore:
    """Arrays that are filled chunk by chunk, with a record of the chunks that are whole.

    Made by `ResultStore.open`. Rows of chunks that are not in `done` are NaN (0 for integers), or what an interrupted write left.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "sweep"
        >>> say = dict(facts={"site": "attn.z"}, arrays={"effect": ((4, 2), "float32")}, chunks=2)
        >>> with ResultStore.open(folder, **say) as store:
        ...     store.write(1, slice(2, 4), {"effect": np.ones((2, 2), np.float32)})
        >>> with ResultStore.open(folder, **say) as store:
        ...     print(store.done, store.is_complete, store.read("effect")[:, 0])
        frozenset({1}) False [nan nan  1.  1.]
    """

    def __init__(self, path: Path, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]], chunks: int, write: bool):
        self.path = path
        self.chunks = chunks
        self._arrays = dict(arrays)
        self._write = write
        self._done: set[int] = set()
        self._files: dict[str, Any] = {}  # unbuffered, open for writing
        self._journal: Any = None
        self._lock: Any = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        facts: Mapping[str, Any],
        arrays: Mapping[str, tuple[Sequence[int], Any]],
        chunks: int,
        write: bool = True,
    ) -> "ResultStore":
        """Opens the store at `path`, or makes it.

        Every chunk that the journal lists is checked against its rows. One that does not verify, a torn or foreign line of the
        journal and an array file that is damaged give a warning; those chunks are not in `done`, so that they are computed again.

        Args:
            path: a folder: one that is not there or empty, or a store of the same computation.
            facts: what is computed, as JSON: whatever changes a result or the cut into chunks.
            arrays: shape and dtype by name; all have the same length along axis 0, the rows.
            chunks: number of chunks, numbered from 0.
            write: False to read only. One process at a time may write; any number may read, and see the chunks that were
                finished when they opened it.

        Raises:
            StoreMismatchError: the store is of other facts, arrays or chunks; the message lists them.
            InputError: the folder is no store, its manifest cannot be read, another process writes to it, or the
                arguments are not legal.
            MissingFileError: there is no store to read (`write=False`).
            SaveError: the store could not be made.
        """
        path = Path(path)
        described = describe(arrays)
        wanted = {"format": FORMAT, "facts": as_json(facts), "arrays": described, "chunks": int(chunks)}
        store = cls(path, {k: (tuple(s), np.dtype(d)) for k, (s, d) in described.items()}, int(chunks), bool(write))
        stored = read_manifest(path)
        if stored is None:
            if not write:
                raise MissingFileError(
                    f"There are no results at {path} to read. The process that writes makes them first."
                )
            _explained(path, lambda: make_manifest(path, wanted))
        elif lines := differences(stored, wanted):
            raise StoreMismatchError(
                "\n  ".join([f"{path} holds results of another computation:", *lines])
                + "\nTo go on with them give the same "
                "arguments as then; for these arguments choose another folder (or delete this one)."
            )
        try:
            _explained(path, store._start)
        except BaseException:
            store._release()
            raise
        return store

    @property
    def done(self) -> frozenset[int]:
        """The finished chunks, verified; a new set at each call."""
        return frozenset(self._done)

    @property
    def is_complete(self) -> bool:
        """Whether every chunk is done."""
        return len(self._done) == self.chunks

    def write(self, chunk: int, rows: np.ndarray | slice, values: Mapping[str, np.ndarray]) -> None:
        """Writes a chunk's rows of every array, then its line in the journal.

        Args:
            chunk: its number, from 0 to `chunks` - 1. One that is done is replaced.
            rows: the rows of axis 0, as a slice or as increasing integers [n]; chunks share no rows.
            values: an array [n, ...] for each array of the store, of its dtype.

        Raises:
            InputError: a value, a row or the chunk does not fit the store, or the store is not open for writing.
            SaveError: the disk refused; the chunks before this one are kept.
        """
        if self._journal is None:
            raise InputError(f"The results at {self.path} are open for reading only, or closed: nothing was written.")
        if not 0 <= chunk < self.chunks:
            raise InputError(f"chunk {chunk}: the store has chunks 0 to {self.chunks - 1}.")
        runs = as_runs(rows, self._rows)
        data = self._checked(values, sum(stop - start for start, stop in runs))
        entry = Entry(
            chunk=int(chunk), runs=runs, checksums=tuple(zlib.crc32(_bytes(data[name])) for name in self._arrays)
        )
        _explained(self.path, lambda: self._put(entry, data))
        self._done.add(int(chunk))
        if self.is_complete:
            self.flush()

    def read(self, name: str) -> np.ndarray:
        """An array of the store, memory-mapped and read-only.

        Raises:
            InputError: the store has no such array, or its file is damaged (in a store opened for reading only).
        """
        if name not in self._arrays:
            raise InputError(f"No array {name!r} in the results at {self.path}; there are {', '.join(self._arrays)}.")
        if fault := self._fault(name):
            raise InputError(f"{self.path / name}.npy {fault}: open the store for writing to compute it again.")
        return np.load(self._file(name), mmap_mode="r" if self._size(name) else None)

    def flush(self) -> None:
        """Asks the system to put all that was written on the disk. Needed against loss of power only."""
        for file in self._files.values():
            os.fsync(file.fileno())
        if self._journal is not None:
            os.fsync(self._journal.fileno())

    def close(self) -> None:
        """Flushes and closes; `read` still works."""
        self.flush()
        self._release()

    def __enter__(self) -> "ResultStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ files
    @property
    def _rows(self) -> int:
        return next(iter(self._arrays.values()))[0][0]

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.npy"

    def _size(self, name: str) -> int:
        shape, dtype = self._arrays[name]
        return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

    def _start(self) -> None:
        """Locks, checks what is there, warns of what is lost, makes what is missing."""
        if self._write:
            self._lock = open(self.path / MANIFEST, "r+b")  # noqa: SIM115 (closed in _release)
            taken = InputError(
                f"The results at {self.path} are open for writing already, by this process or another. Wait until it ends or "
                "stop it, or open them with write=False."
            )
            take_lock(self._lock, taken)
        content = (self.path / JOURNAL).read_bytes() if (self.path / JOURNAL).exists() else b""
        entries, faults = self._parsed(content)
        damaged = {name: fault for name in self._arrays if (fault := self._fault(name))}
        if damaged and content:  # without a journal: the process was stopped while it made the store
            faults += [f"{name}.npy {fault}: every chunk" for name, fault in damaged.items()]
        good = [] if damaged else self._verified(entries, faults)
        if faults:
            more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
            warnings.warn(
                f"Results at {self.path}: {'; '.join(faults[:10])}{more}. What is named here is computed again.",
                stacklevel=4,
            )
        self._done = {entry.chunk for entry in good}
        if not self._write:
            return
        for leftover in self.path.iterdir():
            if LEFTOVER.fullmatch(leftover.name):
                leftover.unlink()
        for name in damaged:
            self._make_array(name)
        if len(good) < content.count(b"\n") or content[-1:] not in (b"", b"\n"):
            with atomic_file(self.path / JOURNAL) as temporary:  # a line appended to a torn one would be lost
                temporary.write_bytes(b"".join(entry.line() for entry in good))
        self._journal = open(self.path / JOURNAL, "ab", buffering=0)  # noqa: SIM115
        self._files = {name: open(self._file(name), "r+b", buffering=0) for name in self._arrays}  # noqa: SIM115

    def _parsed(self, content: bytes) -> tuple[dict[int, Entry], list[str]]:
        """The last entry of each chunk, and what is wrong with the other lines."""
        entries: dict[int, Entry] = {}
        faults = []
        *lines, torn = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            entry = parse(line)
            legal = entry is not None and entry.chunk < self.chunks and entry.runs[-1][1] <= self._rows
            if entry is None or not legal or len(entry.checksums) != len(self._arrays):
                faults.append(f"line {number} of {JOURNAL} is not legal{_named(line)}")
            else:
                entries[entry.chunk] = entry
        if torn and self._write:  # a reader may come in the middle of a line
            faults.append(f"the last line of {JOURNAL} is torn, since the process was stopped{_named(torn)}")
        return entries, faults

    def _verified(self, entries: Mapping[int, Entry], faults: list[str]) -> list[Entry]:
        """The entries whose rows have the checksums of the journal; the others go to `faults`."""
        good = []
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(open(self._file(name), "rb")) for name in self._arrays if entries}
            for entry in entries.values():
                found = [file_checksum(file, *self._layout(name), entry.runs) for name, file in files.items()]
                wrong = [n for n, a, b in zip(files, found, entry.checksums, strict=True) if a != b]
                if wrong:
                    faults.append(f"chunk {entry.chunk} is not what was written (checksum of {', '.join(wrong)})")
                else:
                    good.append(entry)
        return good

    def _layout(self, name: str) -> tuple[int, int]:
        """Where an array's data begin in its file, and the bytes of a row."""
        return self._file(name).stat().st_size - self._size(name), self._size(name) // max(self._rows, 1)

    def _fault(self, name: str) -> str:
        """What is wrong with an array's file; empty if nothing."""
        shape, dtype = self._arrays[name]
        try:
            with open(self._file(name), "rb") as file:
                version = np.lib.format.read_magic(file)
                header = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else None
                want = file.tell() + self._size(name)
        except FileNotFoundError:
            return "is missing"
        except ValueError:
            header = None
        if header != (shape, False, dtype):
            return "does not begin with its shape and dtype"
        size = self._file(name).stat().st_size
        return "" if size == want else f"has {size} bytes instead of {want}"

    def _make_array(self, name: str) -> None:
        """Writes the file in full, so that a disk that is too small is noticed before anything is computed."""
        shape, dtype = self._arrays[name]
        empty = np.full(PIECE // dtype.itemsize, np.nan if dtype.kind in "fc" else 0, dtype).tobytes()
        with atomic_file(self._file(name)) as temporary, open(temporary, "wb") as file:
            description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, description)
            for start in range(0, self._size(name), len(empty)):
                file.write(empty[: self._size(name) - start])

    def _checked(self, values: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        if set(values) != set(self._arrays):
            raise InputError(
                f"values for {sorted(values)}: the store at {self.path} has arrays {sorted(self._arrays)}."
            )
        data = {name: np.asarray(values[name]) for name in self._arrays}
        for name, (shape, dtype) in self._arrays.items():
            got, want = data[name], (count, *shape[1:])
            if got.shape != want or got.dtype != dtype:
                raise InputError(
                    f"values[{name!r}] is {got.dtype}{list(got.shape)}; {count} rows of this array are {dtype}{list(want)}."
                )
        return data

    def _put(self, entry: Entry, data: Mapping[str, np.ndarray]) -> None:
        self._done.discard(entry.chunk)  # until it is whole again
        for name, values in data.items():
            (offset, row_bytes), row = self._layout(name), 0
            content = _bytes(values)
            for start, stop in entry.runs:
                self._files[name].seek(offset + start * row_bytes)
                _write_all(self._files[name], content[row * row_bytes : (row + stop - start) * row_bytes])
                row += stop - start
        end = self._journal.seek(0, os.SEEK_END)
        try:
            _write_all(self._journal, entry.line())
        except OSError:
            with contextlib.suppress(OSError):
                self._journal.truncate(end)
            raise

    def _release(self) -> None:
        for file in [*self._files.values(), self._journal, self._lock]:
            if file is not None:
                file.close()
        self._files, self._journal, self._lock = {}, None, None


def _named(line: bytes) -> str:
    """The chunk of a line that is not whole, where its number is."""
    number = re.match(rb"(\d{1,9}) ", line)
    return f" (chunk {int(number[1])})" if number else ""


def _bytes(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _write_all(file: Any, content: bytes | memoryview) -> None:
    """An unbuffered file may take a part only."""
    while len(content):
        content = content[file.write(content) :]


def _explained(path: Path, act: Callable[[], None]) -> None:
    """Does `act`, and says what to do about a disk that refuses."""
    try:
        act()
    except (SaveError, InputError):
        raise
    except OSError as error:
        raise SaveError(
            f"Could not write results to {path}: {error.strerror or error}. The chunks that were finished are kept: free some "
            "space (or get permission to write there) and run the same again to go on."
        ) from error
