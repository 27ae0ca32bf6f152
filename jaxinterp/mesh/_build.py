"""Makes a mesh, starts the processes that share it, and moves arrays to it and back.

A computation over several processes is one program that all of them run: each calls the same functions in the same order, holds
the same host arrays, and has some of the devices. What decides the order of calls (which chunks are done, say) must be equal
everywhere: `from_writer`. Files are written by one process: `is_writer`.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxinterp._errors import InputError
from jaxinterp._typing import PyTree

WHOLE = PartitionSpec()
"""A copy on each device."""


def make_mesh(**sizes: int) -> Mesh:
    """A mesh with named axes over all devices, or over as many as the axes need.

    Args:
        sizes: the length of each axis, the outermost first; one may be -1, for as many as there are devices left. Devices of
            one process stay together along the last axes.

    Returns:
        A `jax.sharding.Mesh` whose axes are `AxisType.Auto`: JAX chooses the shardings inside a jitted function.

    Raises:
        InputError: the sizes do not fit the devices; several processes would leave some devices out.

    Example:
        >>> mesh = make_mesh(cells=1, prompts=1)
        >>> dict(mesh.shape)
        {'cells': 1, 'prompts': 1}
    """
    devices = jax.devices()
    there = _devices_text(devices)
    if not sizes or any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise InputError(
            f"make_mesh({_sizes_text(sizes)}): give the length of each axis, 1 or more, at most one of them -1 (all that are "
            f"left), as in make_mesh(cells={len(devices)}). There are {there}."
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if len(devices) % known:
            raise InputError(
                f"make_mesh({_sizes_text(sizes)}): the other axes take {known} devices, which does not divide {there}. "
                f"Legal are products that divide {len(devices)}: {_divisors(len(devices))}."
            )
        sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
        known = len(devices)
    if known > len(devices):
        raise InputError(
            f"make_mesh({_sizes_text(sizes)}) needs {known} devices; there are {there}. Take smaller axes. (On a CPU, "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={known} before JAX starts makes as many.)"
        )
    if known < len(devices) and jax.process_count() > 1:
        raise InputError(
            f"make_mesh({_sizes_text(sizes)}) leaves out {len(devices) - known} of {there}. With several processes a mesh takes "
            f"all devices, since every process takes part: give axes whose product is {len(devices)}."
        )
    names, shape = tuple(sizes), tuple(sizes.values())
    kinds = (AxisType.Auto,) * len(names)
    if known == len(devices):  # jax.make_mesh orders devices by how a TPU wires them
        return jax.make_mesh(shape, names, axis_types=kinds)
    return Mesh(np.asarray(devices[:known]).reshape(shape), names, axis_types=kinds)


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of several hosts into one JAX; the first thing that a script does.

    On a TPU pod slice, under Slurm or Open MPI all arguments are found out. Elsewhere every process gives all three. CPU
    processes talk through gloo. Once started, a further call does nothing.

    Args:
        coordinator: "host:port" of process 0, free there and reachable from all.
        num_processes: how many there are.
        process_id: which this one is, from 0.

    Raises:
        InputError: JAX was used before, or the arguments are missing where they cannot be found out.

    Example:
        >>> start("10.0.0.1:1234", num_processes=4, process_id=2)  # doctest: +SKIP
    """
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"The processes could not be joined (coordinator={coordinator!r}, num_processes={num_processes}, "
            f"process_id={process_id}): {error} Call jaxinterp.mesh.start() before anything that uses a device; give all three "
            "arguments where no cluster is recognized; leave it out on a single machine."
        ) from error


def is_writer() -> bool:
    """Whether this is the process that writes files and talks: process 0. Always so when there is one.

    Example:
        >>> is_writer()
        True
    """
    return jax.process_index() == 0


