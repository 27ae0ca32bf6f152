"""What a form of files is: the extension point of `load` and `save`. One small file a form; no other file knows one by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxinterp._errors import ConfigError, InputError
from jaxinterp.saes._config import SAEConfig

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "required"})()
"""The default of a field that has none."""
KINDS = {
    int: "a whole number from 1 up",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a table",
    list: "a list",
}


class Field(NamedTuple):
    """One understood field of a config.

    Attributes:
        legal: the type of its value (a key of `KINDS`), or a tuple of the values that are implemented.
        default: what its absence means to those who made the form, or `REQUIRED`. A default of None allows null.
    """

    legal: Any
    default: Any = REQUIRED


class Tensor(NamedTuple):
    """The name that one of our parameters has in a file, and whether it is transposed there."""

    name: str
    transposed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """A dictionary on the host: what a form writes.

    Attributes:
        config: its config.
        params: its parameters, ours by name.
        scales: "input" and "target", as of `SAE`.
    """

    config: SAEConfig
    params: dict[str, np.ndarray]
    scales: dict[str, float]


class Written(NamedTuple):
    """What a form makes of a dictionary that is not as the form has it already.

    Attributes:
        content: the dictionary as the form can hold it: the same function.
        config: the content of the config file.
        tensors: what the form wants beside the parameters, by its names.
    """

    content: Content
    config: dict[str, Any]
    tensors: Mapping[str, np.ndarray] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """How other people write dictionaries.

    Attributes:
        weights: the name of the file with the tensors, by which a folder is recognized: .safetensors or .npz.
        config_file: the name of the file with the config; None: there is none.
        other_files: small files that are kept where they are there.
        read: (config, shapes of the tensors, where it lies) to our config. It names all faults at once.
        tensors: (our config, names of the tensors) to the tensor of each of our parameters.
        idle: our config to the tensors that may be there and change nothing, each with what is wrong with its values, or "".
        scale: what the constants of a normalization are, from the small files; None: they do not say.
        scale_file: the small file that says it.
        write: a dictionary, and the config of the file that it came from (empty if from none), to what is written.
        by_place: whether what a dictionary reads is told by where its files lie alone.
        pickle: the name that the weights have as a pickle, where people publish them so.
    """

    weights: str
    config_file: str | None
    read: Callable[[dict[str, Any], Mapping[str, tuple[int, ...]], str], SAEConfig]
    tensors: Callable[[SAEConfig, Collection[str]], dict[str, Tensor]]
    write: Callable[[Content, dict[str, Any]], Written]
    idle: Callable[[SAEConfig], Mapping[str, Callable[[np.ndarray], str]]] = lambda config: {}
    scale: Callable[[Mapping[str, bytes]], float | None] = lambda files: None
    scale_file: Callable[[float], dict[str, bytes]] = lambda constant: {}
    other_files: tuple[str, ...] = ()
    by_place: bool = False
    pickle: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The small files, the config first."""
        return (*(() if self.config_file is None else (self.config_file,)), *self.other_files)


def read_fields(
    raw: Mapping[str, Any], fields: Mapping[str, Field], harmless: Collection[str] = (), prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The values of the understood fields of a config, and what is wrong: unknown fields, values that are not implemented."""
    unknown = [f"{prefix}{name} = {raw[name]!r}" for name in raw if name not in fields and name not in harmless]
    faults = [f"not understood, and might change the computation: {', '.join(unknown)}"] if unknown else []
    values = {name: raw.get(name, field.default) for name, field in fields.items()}
    for name, field in fields.items():
        fault = _fault_of(values[name], field)
        faults += [f"{prefix}{name} {fault}"] if fault else []
    return values, faults


def _fault_of(value: Any, field: Field) -> str:
    if value is REQUIRED:
        what = KINDS[field.legal] if isinstance(field.legal, type) else f"one of {', '.join(map(repr, field.legal))}"
        return f"is missing: it must be {what}"
    if value is None and field.default is None:
        return ""
    if isinstance(field.legal, tuple):
        return (
            "" if value in field.legal else f"= {value!r} is not implemented; {' or '.join(map(repr, field.legal))} is"
        )
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    legal = {
        int: isinstance(value, int) and number and value >= 1,
        float: number,
    }.get(field.legal, isinstance(value, field.legal))
    return "" if legal else f"= {value!r} is not {KINDS[field.legal]}"


def made_config(faults: list[str], make: Callable[[], SAEConfig], what: str) -> SAEConfig:
    """Our config, unless something is wrong with theirs.

    Raises:
        ConfigError: all that is wrong.
    """
    if not faults:
        try:
            return make()
        except ConfigError as error:
            faults = [str(error)]
    raise ConfigError(
        f"This config of {what} cannot be followed exactly:\n  "
        + "\n  ".join(faults)
        + "\nA dictionary that is computed "
        "otherwise than it was trained gives wrong findings, so nothing was loaded. If a field truly does not matter for yours, "
        "remove it from a copy of the file."
    )


def refuse(what: str, reasons: list[str]) -> None:
    """An error that says why a form cannot hold a dictionary, if there is a reason.

    Raises:
        InputError: there is.
    """
    if reasons:
        raise InputError(
            f"{what} cannot hold this dictionary:\n  "
            + "\n  ".join(reasons)
            + "\nsaes.save(sae, folder) writes it in our own "
            "form, which holds every one."
        )
