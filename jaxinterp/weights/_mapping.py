"""A family's name map, fitted to one model and one set of tensors: what is where, and all that is wrong at once."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinterp._errors import WeightsError
from jaxinterp.models import Model, TransformerConfig
from jaxinterp.weights._family import Family, Row
from jaxinterp.weights._safetensors import FLOATS, Entry
from jaxinterp.weights._transforms import Shape, Transform

LISTED = 60
"""Names that a message lists one by one; more are written with their layers drawn together."""


class Place(NamedTuple):
    """Where the file keeps some of our parameters: one tensor for each layer, or a single one.

    Attributes:
        paths: our parameters.
        names: the tensors; as many as layers where `layered`, else one.
        layered: whether the parameters' first axis is the layer.
        transform: how each tensor holds the parameters of its layer.
        shapes: the shapes of the parameters, of one layer where `layered`.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    layered: bool
    transform: Transform
    shapes: tuple[Shape, ...]


class Fitted(NamedTuple):
    """A name map for one model: the places of its parameters, and the other tensors that its files may hold."""

    places: tuple[Place, ...]
    buffers: dict[str, Any]
    twins: dict[str, str]


def flatten(params: Any) -> dict[str, Any]:
    """The leaves of a parameter tree by path: keys joined by dots, without the number of the only segment of blocks."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {_path(keys, len(params["blocks"]) == 1): leaf for keys, leaf in leaves}


def unflatten(config: TransformerConfig, flat: Mapping[str, Any]) -> Any:
    """The parameter tree of a config, from leaves by path."""
    shapes = Model(config=config).param_shapes()
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), [flat[path] for path in flatten(shapes)])


def _path(keys: tuple[Any, ...], one_segment: bool) -> str:
    parts = [str(key.key) if isinstance(key, jax.tree_util.DictKey) else str(key.idx) for key in keys]
    if one_segment and parts[0] == "blocks":
        del parts[1]
    return ".".join(parts)


def fit(family: Family, config: TransformerConfig, names: Iterable[str] = ()) -> Fitted:
    """The places of a model's parameters.

    Args:
        family: the table.
        config: the model.
        names: the tensors of a file, by which one of the family's spellings is chosen; without any, its first.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(Model(config=config).param_shapes()).items()}
    present = set(names)
    fits = [_spelled(family, config, shapes, spelling) for spelling in family.spellings]
    return max(fits, key=lambda fitted: sum(name in present for place in fitted.places for name in place.names))


def _spelled(
    family: Family, config: TransformerConfig, shapes: dict[str, Shape], spelling: Mapping[str, str]
) -> Fitted:
    def named(template: str, layer: int = 0) -> str:
        for placeholder, text in {**spelling, "layer": str(layer)}.items():
            template = template.replace("{" + placeholder + "}", text)
        return template

    places, layers = [], range(config.n_layers)
    for row in _expanded(family.rows, shapes):
        paths = (row.paths,) if isinstance(row.paths, str) else row.paths
        if not all(path in shapes for path in paths):
            continue
        layered = "{layer}" in row.name
        places.append(
            Place(
                paths=paths,
                names=tuple(named(row.name, layer) for layer in layers) if layered else (named(row.name),),
                layered=layered,
                transform=row.transform,
                shapes=tuple(shapes[path][1:] if layered else shapes[path] for path in paths),
            )
        )
    forgotten = set(shapes) - {path for place in places for path in place.paths}
    if forgotten:
        raise WeightsError(
            f"Checkpoints of the family {family.model_type!r} have no tensor for: {', '.join(sorted(forgotten))}. A "
            "model of another make than the family's is saved with family='jaxinterp'."
        )
    taken = {name for place in places for name in place.names}
    buffers = {named(b.name, layer): b.fault for b in family.buffers for layer in layers}
    twins = {named(t.name): named(t.of) for t in family.twins if named(t.name) not in taken}
    return Fitted(places=tuple(places), buffers=buffers, twins=twins)


def _expanded(rows: tuple[Row, ...], shapes: Iterable[str]) -> Iterable[Row]:
    for row in rows:
        if row.paths == "*":
            yield from (Row(path, row.name.replace("{path}", path), row.transform) for path in shapes)
        else:
            yield row


def check(fitted: Fitted, entries: Mapping[str, Entry], where: str) -> None:
    """Compares the tensors of a checkpoint with what the model needs, by their headers.

    Raises:
        WeightsError: tensors are missing, unexpected, of another shape or of a dtype that is no plain float: all of
            them.
    """
    wanted = {
        name: (place, place.transform.file_shape(place.shapes)) for place in fitted.places for name in place.names
    }
    missing = [name for name in wanted if name not in entries]
    unexpected = [n for n in entries if n not in wanted and n not in fitted.buffers and n not in fitted.twins]
    shaped, typed = [], []
    for name, (place, shape) in wanted.items():
        entry = entries.get(name)
        if entry is not None and entry.shape != shape:
            shaped.append(f"{name} is {list(entry.shape)}, should be {list(shape)} (holds {', '.join(place.paths)})")
        elif entry is not None and entry.dtype not in FLOATS:
            typed.append(f"{name} is {entry.dtype}")
    faults = [
        *_section("missing", missing, ", "),
        *_section("unexpected", unexpected, ", "),
        *_section("of another shape than config.json says", shaped, "\n    "),
        *_section(
            f"of a dtype that weights cannot have ({', '.join(FLOATS)} can; quantized checkpoints are not supported)",
            typed,
            ", ",
        ),
    ]
    if faults:
        raise WeightsError(
            f"The tensors in {where} do not fit its config.json:\n  "
            + "\n  ".join(faults)
            + "\nEither the weights and config.json come from different models, or the model is of another make "
            "than its config says."
        )


def _section(title: str, lines: list[str], separator: str) -> list[str]:
    if not lines:
        return []
    listed = lines if len(lines) <= LISTED else together(lines)
    return [f"{len(lines)} {title}: " + ("\n    " if "\n" in separator else "") + separator.join(listed)]


def together(lines: Iterable[str]) -> list[str]:
    """Lines that differ in the layer's number only, as one line with all the numbers: `h.{0-3,5}.ln_1.weight`."""
    groups: dict[str, list[int | None]] = {}
    for line in lines:
        number = re.search(r"(?<=\.)\d+(?=\.)", line)
        key = line if number is None else line[: number.start()] + "\0" + line[number.end() :]
        groups.setdefault(key, []).append(None if number is None else int(number.group()))
    return [
        key.replace(
            "\0", str(numbers[0]) if len(numbers) == 1 else "{" + _ranges([n for n in numbers if n is not None]) + "}"
        )
        for key, numbers in groups.items()
    ]


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for n in sorted(set(numbers)):
        if parts and n == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], n]
        else:
            parts.append([n])
    return ",".join("-".join(map(str, part)) for part in parts)


def file_tensor(place: Place, layer: int, flat: Mapping[str, np.ndarray]) -> np.ndarray:
    """The tensor that a file holds for a place, from our parameters: the inverse of loading."""
    return place.transform.save([flat[path][layer] if place.layered else flat[path] for path in place.paths])
