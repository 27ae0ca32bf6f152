"""From arguments to a command, and from what happens to an exit code."""

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jaxinterp
from jaxinterp._errors import (
    JaxinterpError,
    SaveError,
    SiteIndexError,
    SiteTypeError,
    TokenError,
    UnvisitedSiteError,
    closest,
)
from jaxinterp.cli._commands import COMMANDS, Command, load_command
from jaxinterp.cli._words import as_options, unboxed

OK, MISTAKE, USAGE, FAULT, INTERRUPTED = 0, 1, 2, 70, 130

_HELP = """\
usage: jaxinterp [-h] [--version] COMMAND ...

Look inside language models: read a model's sites, patch one place at a time, measure what it does.

commands:
{commands}

start here:
  jaxinterp demo                                     a story on a real model, in about a minute
  jaxinterp predict "Once upon a time"               the most probable next tokens
  jaxinterp patch --clean "One day, Lily had an idea." --corrupt "One day, Tim had an idea." \\
                  --correct " She" --wrong " He"     which heads carry the pronoun
  jaxinterp sae train --text stories.txt             a sparse dictionary of the residual stream, in two minutes

`jaxinterp COMMAND --help` explains every option. --model takes a folder with config.json and safetensors, a model of
the Hugging Face hub, or one of the models that come with jaxinterp.

exit codes: 0 done; 1 something that you can mend, explained on the error stream; 2 unknown command or option;
70 a fault of jaxinterp; 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command `jaxinterp`.

    Args:
        argv: the arguments behind the command's name; None takes those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # the parser of options
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt}" if str(interrupt) else "\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP.format(commands=_listed("")))
        return OK if arguments else USAGE
    if arguments[0] in ("--version", "version"):
        print(_version())
        return OK
    grouped = _listed(f"{arguments[0]} ")
    if grouped and arguments[1:2] in ([], ["-h"], ["--help"], ["help"]):
        print(f"usage: jaxinterp {arguments[0]} COMMAND ...\n\ncommands:\n{grouped}")
        return OK if arguments[1:] else USAGE
    words = 2 if grouped else 1
    name, rest = " ".join(arguments[:words]), arguments[words:]
    if name not in COMMANDS:
        message = f"unknown command {name!r}. {closest(name, COMMANDS)}"
        if "--json" in rest:
            _print_error("UsageError", message, "`jaxinterp --help` lists the commands.")
        print(f"jaxinterp: {message}", file=sys.stderr)
        return USAGE
    command = load_command(name)
    return _run(name, command, _parse(name, command, rest), arguments)


def _listed(beginning: str) -> str:
    """The commands whose names begin so, a line for each."""
    lines = [f"  {name:<13}{command.summary}" for name, command in COMMANDS.items() if name.startswith(beginning)]
    return "\n".join(lines)


def _version() -> str:
    import platform

    import jax

    return f"jaxinterp {jaxinterp.__version__} (jax {jax.__version__}, Python {platform.python_version()})"


def _parse(name: str, command: Command, rest: list[str]) -> Any:
    import tyro

    printed, as_json = io.StringIO(), "--json" in rest
    prog = " ".join(filter(None, ("jaxinterp", name, command.chosen(rest))))
    try:
        with contextlib.redirect_stderr(printed) if as_json else contextlib.nullcontext():
            return tyro.cli(
                command.options if isinstance(command.options, type) else command.options(rest),
                prog=prog,
                description=command.description,
                args=rest,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        advice = command.advice(rest) if stop.code else ""
        if stop.code and as_json:
            _print_error("UsageError", unboxed(printed.getvalue()), advice or f"`{prog} --help` explains every option.")
        print(printed.getvalue(), advice, sep="", end="\n" if advice else "", file=sys.stderr)
        raise


def _print_error(kind: str, message: str, hint: str) -> None:
    print(json.dumps({"error": {"type": kind, "message": message, "hint": hint}}, ensure_ascii=False))


def _run(name: str, command: Command, options: Any, arguments: list[str]) -> int:
    from jaxinterp.cli._cache import keep_compiled_programs
    from jaxinterp.cli._options import HintedError
    from jaxinterp.cli._output import Output, command_line

    output = Output(as_json=options.output.json)
    keep_compiled_programs()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: output.note(f"warning: {message}")
            result = command.run(options, output, command_line(arguments))
    except HintedError as wrapped:
        output.error(type(wrapped.error).__name__, as_options(str(wrapped.error)), wrapped.hint)
        return MISTAKE
    except JaxinterpError as error:
        output.error(type(error).__name__, as_options(str(error)), _hint(name, error))
        return MISTAKE
    except BrokenPipeError:
        raise
    except OSError as error:
        output.error(type(error).__name__, str(error), "Check the path, its permissions and the free space.")
        return MISTAKE
    except Exception as error:
        _fault(output, error)
        return FAULT
    if output.as_json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    sys.stdout.flush()
    return OK


def _hint(name: str, error: JaxinterpError) -> str:
    if isinstance(error, UnvisitedSiteError | SiteIndexError | SiteTypeError):
        return "`jaxinterp sites --model MODEL` lists every site with its axes and shape."
    if isinstance(error, SaveError) and name == "sae convert" and "is not empty" in str(error):
        return "--overwrite replaces OUT, if it holds a dictionary and nothing else."
    if isinstance(error, TokenError) and name == "patch":
        return "Mind the space before a word (--correct ' She'); `jaxinterp predict` shows how a prompt is cut into tokens."
    return f"`jaxinterp {name} --help` explains every option."


def _fault(output: Any, error: Exception) -> None:
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    output.error(
        type(error).__name__, f"{error}".splitlines()[0] if str(error) else "",
        "This is a fault of jaxinterp, not yours. Please report it with the lines above and `jaxinterp --version`.",
    )  # fmt: skip
