"""Which axis of which parameter lies over which axis of a mesh: a table, fitted to the shapes of a model."""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxinterp import mesh as meshes
from jaxinterp._errors import InputError, closest
from jaxinterp._typing import Params
from jaxinterp.weights._mapping import flatten

AXES = ("data", "tensor")
"""The axes of a mesh that the table speaks of: examples go over the first, parameters over the second."""

WHOLE = PartitionSpec()
_FIRST, _SECOND, _THIRD = (PartitionSpec(*(None,) * axis, "tensor") for axis in range(3))

Rules = Mapping[str, Any]
"""A parameter's path, or a pattern of paths, to a `PartitionSpec`, or a tuple of them."""

RULES: dict[str, tuple[PartitionSpec, ...]] = {
    "embed.W_E": (_FIRST, _SECOND),
    "unembed.W_U": (_SECOND, _FIRST),
    "unembed.b_U": (_FIRST, WHOLE),
    "blocks*.attn.W_[QO]": (_SECOND,),
    "blocks*.attn.b_Q": (_SECOND,),
    "blocks*.attn.[Wb]_[KV]": (_SECOND, WHOLE),
    "blocks*.mlp.W_in": (_THIRD,),
    "blocks*.mlp.W_gate": (_THIRD,),
    "blocks*.mlp.W_out": (_SECOND,),
    "blocks*.mlp.b_in": (_SECOND,),
    "blocks*.mlp.b_gate": (_SECOND,),
    "*": (WHOLE,),
}
"""Patterns of paths, and for each the ways to cut; the first pattern that fits a path counts, and the first way that divides.

Nothing is cut over `data`. Over `tensor` go the heads and the width of the MLP, so that a layer needs one sum over devices behind
its attention and one behind its MLP; and the vocabulary, or the residual width where the vocabulary does not divide. Keys and
values with fewer heads than devices are held whole by each of them, which costs little and no communication. Norms, positions
and what is added to the residual stream are whole."""


def partition_specs(params: Params, mesh: Mesh, rules: Rules | None = None) -> Any:
    """How each parameter is cut over a mesh with the axes `data` and `tensor`, by a table of rules.

    Heads, the width of the MLP and the vocabulary are cut over `tensor`; where the vocabulary does not divide, the residual width
    is; key/value heads that do not divide, norms, positions and output biases are whole on each device. Nothing is cut over
    `data`, over which the batch goes. So a forward pass moves activations between devices, and never a parameter.

    Args:
        params: the parameters, or their shapes (`model.param_shapes()`).
        mesh: with an axis `data`, an axis `tensor`, or both, as `jaxinterp.mesh.make_mesh(data=2, tensor=4)` makes it.
        rules: more rules, which go before the table: a parameter's path or a pattern of paths ("blocks.attn.W_K",
            "blocks.attn.*") and a `PartitionSpec`, or a tuple of them of which the first that divides is taken.

    Returns:
        A tree of `PartitionSpec`s like `params`.

    Raises:
        InputError: parameters that cannot be cut (all are named, with the sizes that are legal), rules that fit no parameter,
            axes that the mesh does not have or that no rule speaks of.

    Example:
        >>> import jaxinterp as ji
        >>> model = ji.Model(config=ji.TransformerConfig(
        ...     n_layers=2, d_model=8, n_ctx=16, n_heads=2, d_head=4, d_vocab=11, d_mlp=16))
        >>> specs = partition_specs(model.param_shapes(), ji.mesh.make_mesh(data=1, tensor=1))
        >>> tuple(specs["blocks"][0]["attn"]["W_Q"]), tuple(specs["blocks"][0]["attn"]["b_O"])
        ((None, 'tensor'), ())
    """
    if not isinstance(params, Mapping) or "blocks" not in params:
        raise InputError(
            f"partition_specs and shard take the parameters of a model, as model.init gives them, and got a "
            f"{type(params).__name__}. Of a language model they are lm.params."
        )
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    own = {
        pattern: spec if isinstance(spec, tuple) and not isinstance(spec, PartitionSpec) else (spec,)
        for pattern, spec in (rules or {}).items()
    }
    _check_rules(own, shapes)
    _check_mesh(mesh, own)
    ways = {path: _ways(path, own, dict(mesh.shape)) for path in shapes}
    chosen = {path: _first(shapes[path], ways[path], dict(mesh.shape)) for path in shapes}
    uncut = [path for path, spec in chosen.items() if spec is None]
    if uncut:
        raise InputError(_cannot(uncut, shapes, ways, mesh))
    return jax.tree.unflatten(jax.tree.structure(params), chosen.values())


