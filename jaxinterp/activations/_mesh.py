"""Which part of the axis `data` is whose."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxinterp._errors import InputError
from jaxinterp._typing import PyTree
from jaxinterp.activations._pool import AXIS


def mesh_of(params: PyTree = None) -> Mesh:
    """The mesh on which parameters lie, or one of their device alone."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            mesh = leaf.sharding.mesh
            if isinstance(mesh, Mesh):
                return mesh
    if jax.process_count() > 1:
        raise InputError("With several processes give the mesh: mesh=jaxinterp.mesh.make_mesh(data=-1).")
    leaf = next((leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)), None)
    device = jax.devices()[0] if leaf is None else min(leaf.devices(), key=lambda device: device.id)
    return Mesh(np.array([device]), (AXIS,), axis_types=(AxisType.Auto,))


def check_mesh(mesh: Any) -> None:
    """Refuses a mesh that rows cannot be cut over."""
    make = "jaxinterp.mesh.make_mesh(data=-1)"
    if not isinstance(mesh, Mesh) or AXIS not in mesh.shape:
        shown = dict(mesh.shape) if isinstance(mesh, Mesh) else mesh
        raise InputError(f"mesh={shown} has no axis `data`, over which rows are cut. Make one: {make}.")
    if AxisType.Explicit in mesh.axis_types:
        raise InputError(
            f"The mesh {dict(mesh.shape)} has axes of the kind Explicit (the default of jax.make_mesh); make an Auto one: {make}."
        )


def shard_of(mesh: Mesh) -> tuple[int, int]:
    """Which part of the rows this process reads, of how many; processes that hold the same part of `data` read the same."""
    groups = sorted({tuple(local_parts(mesh, process)) for process in range(jax.process_count())})
    return groups.index(tuple(local_parts(mesh))), len(groups)


def local_parts(mesh: Mesh, process: int | None = None) -> list[int]:
    """The indices along `data` at which a process, by default this one, has devices."""
    process = jax.process_index() if process is None else process
    devices = np.moveaxis(mesh.devices, mesh.axis_names.index(AXIS), 0).reshape(mesh.shape[AXIS], -1)
    return [i for i, row in enumerate(devices) if any(device.process_index == process for device in row)]
