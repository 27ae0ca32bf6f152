"""RoPE and attention windows, as Hugging Face's configs spell them: read into arguments of `TransformerConfig`, and back."""

from collections.abc import Mapping
from typing import Any

from jaxinterp.models import RotaryScaling, TransformerConfig
from jaxinterp.weights._family import LIST, NUMBER, TABLE, Field

ROTARY_FIELDS: dict[str, Field] = {
    "rope_theta": Field(NUMBER, None),
    "rope_scaling": Field(TABLE, None),
    "rope_parameters": Field(TABLE, None),
}
LAYER_TYPES = Field(LIST, None)
GLOBAL, LOCAL = "full_attention", "sliding_attention"

SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_n_ctx",
    },
}
"""The kinds of RoPE scaling that are implemented: each one's fields, and the fields of `RotaryScaling` they set."""


def read_rotary(values: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    """rotary_base, rotary_scaling and the share of a head that turns, `partial` (1.0 by default), of a config.

    They stand in `rope_theta`, `rope_scaling` and `partial_rotary_factor` (up to transformers 4) or in `rope_parameters` (from 5
    on).

    Args:
        values: the fields' values.
        faults: gets what cannot be read.
    """
    if values["rope_parameters"] and values["rope_scaling"]:
        faults.append("it has both rope_scaling and rope_parameters; one of them is legal")
        return {}
    table = dict(values["rope_parameters"] or values["rope_scaling"] or {})
    outside = {"rope_theta": values["rope_theta"], "partial_rotary_factor": values.get("partial_rotary_factor")}
    found = {}
    for (name, value), default in zip(outside.items(), (10000.0, 1.0), strict=True):
        inside = table.pop(name, value)
        if value not in (None, inside):
            faults.append(f"{name} is {value} in one place and {inside} in another")
        found[name] = default if inside is None else inside
    return {
        "rotary_base": float(found["rope_theta"]),
        "rotary_scaling": read_scaling(table, faults),
        "partial": float(found["partial_rotary_factor"]),
    }


def read_scaling(table: dict[str, Any], faults: list[str]) -> RotaryScaling | None:
    """The stretch that a table of a config describes; None where it describes none."""
    kinds = {table.pop(key) for key in ("rope_type", "type") if key in table} or {"default"}
    kind = min(kinds, key=str)
    if len(kinds) > 1 or kind not in SCALINGS:
        faults.append(
            f"RoPE scaling of type {' and '.join(sorted(map(str, kinds)))} is not implemented; {', '.join(SCALINGS)} are"
        )
        return None
    renamed = SCALINGS[kind]
    wrong = [f"{key} = {table[key]!r} is not understood" for key in table if key not in renamed]
    wrong += [f"{key} is missing" for key in renamed if key not in table]
    wrong += [
        f"{key} = {table[key]!r} is not a number above 0"
        for key in renamed
        if key in table and (not isinstance(table[key], int | float) or isinstance(table[key], bool) or table[key] <= 0)
    ]
    if wrong:
        faults.append(f"in its RoPE scaling of type {kind}: " + ", ".join(wrong))
        return None
    number = {"original_n_ctx": int}
    arguments: dict[str, Any] = {ours: number.get(ours, float)(table[key]) for key, ours in renamed.items()}
    return RotaryScaling(kind=kind, **arguments) if renamed else None


def features(partial: float, width: int) -> dict[str, Any]:
    """rotary_dim of a head of `width` features of which the share `partial` turns."""
    return {} if partial == 1.0 else {"rotary_dim": int(partial * width)}


def describe_scaling(config: TransformerConfig) -> dict[str, Any] | None:
    """The table of `rope_scaling`: the inverse of `read_scaling`."""
    scaling = config.rotary_scaling
    if scaling is None:
        return None
    return {"rope_type": scaling.kind} | {
        theirs: getattr(scaling, ours) for theirs, ours in SCALINGS[scaling.kind].items()
    }


def read_windows(window: int | None, types: list[str], n_layers: int, faults: list[str]) -> dict[str, Any]:
    """window_size and attn_types.

    Args:
        window: how many positions a row of a sliding layer sees.
        types: `layer_types`, one for each layer.
        n_layers: how many there are.
        faults: gets what cannot be read.
    """
    unknown = sorted({str(kind) for kind in types} - {GLOBAL, LOCAL})
    if unknown:
        faults.append(f"layer_types names {', '.join(unknown)}; {GLOBAL} and {LOCAL} are implemented")
    if len(types) != n_layers:
        faults.append(f"layer_types has {len(types)} entries for {n_layers} layers")
    if LOCAL not in types:
        return {}
    if window is None:
        faults.append(f"layer_types names {LOCAL}, and there is no sliding_window")
    mixed = None if GLOBAL not in types else tuple("local" if kind == LOCAL else "global" for kind in types)
    return {"window_size": window, "attn_types": mixed}


def describe_types(config: TransformerConfig) -> list[str]:
    """`layer_types`: the inverse of `read_windows`."""
    return [LOCAL if local else GLOBAL for local in config.is_local]
