"""Numbers, tokens and places as a person reads them."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray


def number(value: float) -> str:
    """A number as a person reads it: three significant digits, a true minus sign."""
    if not math.isfinite(value):
        return "undefined"
    if value == 0:
        return "0"
    text = f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else "0.00"


def aligned(value: float) -> str:
    """A number for a column of a table: three decimals."""
    if not math.isfinite(value):
        return "undefined"
    text = f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else "0.000"


def words(name: str) -> str:
    """`logit_difference` or `logit difference` as `Logit difference`."""
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def visible(token: str) -> str:
    """A token with its spaces and line breaks made visible: ' She' is '·She'."""
    return token.replace(" ", "·").replace("▁", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")


def printable(token: str) -> str:
    """A token with its spaces as they are, and all else that does not print, or would turn the text around it, made visible."""
    known = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(known.get(c, c if c.isprintable() else f"<U+{ord(c):04X}>") for c in token) or "<empty>"


def coordinate(one: "xarray.Dataset", dim: str, i: int) -> int | str:
    """The coordinate of the i-th place along an axis."""
    if dim not in one.coords:
        return i
    item = one[dim].values[i]
    return int(item) if isinstance(item, np.integer | int) else str(item)


def token(one: "xarray.Dataset", dim: str, i: int) -> str:
    """The token at a position, "" where there is none."""
    if dim != "position" or "token" not in one.coords or one["token"].dims != ("position",):
        return ""
    return visible(str(one["token"].values[i]))


def label(one: "xarray.Dataset", dim: str, i: int) -> str:
    """The coordinate with its token, where there is one; the name of a listed cell."""
    if dim == "cell":
        return listed_name(one, i)
    return f"{token(one, dim, i)} {coordinate(one, dim, i)}".strip()


_SHORT = {"layer": "L", "head": "H", "key_value_head": "KV", "feature": "F"}
_PLACES = ("site", *_SHORT, "position", "role")


def cell_name(one: "xarray.Dataset", dims: list[str], index: tuple[int, ...]) -> str:
    """Such as L3.H5, or L3 ·Lily@4; of listed cells L3.H5, or L3.H5 + L0.H1 where a cell is a joint edit."""
    if "cell" in dims:
        at = dims.index("cell")
        before = _place({dim: coordinate(one, dim, i) for dim, i in zip(dims[:at], index, strict=False)})
        return f"{before} {listed_name(one, index[at])}".strip()
    parts = {dim: coordinate(one, dim, i) for dim, i in zip(dims, index, strict=True)}
    text = next((token(one, dim, i) for dim, i in zip(dims, index, strict=True) if dim == "position"), "")
    return _place(parts, text) or "all"


def _place(parts: Mapping[str, object], text: str = "") -> str:
    """One place; `text` is the token at its position."""
    words: list[str] = []
    last = ""
    for dim, where in parts.items():
        if dim in _SHORT and last in _SHORT:
            words[-1] += f".{_SHORT[dim]}{where}"
        elif dim in _SHORT:
            words.append(f"{_SHORT[dim]}{where}")
        else:
            words.append(f"{text}@{where}" if dim == "position" else str(where))
        last = dim
    return " ".join(words)


def along_cell(one: "xarray.Dataset", i: int) -> dict[str, int | str]:
    """What the i-th of listed cells is, by axis: numbers, or the places of a joint edit joined by "+"."""
    found = {}
    for name in _PLACES:
        if name in one.coords and one[name].dims == ("cell",):
            item = one[name].values[i]
            found[name] = int(item) if isinstance(item, np.integer | int) else str(item)
    return found


def listed_name(one: "xarray.Dataset", i: int) -> str:
    """The name of the i-th of listed cells, made of its coordinates; its number where there are none."""
    found = along_cell(one, i)
    if not found:
        return f"cell {coordinate(one, 'cell', i)}"
    if "site" in found and len({part for text in one["site"].values for part in str(text).split("+")}) == 1:
        del found["site"]  # the same everywhere: the title says it
    columns = {axis: str(text).split("+") for axis, text in found.items()}
    if len({len(parts) for parts in columns.values()}) > 1:  # a role's own name has a plus sign
        columns = {axis: [str(text)] for axis, text in found.items()}
    places = [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]
    named = [_place({axis: text for axis, text in place.items() if text != "all"}) or "all" for place in places]
    return " + ".join(named) or f"cell {coordinate(one, 'cell', i)}"


def by_cell(one: "xarray.Dataset", name: str, dims: list[str], last: str | None = None) -> np.ndarray | None:
    """An array of the sweep with its axes in the order of `dims`, then `last`; None where the sweep has none."""
    if name not in one:
        return None
    order = dims if last is None else [*dims, last]
    return np.asarray(one[name].transpose(*order).values, dtype=np.float64)
