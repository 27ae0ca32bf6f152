"""Files and folders that are written whole or not at all, results that are kept as they are finished, checkpoints of pytrees."""

from jaxinterp.store._atomic import atomic_file, atomic_folder, locked
from jaxinterp.store._checkpoints import Checkpoints
from jaxinterp.store._manifest import read_manifest
from jaxinterp.store._results import ResultStore, StoreMismatchError
from jaxinterp.store._trees import load_tree, save_tree

__all__ = [
    "Checkpoints",
    "ResultStore",
    "StoreMismatchError",
    "atomic_file",
    "atomic_folder",
    "load_tree",
    "locked",
    "read_manifest",
    "save_tree",
]
