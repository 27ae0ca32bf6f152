"""Files and folders that are written whole or not at all."""

from jaxinterp.store._atomic import atomic_file, atomic_folder

__all__ = ["atomic_file", "atomic_folder"]
