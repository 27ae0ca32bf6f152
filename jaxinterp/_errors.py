"""The errors that jaxinterp raises for what a caller can mend.

Every one is a `JaxinterpError` and also the built-in error that fits, so `except ValueError` works as it does elsewhere.
Each message says what happened with the values, what is legal, and how to fix it.
"""

import difflib
from collections.abc import Iterable


class JaxinterpError(Exception):
    """Base of every error that a caller can mend; the commands print these without a traceback."""


class UnvisitedSiteError(JaxinterpError, LookupError):
    """A handler names a site that the function never visited."""


class TapScopeError(JaxinterpError, RuntimeError):
    """A tap was called inside a JAX transformation that it did not enter."""


class DuplicateSiteError(JaxinterpError, RuntimeError):
    """One site emitted twice for one (layer, step)."""


class SiteTypeError(JaxinterpError, TypeError):
    """A value does not have the shape, dtype or axes of its site."""


class SiteIndexError(JaxinterpError, IndexError):
    """A layer, head, position or feature outside the site."""


class ConfigError(JaxinterpError, ValueError):
    """A configuration that is not legal, or not understood."""


class WeightsError(JaxinterpError, ValueError):
    """A checkpoint that cannot be read as it should."""


class TokenError(JaxinterpError, ValueError):
    """A text whose tokens are not what the call needs."""


class InputError(JaxinterpError, ValueError):
    """Any other argument that is not legal."""


class StreamEmptyError(JaxinterpError, StopIteration):
    """A stream has no further batch. Being a StopIteration, it ends a `for` loop as any end does."""


class MissingFileError(JaxinterpError, FileNotFoundError):
    """A file or folder that is not there."""


class SaveError(JaxinterpError, OSError):
    """A result could not be written; nothing half-written was left under its name."""


def closest(name: str, names: Iterable[str], count: int = 3) -> str:
    """A clause that names the legal names nearest to `name`."""
    names = sorted(set(names))
    near = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "Legal names: " + ", ".join(names) + "." if names else "There are none."
