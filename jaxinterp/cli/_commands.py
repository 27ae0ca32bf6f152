"""The commands by name; each is imported when it is called."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """A command as the general help lists it."""

    module: str
    summary: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command: its options as a dataclass, its help, and the function that runs it.

    Attributes:
        options: the dataclass; it has a field `output`. Or a function of the arguments that gives it, where they decide what
            other options there are.
        description: what `--help` teaches, examples included.
        run: `(options, output, command line) -> result`, which `--json` prints.
        chosen: from the arguments, the words behind the command's name that decide what options there are: "--architecture relu".
        advice: from the arguments, what to say when they are not understood; "" if nothing.
    """

    options: type | Callable[[list[str]], Any]
    description: str
    run: Callable[[Any, Any, str], dict[str, Any]]
    chosen: Callable[[list[str]], str] = lambda arguments: ""
    advice: Callable[[list[str]], str] = lambda arguments: ""


COMMANDS = {
    "demo": Summary(module="_demo", summary="a story on a real model: who carries the pronoun, and is it true?"),
    "predict": Summary(module="_predict", summary="the most probable next tokens of a prompt"),
    "generate": Summary(module="_generate", summary="continue a prompt"),
    "sites": Summary(module="_sites", summary="list every named value of a model: axes, shape, bytes"),
    "patch": Summary(module="_patch", summary="sweep over heads, layers, positions: what carries the answer"),
    "sae train": Summary(module="_sae_train", summary="train a sparse dictionary on a site of a model; again: go on"),
    "sae eval": Summary(module="_sae_eval", summary="judge a dictionary: error, sparsity, loss recovered, controls"),
    "sae page": Summary(module="_sae_page", summary="pages on its latents: contexts, what they write, their neighbors"),
    "sae convert": Summary(module="_sae_convert", summary="rewrite a dictionary in another tool's form, or in ours"),
}


def load_command(name: str) -> Command:
    """The command called `name`."""
    return importlib.import_module(f"jaxinterp.cli.{COMMANDS[name].module}").COMMAND