def shard(params: Params, mesh: Mesh, rules: Rules | None = None) -> Params:
    """Parameters on a mesh, cut as `partition_specs` says.

    `load(folder, mesh=mesh)` reads a checkpoint straight into such shards; this is for parameters that are there already. Put the
    batch beside them with `jaxinterp.mesh.put(tokens, mesh, PartitionSpec("data"))`.

    Args:
        params: the parameters; with several processes, the same in each of them.
        mesh: see `partition_specs`.
        rules: see `partition_specs`.

    Returns:
        The same tree, each leaf a `jax.Array` over all devices of the mesh.

    Raises:
        InputError: see `partition_specs`.

    Example:
        >>> import jax, jaxinterp as ji
        >>> model = ji.Model(config=ji.TransformerConfig(
        ...     n_layers=2, d_model=8, n_ctx=16, n_heads=2, d_head=4, d_vocab=11, d_mlp=16))
        >>> params = shard(model.init(jax.random.key(0)), ji.mesh.make_mesh(data=1, tensor=1))
        >>> tuple(params["blocks"][0]["mlp"]["W_in"].sharding.spec)
        (None, None, 'tensor')
    """
    return meshes.put(params, mesh, partition_specs(params, mesh, rules))


def _ways(path: str, own: Mapping[str, tuple[Any, ...]], sizes: Mapping[str, int]) -> tuple[PartitionSpec, ...]:
    """The ways to cut one parameter. An axis of `AXES` that the mesh does not have counts as one of length 1."""
    rules = {**own, **{pattern: ways for pattern, ways in RULES.items() if pattern not in own}}
    found = next(ways for pattern, ways in rules.items() if fnmatch.fnmatchcase(path, pattern))
    absent = set(AXES) - set(sizes)
    there = lambda entry: tuple(name for name in _names(entry) if name not in absent)
    return tuple(PartitionSpec(*((there(entry) or None) if absent else entry for entry in way)) for way in found)


def _first(shape: tuple[int, ...], ways: Iterable[PartitionSpec], sizes: Mapping[str, int]) -> PartitionSpec | None:
    return next((way for way in ways if _divides(shape, way, sizes)), None)


def _divides(shape: tuple[int, ...], way: PartitionSpec, sizes: Mapping[str, int]) -> bool:
    parts = [math.prod(sizes[name] for name in _names(entry)) for entry in way]
    return len(parts) <= len(shape) and all(n % part == 0 for n, part in zip(shape, parts, strict=False))


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _check_rules(own: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    faults = []
    for pattern, ways in own.items():
        if not fnmatch.filter(shapes, pattern):
            faults.append(f"{pattern!r} fits no parameter of the model ({closest(pattern, shapes)})")
        wrong = [way for way in ways if not isinstance(way, PartitionSpec)]
        if wrong or not ways:
            faults.append(f"{pattern!r} has {(wrong or [ways])[0]!r}, which is no jax.sharding.PartitionSpec")
    if faults:
        raise InputError("rules: " + "; ".join(faults) + ".")


def _check_mesh(mesh: Any, own: Mapping[str, tuple[PartitionSpec, ...]]) -> None:
    make = "jaxinterp.mesh.make_mesh(data=2, tensor=4)"
    if not isinstance(mesh, Mesh):
        raise InputError(f"mesh = {mesh!r} is no jax.sharding.Mesh. Make one: {make}.")
    named = {name for ways in own.values() for way in ways for entry in way for name in _names(entry)}
    unknown = sorted(named - set(mesh.axis_names) - set(AXES))
    if unknown:
        raise InputError(f"rules name the axes {unknown}; the mesh has {dict(mesh.shape)}.")
    idle = [name for name in mesh.axis_names if name not in AXES and name not in named]
    if idle:
        raise InputError(
            f"No rule speaks of the axes {idle} of the mesh {dict(mesh.shape)}. The table has `data` (examples) and `tensor` "
            f"(heads, MLP width, vocabulary): name them so, as in {make}, or give rules for other axes."
        )
    if AxisType.Explicit in mesh.axis_types:
        raise InputError(
            f"The mesh {dict(mesh.shape)} has axes of the kind Explicit (the default of jax.make_mesh), on which a model's cut "
            f"parameters cannot be multiplied without telling each product where its result lies. Make an Auto one: {make}."
        )


def _cannot(
    uncut: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    ways: Mapping[str, tuple[PartitionSpec, ...]],
    mesh: Mesh,
) -> str:
    lines = [f"{path} {list(shapes[path])}, by {' or '.join(map(str, ways[path]))}" for path in uncut]
    sizes = dict(mesh.shape)
    legal = [
        n
        for n in range(1, mesh.size + 1)
        if "tensor" in sizes
        and all(_first(shape, ways[path], sizes | {"tensor": n}) is not None for path, shape in shapes.items())
    ]
    other = (
        f"Legal for all of them at once: tensor = {', '.join(map(str, legal))}; take one of these, or k"
        if legal
        else "K"
    )
    whole = ", ".join(f"{path!r}: P()" for path in uncut)
    return (
        f"The mesh {sizes} does not divide {len(uncut)} parameters of this model:\n  "
        + "\n  ".join(lines)
        + f"\n{other}"
        f"eep these whole on each device, with P = jax.sharding.PartitionSpec: rules={{{whole}}}."
    )
