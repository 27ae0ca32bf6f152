"""jaxinterp: functional mechanistic interpretability for JAX.

Models are pure functions with named sites; what looks into or changes a computation is a pure transformation of such a function.
Start with `load`, `run`, `capture`, `patch`, `patching.sweep`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxinterp._version import __version__

if TYPE_CHECKING:
    from jaxinterp import (
        activations,
        attribution,
        audit,
        guests,
        mesh,
        models,
        nn,
        patching,
        saes,
        store,
        tap,
        tasks,
        training,
        viz,
        weights,
        zoo,
    )
    from jaxinterp._errors import (
        ConfigError,
        DuplicateSiteError,
        InputError,
        JaxinterpError,
        MissingFileError,
        SaveError,
        SiteIndexError,
        SiteTypeError,
        StreamEmptyError,
        TapScopeError,
        TokenError,
        UnvisitedSiteError,
        WeightsError,
    )
    from jaxinterp.models import Model, RotaryScaling, TransformerConfig, generate
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
        place,
        project_onto,
        project_out,
        run,
        scale,
        sites,
        statistics,
        zero,
    )
    from jaxinterp.weights import LanguageModel, Tokenizer, load, save

_PACKAGES = (
    "activations", "attribution", "audit", "guests", "mesh", "models", "nn", "patching", "saes", "store", "tap", "tasks",
    "training", "viz", "weights", "zoo",
)  # fmt: skip
# Where each public name lives; a package is imported when one of its names is first used, so that `import jaxinterp` is cheap.
_HOMES = {
    "_errors": (
        "ConfigError", "DuplicateSiteError", "InputError", "JaxinterpError", "MissingFileError", "SaveError", "SiteIndexError",
        "SiteTypeError", "StreamEmptyError", "TapScopeError", "TokenError", "UnvisitedSiteError", "WeightsError",
    ),
    "models": ("Model", "RotaryScaling", "TransformerConfig", "generate"),
    "tap": (
        "IDENTITY", "Handler", "Site", "Tap", "add", "capture", "edit", "mean", "patch", "perturb", "place", "project_onto",
        "project_out", "run", "scale", "sites", "statistics", "zero",
    ),
    "weights": ("LanguageModel", "Tokenizer", "load", "save"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"jaxinterp.{name}")
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"jaxinterp.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    from jaxinterp._errors import closest

    raise AttributeError(f"module 'jaxinterp' has no attribute {name!r}. {closest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = ["__version__", *_PACKAGES, *_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]
