"""Atomic files and folders.

What is written goes to a temporary name in the same folder and takes its final name by one rename at the end, so a full
disk, a crash or an interrupt leaves either the old content or the new one under that name, never half of it.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxinterp._errors import SaveError

LOCK = ".lock"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` when the block ends without an error.

    An existing file is replaced. Folders above it are made where they are missing.

    Args:
        path: the final name of the file.

    Yields:
        The temporary path, in the same folder and with the same suffix; the block makes the file.

    Raises:
        SaveError: the file could not be written (disk full, no permission, the name is a folder).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_file(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [p.name for p in folder.iterdir()]
        ['a.txt']
    """
    final = Path(path)
    temporary = _beside(final)
    with _explained(final, temporary):
        if final.is_dir():
            raise IsADirectoryError(f"{final} is a folder")
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, final)
        _flush(final.parent)


def take_lock(file: Any, taken: Exception) -> None:
    """Locks an open file until it is closed, or raises `taken`, if it is locked elsewhere.

    Where the system or the file system has no such locks, nobody watches.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise taken from error
    except (ImportError, OSError):
        return


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """One process at a time writes to a folder.

    Raises:
        SaveError: another one does.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "ab")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise SaveError(f"{folder} cannot be written to: {error.strerror}. Choose another folder.") from error
    with file:
        taken = SaveError(
            f"{what} in {folder} is going on already, in this process or another. Wait until it ends, stop it, or choose another "
            "folder."
        )
        take_lock(file, taken)
        yield


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` when the block ends without an error.

    Args:
        path: the final name of the folder. Folders above it are made where they are missing.
        replace: whether a folder of that name that is not empty is replaced, with all that it holds. An empty one always is.

    Yields:
        The temporary folder (it exists), beside the final one.

    Raises:
        SaveError: the folder could not be written, or it exists, is not empty and `replace` is False.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "result"
        >>> with atomic_folder(folder) as temporary:
        ...     _ = (temporary / "a.txt").write_text("whole")
        >>> [p.name for p in folder.iterdir()]
        ['a.txt']
    """
    final = Path(path)
    temporary = _beside(final)
    with _explained(final, temporary):
        if final.exists() and not final.is_dir():
            raise NotADirectoryError(f"{final} is a file")
        if not replace and final.is_dir() and any(final.iterdir()):
            raise SaveError(
                f"{final} exists and is not empty: nothing was written. Choose another folder, or empty this one first."
            )
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        _swap(temporary, final)
        _flush(final.parent)


@contextlib.contextmanager
def _explained(final: Path, temporary: Path) -> Iterator[None]:
    """Removes the temporary name on any error, and turns an OSError into a SaveError that says what to do."""
    try:
        yield
    except SaveError:
        _remove(temporary)
        raise
    except OSError as error:
        _remove(temporary)
        reason = error.strerror or str(error)
        raise SaveError(
            f"Could not write {final}: {reason}. Nothing was left under that name that was not there before. Free "
            "some space or choose a place that you may write to, and save again."
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def _beside(final: Path) -> Path:
    return final.with_name(f".{final.stem[:80]}.{secrets.token_hex(4)}.partial{final.suffix}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _flush(path: Path) -> None:
    """Asks the system to put `path` on the disk; a folder that cannot be opened for that (Windows) is left."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(temporary: Path, final: Path) -> None:
    """Gives `temporary` the name `final`; what was there keeps its name until the last moment, and gets it back on an error."""
    if not final.exists():
        os.rename(temporary, final)
        return
    old = _beside(final)
    os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        os.rename(old, final)
        raise
    _remove(old)
