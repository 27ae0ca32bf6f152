"""The command `jaxinterp`: thin commands over the public API.

`main` is what the command runs; each command is a frozen dataclass of its options and a function.
"""

from jaxinterp.cli._main import main

__all__ = ["main"]
