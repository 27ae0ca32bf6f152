"""What a command prints: for a person on a terminal, or one JSON object for a machine."""

import contextlib
import json
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SECONDS_BETWEEN_LINES = 30.0
"""Outside a terminal, a line on the error stream says so often how far a long command is."""


class Output:
    """Text and tables on the output stream, progress and errors on the error stream.

    With `as_json` nothing but one JSON object goes to the output stream: the result, or {"error": ...}.
    """

    def __init__(self, *, as_json: bool):
        from rich.console import Console

        self.as_json = as_json
        plain: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False, "soft_wrap": True}
        self.console = Console(quiet=as_json, **plain)
        self.errors = Console(stderr=True, **plain)
        for console in (self.console, self.errors):
            console.on_broken_pipe = _pass_on  # type: ignore[method-assign]

    def line(self, text: str = "", style: str | None = None) -> None:
        """A line for a person."""
        self.console.print(text, style=style)

    def heading(self, text: str) -> None:
        """A heading for a person."""
        self.console.print()
        self.console.print(text, style="bold")

    def paragraph(self, text: str, style: str | None = None) -> None:
        """Text that is wrapped to the terminal, at most 100 columns."""
        self.console.print(text, style=style, width=min(self.console.width, 100), soft_wrap=False)

    def text(self, text: str) -> None:
        """What a model wrote: wrapped on a terminal, elsewhere character by character as it is."""
        if self.console.is_terminal:
            self.paragraph(text)
        elif not self.as_json:
            print(text, file=self.console.file)

    def continuation(self, text: str, more: str, label: str = "") -> None:
        """A prompt and, set apart, what a model makes of it."""
        from rich.text import Text

        whole = Text(f"{label}\n" if label else "", style="dim")
        whole.append(text, style="not dim")
        whole.append(more.replace("\n", " "), style="not dim bold cyan")
        self.console.print(whole, width=min(self.console.width, 100), soft_wrap=False)

    def step(self, text: str) -> None:
        """What is being done, on the error stream."""
        if not self.as_json:
            self.errors.print(text, style="dim")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> None:
        """A table; the columns in `left` are aligned to the left, the others to the right."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        for i, name in enumerate(columns):
            table.add_column(name, justify="left" if i in left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    def note(self, text: str) -> None:
        """A line beside the result, on the error stream."""
        self.errors.print(text, style="yellow")

    def error(self, kind: str, message: str, hint: str) -> None:
        """An error with what to do about it."""
        if self.as_json:
            print(json.dumps({"error": {"type": kind, "message": message, "hint": hint}}, ensure_ascii=False))
        self.errors.print(f"error: {message}", style="bold red")
        self.errors.print(f"hint: {hint}", style="dim")

    @contextlib.contextmanager
    def busy(self, text: str) -> Iterator[Callable[[float], None]]:
        """Says what is being done; what it yields is told now and then which share is done.

        On a terminal the line stays and changes; elsewhere one is printed every 30 seconds; with `as_json` none is.
        """
        if self.as_json or not self.errors.is_terminal:
            yield self.now_and_then(lambda share: f"{text}: {share:.0%}")
            return
        with self.errors.status(text, spinner="dots") as status:
            yield lambda share: status.update(f"{text}: {share:.0%}")

    def now_and_then(self, words: Callable[[Any], str]) -> Callable[[Any], None]:
        """A function that prints `words` of what it is given, at most every 30 seconds."""
        last = time.monotonic()

        def tell(value: Any) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.step(words(value))

        return tell

    @property
    def bars(self) -> bool:
        """Whether progress bars are shown."""
        return not self.as_json and self.errors.is_terminal


def _pass_on() -> None:
    """Rich would end the process with 1 where the reader of the output goes away; `main` knows better."""
    raise BrokenPipeError


def command_line(arguments: Sequence[str]) -> str:
    """The command as one would type it again."""
    return shlex.join(["jaxinterp", *arguments])


def number_or_none(value: float) -> float | None:
    """A number as JSON has it: what is not finite becomes null."""
    return float(value) if math.isfinite(value) else None
