"""The loop over a training step."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import PRNGKeyArray, PyTree
from jaxinterp.training._step import TrainState


def fit(
    step: Callable[[TrainState, PyTree, PRNGKeyArray], tuple[TrainState, dict[str, Any]]],
    state: TrainState,
    batches: Iterable[PyTree],
    *,
    key: PRNGKeyArray,
    every: int = 100,
    report: Callable[[TrainState, dict[str, int | float]], None] | None = None,
) -> tuple[TrainState, list[dict[str, int | float]]]:
    """Takes one step for each batch.

    Args:
        step: made by `train_step`, not jitted.
        state: made by `init_state`, or where an earlier run stopped. It stays usable.
        batches: an iterable of pytrees of equal shapes; the loop ends with it.
        key: the key of the whole run.
        every: how many steps one row of the history covers.
        report: called with the state and the newest row, after each `every` steps and at the end. What it adds to the row
            stays in the history. The state's arrays are reused by the next step: copy what should outlive the call.

    Returns:
        The last state and the history: rows with `"step"`, `"seconds"` since the start and the means of the metrics.

    Raises:
        InputError: the loss is not finite, or `every` is below 1.
    """
    if every < 1:
        raise InputError(f"every={every}: a row of the history covers at least 1 step.")
    compiled = jax.jit(step, donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)
    start, taken = time.perf_counter(), int(state.step)
    history: list[dict[str, int | float]] = []
    pending: list[dict[str, Any]] = []

    def close_row() -> None:
        row = {name: float(np.mean([np.asarray(m[name]) for m in pending])) for name in pending[0]}
        row = {"step": taken, "seconds": time.perf_counter() - start, **row}
        if not np.isfinite(row.get("loss", 0.0)):
            raise InputError(
                f"the loss is {row['loss']} at step {taken}: lower the learning rate, or look for NaN in the batches."
            )
        pending.clear()
        history.append(row)
        if report is not None:
            report(state, row)

    for batch in batches:
        state, metrics = compiled(state, batch, key)
        pending.append(metrics)
        taken += 1
        if taken % every == 0:
            close_row()
    if pending:
        close_row()
    return state, history
