"""Cells: the places of a sweep, as arrays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinterp._errors import InputError, SiteIndexError, closest
from jaxinterp._tree import pytree, static
from jaxinterp.tap import SiteShape

AXES = ("layer", "head", "position", "role", "feature")
"""What a sweep can run over. A role is a position that differs by prompt: "the name", "the end"."""


@pytree
class Cells:
    """The places of a sweep: each cell is one edit, or several at once (its parts).

    Attributes:
        axes: static; the result's axes and their sizes: every combination in row-major order, or one axis "cell".
        labels: static; for each axis its values: ints, or names of roles and blocks.
        sites: static; the site of each part.
        parts: for each part a dictionary of indices: layer, head and feature [n, k], position [n, k] or, by prompt, [n, B, k].
            A part edits all combinations of its k indices; an absent key means all.
        coordinates: for the axis "cell", what each cell is: name to [n].
    """

    axes: tuple[tuple[str, int], ...] = static()
    labels: tuple[tuple[Any, ...], ...] = static()
    sites: tuple[str, ...] = static()
    parts: Any = ()
    coordinates: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(size for _, size in self.axes)

    def __len__(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def take(self, ids: Any) -> tuple[dict[str, np.ndarray], ...]:
        """The parts of some cells, indices with a leading axis as long as `ids`."""
        return tuple({key: index[ids] for key, index in part.items()} for part in self.parts)


def parse_over(over: Any) -> dict[str, Any]:
    """The axes of cells that `over` names, with their values.

    Args:
        over: "layer,head", a list of axes, or a mapping from axis to the values wanted.

    Returns:
        Values by axis, in the order given; None for all.

    Raises:
        InputError: an axis that is not one of `AXES`, no axis, or both position and role.

    Example:
        >>> import jaxinterp as ji
        >>> ji.patching.parse_over("layer, head")
        {'layer': None, 'head': None}
    """
    if isinstance(over, str):
        over = [name.strip() for name in over.split(",") if name.strip()]
    axes = dict(over) if isinstance(over, Mapping) else dict.fromkeys(over)
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or not axes:
        raise InputError(
            f"over={over!r}: "
            + (f"unknown axis {unknown[0]!r}. " if unknown else "no axis. ")
            + f"Legal: {', '.join(AXES)}."
        )
    if "position" in axes and "role" in axes:
        raise InputError("over names both position and role; a role is a position, so give one of them.")
    return axes


def is_list(over: Any) -> bool:
    """Whether `over` lists cells one by one: mappings, or lists of mappings."""
    first = over[0] if isinstance(over, (list, tuple)) and over else None
    return isinstance(first, Mapping) or (
        isinstance(first, (list, tuple)) and all(isinstance(p, Mapping) for p in first)
    )


def make_cells(over: Any, *, shape: SiteShape, roles: Mapping[str, Any] | None = None) -> Cells:
    """The cells of a sweep: every combination of some axes.

    Args:
        over: "layer,head", a list of axes, or a mapping from axis to the values wanted (None: all). A value may be a block: a
            tuple of indices that are edited together.
        shape: of the site, from `jaxinterp.sites`.
        roles: positions [B] by name, for the axis role.

    Raises:
        InputError: an unknown axis or role, or an axis that the site does not have.
        SiteIndexError: values out of range.
    """
    chosen = {axis: _blocks(axis, wanted, shape, roles) for axis, wanted in parse_over(over).items()}
    grid = np.array(list(itertools.product(*(range(len(v)) for v in chosen.values()))), np.int32).reshape(
        -1, len(chosen)
    )
    part: dict[str, Any] = {}
    for column, (axis, blocks) in enumerate(chosen.items()):
        if axis == "role":
            part["position"] = _role_positions(blocks, roles)[grid[:, column]]
        else:
            part[axis] = _even(blocks)[grid[:, column]]
    labels = tuple(_labels(blocks) for blocks in chosen.values())
    axes = tuple((axis, len(blocks)) for axis, blocks in chosen.items())
    return Cells(axes=axes, labels=labels, sites=(shape.name,), parts=(part,))


def list_cells(
    cells: Sequence[Any], *, site: str | None, table: Any, roles: Mapping[str, Any] | None = None
) -> list[tuple[np.ndarray, Cells]]:
    """Cells that are listed one by one, grouped by what they edit (sites and axes), with the places of each group in the list.

    Args:
        cells: mappings from axis (and "site") to an index or a block of indices, or lists of such mappings, for several edits
            at once.
        site: of the places that name none.
        table: the model's sites, from `jaxinterp.sites`.
        roles: positions [B] by name.
    """
    rows = [[dict(p) for p in ([cell] if isinstance(cell, Mapping) else cell)] for cell in cells]
    faults = []
    for i, parts in enumerate(rows):
        for part in parts:
            part.setdefault("site", site)
            unknown = [key for key in part if key not in (*AXES, "site")]
            if unknown or part["site"] is None or len(part) < 2 or {"role", "position"} <= set(part):
                faults.append(f"cell {i}: {part}")
        if not parts:
            faults.append(f"cell {i} is empty")
    if faults:
        raise InputError(
            f"not understood: {'; '.join(faults[:5])}. A cell is a mapping such as {{'layer': 3, 'head': 1}}, or a list of them, "
            f"with at least one of {', '.join(AXES)} (position or role) and, unless the sweep has one, a 'site'."
        )
    groups: dict[Any, list[int]] = {}
    for i, parts in enumerate(rows):
        groups.setdefault(tuple((part["site"], *(a for a in AXES if a in part)) for part in parts), []).append(i)
    return [(np.asarray(ids), _group([rows[i] for i in ids], table, roles)) for ids in groups.values()]


def _group(rows: list[list[dict[str, Any]]], table: Any, roles: Any) -> Cells:
    """Cells whose parts have the same sites and name the same axes."""
    parts, sites = [], tuple(part["site"] for part in rows[0])
    for j, name in enumerate(sites):
        part: dict[str, Any] = {}
        for axis in [a for a in AXES if a in rows[0][j]]:
            blocks = [_blocks(axis, [row[j][axis]], table[name], roles)[0] for row in rows]
            if axis == "role":
                part["position"] = _role_positions(blocks, roles)
            else:
                part[axis] = _even(blocks)
        parts.append(part)
    return Cells(axes=(("cell", len(rows)),), labels=(tuple(range(len(rows))),), sites=sites, parts=tuple(parts))


def coordinates(cells: Sequence[Any], site: str | None) -> dict[str, list[Any]]:
    """What listed cells are, for a reader: by axis a text for each cell, places joined by "+"."""
    rows = [[p] if isinstance(p, Mapping) else list(p) for p in cells]
    names = [a for a in ("site", *AXES) if any(a in part for row in rows for part in row)]
    text = lambda value: _label(tuple(value)) if isinstance(value, (list, tuple, np.ndarray)) else str(value)
    out = {}
    for name in names:
        texts = ["+".join(text(part.get(name, site if name == "site" else "all")) for part in row) for row in rows]
        out[name] = [int(t) for t in texts] if all(t.isdigit() for t in texts) else texts
    return out


def _even(blocks: Sequence[tuple[int, ...]]) -> np.ndarray:
    """[n, k]; a shorter block repeats its last index, which edits nothing more."""
    k = max(map(len, blocks))
    return np.array([b + (b[-1],) * (k - len(b)) for b in blocks], np.int32)


def _role_positions(blocks: Sequence[tuple[str, ...]], roles: Any) -> np.ndarray:
    """Positions [n, B, k]."""
    k = max(map(len, blocks))
    rows = [[np.asarray(roles[name], np.int32) for name in b + (b[-1],) * (k - len(b))] for b in blocks]
    return np.stack([np.stack(row, -1) for row in rows])


def _labels(blocks: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    single = all(len(b) == 1 for b in blocks)
    return tuple(b[0] if single else _label(b) for b in blocks)


def _label(block: tuple[Any, ...]) -> str:
    whole = all(isinstance(i, (int, np.integer)) for i in block)
    if whole and len(block) > 2 and block == tuple(range(block[0], block[-1] + 1)):
        return f"{block[0]}-{block[-1]}"
    return ",".join(map(str, block))


def _blocks(axis: str, wanted: Any, shape: SiteShape, roles: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    """The values of an axis, each as a tuple of the indices that are edited together."""
    if axis == "role":
        return _role_blocks(wanted, shape, roles)
    size = axis_size(axis, shape)
    if wanted is None:
        return [(i,) for i in range(size)]
    wanted = list(wanted) if isinstance(wanted, (list, tuple, range)) else list(np.atleast_1d(np.asarray(wanted)))
    blocks = [tuple(int(i) for i in np.atleast_1d(np.asarray(value))) for value in wanted]
    wrong = [i for block in blocks for i in block if not 0 <= i < size]
    if wrong:
        raise SiteIndexError(f"over {axis}={wrong}: site {shape.name!r} has {size}, so legal are 0 to {size - 1}.")
    if len(set(blocks)) != len(blocks) or not blocks or not all(blocks):
        raise InputError(f"over {axis}={wanted}: give each value once, and at least one.")
    return blocks


def _role_blocks(wanted: Any, shape: SiteShape, roles: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    if not roles:
        raise InputError("over names the axis role, but no roles were given. Pass roles={'name': positions [B], ...}.")
    if "T" not in shape.axes:
        raise InputError(f"site {shape.name!r} has axes {shape.axes!r} and so no positions; leave role out of over.")
    values = list(roles) if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    blocks = [(value,) if isinstance(value, str) else tuple(value) for value in values]
    n_prompts = shape.shape[shape.axes.index("B")]
    for name in (name for block in blocks for name in block):
        if name not in roles:
            raise InputError(f"no role {name!r}. {closest(name, roles)}")
        rows = np.asarray(roles[name])
        if rows.shape != (n_prompts,) or not np.issubdtype(rows.dtype, np.integer) or (rows < 0).any():
            raise InputError(
                f"role {name!r} is {rows.dtype}{list(rows.shape)}; give its position in each prompt, integers from 0, "
                f"[{n_prompts}]."
            )
    return blocks


def axis_letter(axis: str, shape: SiteShape) -> str | None:
    """Which of a site's axes an axis of cells indexes.

    Args:
        axis: one of `AXES`.
        shape: of the site, from `jaxinterp.sites`.

    Returns:
        The letter, "L" for layers; None where the site has no such axis.

    Example:
        >>> import jax, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=5, d_mlp=8)
        >>> model = ji.Model(config=config)
        >>> table = ji.sites(model.forward, model.param_shapes(), jax.numpy.ones((1, 3), "int32"))
        >>> [ji.patching.axis_letter(axis, table["attn.k"]) for axis in ji.patching.AXES]
        ['L', 'K', 'T', 'T', 'E']
        >>> [ji.patching.axis_letter(axis, table["embed"]) for axis in ("layer", "head")]
        [None, None]
    """
    if axis == "layer":
        return None if shape.n_layers is None else "L"
    if axis == "feature":
        last = shape.axes[-1:]
        return None if last in "BTSHK" else last
    return next((letter for letter in ("HK" if axis == "head" else "T") if letter in shape.axes), None)


def axis_size(axis: str, shape: SiteShape) -> int:
    """How many layers, heads, positions or features a site has."""
    letter = axis_letter(axis, shape)
    if letter is None:
        where = "is in no layer" if axis == "layer" else f"has axes {shape.axes!r} and so no {axis}"
        raise InputError(f"site {shape.name!r} {where}; leave {axis} out of over, or choose another site.")
    return shape.n_layers if axis == "layer" else shape.shape[shape.axes.index(letter)]  # type: ignore[return-value]
