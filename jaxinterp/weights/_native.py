"""jaxinterp's own checkpoints: config.json holds the fields of `TransformerConfig`, and tensors have our names and shapes."""

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxinterp._errors import ConfigError
from jaxinterp.models import RotaryScaling, TransformerConfig
from jaxinterp.weights._family import COUNT, FLAG, LIST, NUMBER, REQUIRED, TABLE, TEXT, Family, Field, Row

KINDS = {bool: FLAG, int: COUNT, float: NUMBER, RotaryScaling: TABLE}
DEFAULTS = {field.name: field.default for field in dataclasses.fields(TransformerConfig)}


def _field(name: str, hint: Any) -> Field:
    """The rule of one field of `TransformerConfig`: its kind and choices by the annotation, its default as it is there."""
    hints = (hint, *get_args(hint))
    kinds = [KINDS[kind] for kind in hints if kind in KINDS]
    choices = tuple(value for part in hints if get_origin(part) is Literal for value in get_args(part))
    kinds = [LIST] if any(get_origin(part) is tuple for part in hints) else kinds
    default = REQUIRED if DEFAULTS[name] is dataclasses.MISSING else DEFAULTS[name]
    return Field(kinds[0] if kinds else TEXT, default, choices, nullable=type(None) in hints)


FIELDS: dict[str, Field] = {
    **{name: _field(name, hint) for name, hint in get_type_hints(TransformerConfig).items()},
    "format_version": Field(COUNT, 1, (1,)),
}


def _config(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    arguments = {name: tuple(v) if isinstance(v := values[name], list) else v for name in DEFAULTS}
    if values["rotary_scaling"] is not None:
        try:
            arguments["rotary_scaling"] = RotaryScaling(**values["rotary_scaling"])
        except (TypeError, ConfigError) as error:
            faults.append(f"rotary_scaling: {error}")
    return arguments


def _describe(config: TransformerConfig) -> dict[str, Any]:
    return {"format_version": 1, **dataclasses.asdict(config)}


NATIVE = Family(
    model_type="jaxinterp",
    architectures=(),
    fields=FIELDS,
    harmless=frozenset({"model_type", "tokenizer", "dtype", "bos_token_id", "eos_token_id"}),
    same={},
    config=_config,
    describe=_describe,
    rows=(Row("*", "{path}"),),
)
