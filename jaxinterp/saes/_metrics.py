"""What a run tells while it runs: rows of metrics in a file, and a line in the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp._errors import SaveError
from jaxinterp._processes import from_all
from jaxinterp._typing import Array
from jaxinterp.mesh import fetch, is_writer
from jaxinterp.store import atomic_file

Row = dict[str, Any]


class Metrics:
    """Gathers the metrics of steps, as arrays on devices, and closes a row of their means when asked.

    Args:
        file: gets one line of JSON for each row; lines of steps after `taken` are dropped first. None: none is written.
        steps: how many steps the run has.
        taken: how many were taken before.
        batch_size: rows of a step.
        progress: whether the terminal shows steps, time left, loss, L0 and dead share.
        sites: of each member, what it reads and is to give, for messages.

    Raises:
        SaveError: the file cannot be written.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        steps: int,
        taken: int,
        batch_size: int,
        progress: bool,
        sites: Sequence[tuple[str, str]],
    ):
        self._file = file if is_writer() else None
        self._steps, self._taken, self._batch_size, self._sites = steps, taken, batch_size, sites
        self._pending: list[tuple[dict[str, Array], Any]] = []
        self._start, self._bar, self._failed = time.perf_counter(), None, ""
        self.rows: list[Row] = []
        if self._file is not None:
            self.rows = (
                [row for row in read_metrics(self._file) if row["step"] <= taken] if self._file.is_file() else []
            )
            try:
                with atomic_file(self._file) as partial:
                    partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
            except SaveError as error:
                self._failed = str(error)
        raise_in_all(self._failed)
        if progress and is_writer():
            self._bar = _Bar(steps, taken)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, metrics: dict[str, Array], documents: Any) -> None:
        """Notes one step; `documents` [B] tell where its rows come from."""
        self._pending.append((metrics, documents))

    def close_row(self) -> str:
        """The means of the steps since the last row become a row; waits for the devices.

        Returns:
            What was wrong, if a step was not finite (its update was left out, so the state is good); else nothing.
        """
        steps = jax.device_get([metrics for metrics, _ in self._pending])
        documents = [documents for _, documents in self._pending]
        self._pending = []
        first, self._taken = self._taken + 1, self._taken + len(steps)
        good = next(
            (i for i, one in enumerate(steps) if not one["finite"].all() or (one["bad_rows"] >= 0).any()), len(steps)
        )
        if good:
            self._write(steps[:good], first + good - 1)
        raise_in_all(self._failed)
        return "" if good == len(steps) else self.not_finite(first + good, steps[good], documents[good])

    def _write(self, steps: list[dict[str, Any]], last: int) -> None:
        """One row of some steps, of which this was the last."""
        row: Row = {"step": last, "rows": last * self._batch_size}
        row["seconds"] = round(time.perf_counter() - self._start, 3)
        for name in steps[0]:
            if name not in ("finite", "bad_rows"):
                row[name] = np.mean([metrics[name] for metrics in steps], axis=0).tolist()
        self.rows.append(row)
        if self._file is not None:
            try:
                with self._file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
            except OSError as error:
                self._failed = f"{self._file} cannot be written: {error.strerror}. Make room; the same call goes on."
        if self._bar is not None:
            self._bar.show(row)

    def not_finite(self, step: int, metrics: Mapping[str, Any], documents: Any) -> str:
        """What was wrong with a step whose update was left out: which row, site and document, or the loss itself."""
        left_out = "The update of that step was left out, so the state before it is kept." if step > 1 else ""
        bad = np.asarray(metrics["bad_rows"]).reshape(-1, 2)
        if (bad < 0).all():
            return (
                f"The loss of step {step} is {metrics['loss'].tolist()} (norm of the gradient "
                f"{metrics['gradient_norm'].tolist()}), of rows that are finite. {left_out} Lower the learning rate, lengthen "
                f"its warm-up, or set clip."
            )
        member, side = np.argwhere(bad >= 0)[0]
        row = int(bad[member, side])
        where = "" if documents is None else f", document {int(fetch(documents)[row])}"
        return (
            f"Row {row} of step {step} ({self._sites[member][side]}{where}) has a value that is not finite. {left_out} Look at "
            f"that document, or exclude it; float16 or bfloat16 activations may overflow."
        )


def raise_in_all(failed: str) -> None:
    """Raises in all processes what went wrong in one of them, "" where nothing did; all call it."""
    told = [text for text in from_all(failed) if text]
    if told:
        raise SaveError(told[0])


def read_metrics(file: str | Path) -> list[Row]:
    """The rows of a metrics file, in the order of their steps.

    Args:
        file: `metrics.jsonl` of a run. A last line that was cut short is left out.
    """
    rows = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class _Bar:
    """A line in the terminal."""

    def __init__(self, steps: int, taken: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._progress = Progress(
            TextColumn("{task.completed}/{task.total}"), BarColumn(bar_width=12), TimeRemainingColumn(),
            TextColumn("{task.fields[now]}", table_column=Column(no_wrap=True)), console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._progress.add_task("training", total=steps, completed=taken, now="")
        self._progress.start()

    def show(self, row: Row) -> None:
        """The newest row."""
        mean = lambda name: float(np.mean(row[name]))
        text = f"loss {mean('loss'):.4g}  FVU {mean('fvu'):.3f}  L0 {mean('l0'):.1f}  dead {mean('dead'):.1%}"
        self._progress.update(self._task, completed=row["step"], now=text)

    def stop(self) -> None:
        """Leaves the line as it is."""
        self._progress.stop()
