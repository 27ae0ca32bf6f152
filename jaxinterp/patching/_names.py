"""TransformerLens's names for sites, in the arguments of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxinterp._errors import InputError
from jaxinterp.patching._cells import is_list, parse_over
from jaxinterp.tap import SiteTable


def in_own_names(over: Any, site: str | None, table: SiteTable) -> tuple[Any, str | None]:
    """`over` and `site` with our names of sites; the layer of a name such as `blocks.3.attn.hook_z` becomes an axis of its own.

    Args:
        over, site: as in `sweep`.
        table: the model's sites.

    Raises:
        InputError: a name has a layer's number, and `over` has layers too.
    """
    if is_list(over):
        cells = [[over_part] if isinstance(over_part, Mapping) else over_part for over_part in over]
        return [[_part(dict(part), site, table) for part in cell] for cell in cells], None
    if site is None:
        return over, site
    name, layer = table.resolve(site)
    return (over if layer is None else _placed(parse_over(over), site, layer)), name


def _part(part: dict[str, Any], site: str | None, table: SiteTable) -> dict[str, Any]:
    written = part.setdefault("site", site)
    if not isinstance(written, str):
        return part
    part["site"], layer = table.resolve(written)
    return part if layer is None else _placed(part, written, layer)


def _placed(axes: Mapping[str, Any], site: str, layer: int) -> dict[str, Any]:
    if "layer" in axes:
        raise InputError(
            f"site {site!r} names layer {layer}, and layer={axes['layer']} is an axis of over too. Leave that out, or name all "
            f"layers: {site.replace(f'.{layer}.', '.*.', 1)!r}."
        )
    return {"layer": [layer], **axes}
