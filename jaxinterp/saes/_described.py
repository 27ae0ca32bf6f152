"""Configs as JSON, and what differs between two."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxinterp._errors import ConfigError, closest
from jaxinterp.saes._active import AuxK
from jaxinterp.saes._batch_topk import BatchTopK
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._gated import Gated
from jaxinterp.saes._jump_relu import JumpReLU
from jaxinterp.saes._matryoshka import Matryoshka
from jaxinterp.saes._relu import ReLU
from jaxinterp.saes._topk import TopK

ARCHITECTURES = {kind.name: kind for kind in (ReLU, TopK, BatchTopK, JumpReLU, Gated, Matryoshka)}
"""The architectures by name; what `SAEConfig` takes is an instance."""


def described(config: Any) -> dict[str, Any]:
    """A config as JSON can hold it: its fields, those that are configs in the same way, an architecture with its name.

    Example:
        >>> described(SAEConfig(architecture=ReLU(), d_in=4, n_latents=8))["architecture"]["name"]
        'relu'
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    name = {"name": config.name} if type(config) in ARCHITECTURES.values() else {}
    return {**name, **{key: described(v) if dataclasses.is_dataclass(v) else v for key, v in fields.items()}}


def config_from(description: dict[str, Any]) -> SAEConfig:
    """The config that `described` told, also from JSON.

    Raises:
        ConfigError: an architecture or a field that is not known, or a value that is not legal.

    Example:
        >>> config = SAEConfig(architecture=TopK(k=3), d_in=4, n_latents=8)
        >>> config_from(described(config)) == config
        True
    """
    fields = dict(description)
    inner = dict(fields.get("architecture") or {})
    name = inner.pop("name", None)
    if name not in ARCHITECTURES:
        raise ConfigError(f"The architecture {name!r} is not known. {closest(str(name), ARCHITECTURES)}")
    if isinstance(inner.get("auxiliary"), dict):
        inner["auxiliary"] = _made(AuxK, inner["auxiliary"], "auxiliary")
    if isinstance(inner.get("widths"), list):
        inner["widths"] = tuple(inner["widths"])
    return _made(SAEConfig, {**fields, "architecture": _made(ARCHITECTURES[name], inner, name)}, "the dictionary")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for each field in which two descriptions differ."""
    lines = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b and not (isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and [*a] == [*b]):
            lines.append(f"{prefix}{name}: {a!r} there, {b!r} here")
    return lines


def _made(kind: type, fields: dict[str, Any], what: str) -> Any:
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        names = [field.name for field in dataclasses.fields(kind)]
        raise ConfigError(
            f"{', '.join(map(repr, unknown))} of {what}: not known, and it may change the computation. "
            f"{closest(unknown[0], names)}"
        )
    try:
        return kind(**fields)
    except TypeError as error:
        raise ConfigError(f"{what} is not whole: {error}.") from error
