"""What a family of models is: a table. No other file knows a family by name.

A `Family` says how its config.json reads (`fields`, `harmless`, `config`) and how its tensors map to our parameters
(`rows`, `buffers`, `twins`). Everything else (reading, checking, reporting, writing back) is done from the table by
`_config.py` and `_mapping.py`, the same for all. A new family is one new file with one table, and one line in
`_families.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxinterp.models import TransformerConfig
from jaxinterp.weights._transforms import Transform, same

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "required"})()
"""The default of a config field that has none."""

COUNT, NUMBER, FLAG, TEXT, TABLE, LIST = (
    "a whole number from 1 up", "a number", "true or false", "a text", "a table", "a list of texts",
)  # fmt: skip
"""The kinds of value of a config field, as error messages call them."""


class Field(NamedTuple):
    """One understood field of config.json.

    Attributes:
        kind: what its value is: one of `COUNT`, `NUMBER`, `FLAG`, `TEXT`, `TABLE`, `LIST`.
        default: what its absence means (in the reference implementation), or `REQUIRED`. A default of None allows
            null.
        accepted: the values that are implemented; empty means all of that kind.
        nullable: whether null is legal beside that kind although it is not the default.
    """

    kind: str
    default: Any = REQUIRED
    accepted: tuple[Any, ...] = ()
    nullable: bool = False


class Row(NamedTuple):
    """One line of a name map.

    Attributes:
        paths: our parameter, as its keys joined by dots ("blocks.attn.W_Q"), or several that one tensor holds. Rows
            whose parameters the model does not have are left out. The path "*" stands for each parameter that the
            model has.
        name: the tensor's name. "{layer}" is the layer's number (without it the parameter is not split into layers),
            "{path}" our own path; the other placeholders are the family's (see `spellings`).
        transform: how the tensor holds the parameter.
    """

    paths: str | tuple[str, ...]
    name: str
    transform: Transform = same


class Buffer(NamedTuple):
    """A tensor that some files carry although it is not learned: it follows from the config.

    Attributes:
        name: as in `Row`.
        fault: what is wrong with its values under this config (it would change the computation), or None.
    """

    name: str
    fault: Callable[[np.ndarray, TransformerConfig], str | None]


class Twin(NamedTuple):
    """A tensor that some files hold a second time, where the config ties the two."""

    name: str
    of: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How one family of models writes its checkpoints.

    Attributes:
        model_type: the value of `model_type` in its config.json.
        architectures: the values of `architectures` that this table describes.
        fields: the config fields that are understood.
        harmless: the config fields that do not change the computation.
        same: the config fields that are a field of `TransformerConfig` under another name: theirs to ours.
        config: the other arguments of `TransformerConfig`, from the fields' values; it appends to the list what it cannot
            translate.
        describe: the other fields of a config.json for a config: the inverse of `config`, as far as the family can say it
            (`save` reads the result back and compares).
        rows: the name map.
        spellings: what the other placeholders of names stand for; several, where files differ in it ("{prefix}", say).
        buffers: tensors that are checked and kept, but are no parameters.
        twins: tensors that may stand a second time under tied weights.
    """

    model_type: str
    architectures: tuple[str, ...]
    fields: Mapping[str, Field]
    harmless: frozenset[str]
    same: Mapping[str, str]
    config: Callable[[dict[str, Any], list[str]], dict[str, Any]]
    describe: Callable[[TransformerConfig], dict[str, Any]]
    rows: tuple[Row, ...]
    spellings: tuple[Mapping[str, str], ...] = ({},)
    buffers: tuple[Buffer, ...] = ()
    twins: tuple[Twin, ...] = ()
