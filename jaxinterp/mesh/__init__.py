"""Meshes of devices, of one process or of many, and arrays on them."""

from jaxinterp._processes import from_all
from jaxinterp.mesh._build import fetch, from_writer, is_writer, make_mesh, put, start

__all__ = ["fetch", "from_all", "from_writer", "is_writer", "make_mesh", "put", "start"]
