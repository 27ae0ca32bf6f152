"""jaxinterp: functional mechanistic interpretability for JAX.

Models are pure functions with named sites; what looks into or changes a computation is a pure transformation of such a function.
Start with `load`, `run`, `capture`, `patch`, `patching.sweep`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxinterp._errors import (
    ConfigError,
    DuplicateSiteError,
    InputError,
    JaxinterpError,
    MissingFileError,
    SaveError,
    SiteIndexError,
    SiteTypeError,
    TapScopeError,
    TokenError,
    UnvisitedSiteError,
    WeightsError,
)
from jaxinterp.models import Model, RotaryScaling, TransformerConfig
from jaxinterp.tap import (
    IDENTITY,
    Handler,
    Site,
    Tap,
    add,
    capture,
    edit,
    mean,
    patch,
    perturb,
    project_onto,
    project_out,
    run,
    scale,
    sites,
    statistics,
    zero,
)

__version__ = "0.1.0"

_LAZY = {
    "LanguageModel": "weights", "Tokenizer": "weights", "load": "weights", "save": "weights",
}  # fmt: skip
_PACKAGES = ("models", "nn", "patching", "tasks", "training", "viz", "weights", "zoo")

if TYPE_CHECKING:
    from jaxinterp import nn, patching, tasks, training, viz, weights, zoo
    from jaxinterp.weights import LanguageModel, Tokenizer, load, save


def __getattr__(name: str) -> Any:
    """Imports a package when it is first used, so that `import jaxinterp` costs little more than `import jax`."""
    if name in _PACKAGES:
        return importlib.import_module(f"jaxinterp.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(f"jaxinterp.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'jaxinterp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES})


__all__ = [
    "IDENTITY",
    "ConfigError",
    "DuplicateSiteError",
    "Handler",
    "InputError",
    "JaxinterpError",
    "LanguageModel",
    "MissingFileError",
    "Model",
    "RotaryScaling",
    "SaveError",
    "Site",
    "SiteIndexError",
    "SiteTypeError",
    "Tap",
    "TapScopeError",
    "TokenError",
    "Tokenizer",
    "TransformerConfig",
    "UnvisitedSiteError",
    "WeightsError",
    "add",
    "capture",
    "edit",
    "load",
    "mean",
    "patch",
    "perturb",
    "project_onto",
    "project_out",
    "run",
    "save",
    "scale",
    "sites",
    "statistics",
    "zero",
]
