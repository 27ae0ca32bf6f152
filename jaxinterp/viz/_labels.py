"""Numbers, tokens and places as a person reads them."""

import math
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
    """The coordinate with its token, where there is one."""
    return f"{token(one, dim, i)} {coordinate(one, dim, i)}".strip()


_SHORT = {"layer": "L", "head": "H", "key_value_head": "KV", "feature": "F"}


def cell_name(one: "xarray.Dataset", dims: list[str], index: tuple[int, ...]) -> str:
    """Such as L3.H5, or L3 ·Lily@4."""
    name = ""
    for dim, i in zip(dims, index, strict=True):
        where = coordinate(one, dim, i)
        if dim in _SHORT:
            name += ("." if name else "") + f"{_SHORT[dim]}{where}"
        elif dim == "position":
            name += f" {token(one, dim, i)}@{where}"
        else:
            name += f" {where}"
    return name.strip() or "all"


def effects_by_prompt(one: "xarray.Dataset", dims: list[str]) -> np.ndarray | None:
    """Effects with the prompts last, where the sweep kept them."""
    if "effect_by_prompt" not in one:
        return None
    return np.asarray(one["effect_by_prompt"].transpose(*dims, "prompt").values, dtype=np.float64)
