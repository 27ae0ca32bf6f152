"""Files and folders that are written whole or not at all, and results that are kept as they are finished."""

from jaxinterp.store._atomic import atomic_file, atomic_folder
from jaxinterp.store._manifest import read_manifest
from jaxinterp.store._results import ResultStore, StoreMismatchError

__all__ = ["ResultStore", "StoreMismatchError", "atomic_file", "atomic_folder", "read_manifest"]
