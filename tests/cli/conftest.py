"""A command run in this process: exit code, and what it printed on both streams."""

import json
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self):
        """The one JSON object on the output stream."""
        return json.loads(self.out)


@pytest.fixture
def cli(capsys, monkeypatch) -> Callable[..., Done]:
    """`cli("predict", "Once", ...)`, 200 columns wide, without the compilation cache on disk."""
    import jaxinterp.cli
    import jaxinterp.cli._cache

    monkeypatch.setattr(jaxinterp.cli._cache, "keep_compiled_programs", lambda: None)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Done:
        code = jaxinterp.cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


@pytest.fixture
def refused(cli):
    """Runs a command that must be refused; returns its message."""

    def run(*arguments, code=1):
        done = cli(*arguments)
        assert done.code == code, (done.out, done.err)
        assert "Traceback" not in done.err and done.err.startswith("error: ") and "\nhint: " in done.err
        return done.err

    return run


@pytest.fixture
def stories(shared):
    """The folder of a real trained model."""
    return shared / "stories260k"


PAIR = (
    "--clean",
    "One day, Lily had an idea.",
    "--corrupt",
    "One day, Tim had an idea.",
    "--correct",
    " She",
    "--wrong",
    " He",
)


@pytest.fixture
def pair() -> tuple[str, ...]:
    """One prompt pair as options."""
    return PAIR
