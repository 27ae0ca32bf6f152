"""What a result says of itself, and how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxinterp._typing import Array
from jaxinterp.patching._prepare import Prepared


def op_name(op: Any) -> str:
    """What a result calls an op: the name of its function, or of the one that a partial is of."""
    return getattr(op, "__name__", None) or getattr(getattr(op, "func", None), "__name__", repr(op))


def bos_facts(tokenizer: Any, base: Array, mask: Array | None) -> dict[str, bool]:
    """Whether the prompts begin with BOS, read off the prompts themselves."""
    bos = getattr(tokenizer, "bos_id", None)
    if bos is None:
        return {}
    first = np.zeros(len(base), int) if mask is None else np.asarray(mask).argmax(1)
    return {"prepend_bos": bool((np.asarray(base)[np.arange(len(base)), first] == bos).all())}


def token_texts(tokenizer: Any, todo: Prepared) -> list[str] | None:
    """The tokens of the longest prompt (the first of several) at the positions of the cells."""
    axes = [a for a, _ in todo.cells.axes]
    if tokenizer is None or "position" not in axes:
        return None
    labels = todo.cells.labels[axes.index("position")]
    if not all(isinstance(i, (int, np.integer)) for i in labels):
        return None
    real = np.ones(todo.base.shape, bool) if todo.mask is None else np.asarray(todo.mask)
    longest = int(real.sum(1).argmax())
    texts = tokenizer.str_tokens(np.asarray(todo.base)[longest][real[longest]].tolist())
    return [texts[i] if i < len(texts) else "" for i in labels]


@contextlib.contextmanager
def bar(total: int, site: str, progress: bool) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal's error stream; gives a function to call with the number of cells that finished."""
    if not progress:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"sweep {site}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("sweep", total=total)
        yield lambda n: shown.advance(task, n)