def put(tree: PyTree, mesh: Mesh, spec: Any = WHOLE) -> PyTree:
    """Host arrays as arrays on a mesh, each device getting its part.

    Args:
        tree: arrays; with several processes, the same in each of them.
        mesh: where to.
        spec: how each axis is cut, `jax.sharding.PartitionSpec("cells")`: for all arrays, or a tree of them that begins as
            `tree` does. The empty one, the default, puts a whole copy on each device.

    Returns:
        The tree with global arrays.

    Raises:
        InputError: an axis of an array cannot be cut so.

    Example:
        >>> mesh = make_mesh(cells=1)
        >>> put({"a": np.zeros((4, 3))}, mesh, PartitionSpec("cells"))["a"].shape
        (4, 3)
    """
    is_spec = lambda x: isinstance(x, PartitionSpec)
    return jax.tree.map(
        lambda one, part: jax.tree.map(lambda array: _put(array, mesh, one), part), spec, tree, is_leaf=is_spec
    )


def fetch(tree: PyTree) -> PyTree:
    """The whole value of arrays as NumPy arrays, in every process; all processes must call it.

    Example:
        >>> fetch(put(np.ones(3, np.float32), make_mesh(cells=1)))
        array([1., 1., 1.], dtype=float32)
    """
    return jax.tree.map(_fetch, tree)


def from_writer(tree: PyTree) -> PyTree:
    """The arrays of process 0 as NumPy arrays, in every process; shapes and dtypes are the same in all.

    All processes must call it, and none goes on before process 0 did.

    Example:
        >>> from_writer({"done": np.array([True, False])})
        {'done': array([ True, False])}
    """
    tree = jax.tree.map(np.asarray, tree)
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    leaves, structure = jax.tree.flatten(tree)
    content = np.frombuffer(
        b"".join(leaf.tobytes() for leaf in leaves) + b"\0", np.uint8
    )  # bytes: JAX would cut 64 bits to 32
    content = np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes()
    ends = np.cumsum([leaf.nbytes for leaf in leaves]).tolist()
    told = [
        np.frombuffer(content[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape).copy()
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, told)


def _put(array: Any, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    _check_cuts(np.shape(array), mesh, spec)
    sharding = NamedSharding(mesh, spec)
    spans = any(device.process_index != jax.process_index() for device in mesh.devices.flat)
    if not spans or (isinstance(array, jax.Array) and not array.is_fully_addressable):
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _check_cuts(shape: tuple[int, ...], mesh: Mesh, spec: PartitionSpec) -> None:
    if len(spec) > len(shape):
        raise InputError(f"{spec} is for at least {len(spec)} axes; an array has shape {list(shape)}.")
    for axis, names in enumerate(spec):
        names = () if names is None else names if isinstance(names, tuple) else (names,)
        unknown = [name for name in names if name not in mesh.shape]
        if unknown:
            raise InputError(f"{spec} names {unknown[0]!r}; the mesh has axes {dict(mesh.shape)}.")
        parts = math.prod(mesh.shape[name] for name in names)
        if shape[axis] % parts:
            raise InputError(
                f"Axis {axis} of an array of shape {list(shape)} cannot be cut into {parts} equal parts ({spec} on the mesh "
                f"{dict(mesh.shape)}). Pad it to a multiple of {parts}, or choose another mesh."
            )


def _fetch(array: Any) -> np.ndarray:
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    sharding = array.sharding
    if not isinstance(sharding, NamedSharding):
        raise InputError(f"fetch takes arrays on a mesh (a NamedSharding); this one has {sharding}.")
    return np.asarray(_replicate(sharding.mesh)(array))


@functools.cache
def _replicate(mesh: Any) -> Callable[[jax.Array], jax.Array]:
    """One jitted function for each mesh, so that it compiles once for each shape."""
    return jax.jit(_identity, out_shardings=NamedSharding(mesh, WHOLE))


def _identity(array: jax.Array) -> jax.Array:
    return array


def _sizes_text(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _devices_text(devices: list[Any]) -> str:
    kinds = Counter(device.device_kind for device in devices)
    processes = jax.process_count()
    text = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{len(devices)} devices ({text}{f'; {processes} processes' if processes > 1 else ''})"


def _divisors(n: int) -> str:
    return ", ".join(str(i) for i in range(1, n + 1) if n % i == 0)
