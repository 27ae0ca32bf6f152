"""The checkpoints of a run: one folder a step, written in the background, the oldest deleted."""

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jaxinterp._errors import InputError, MissingFileError, SaveError, WeightsError
from jaxinterp._typing import PyTree
from jaxinterp.store._trees import ARRAYS, FORMAT, reason_of, rebuilt, taken_apart

LEAVES = "tree"
BIN = ".deleted"
"""Where a checkpoint is moved, in one rename, before it is deleted: a kill amid the deletion leaves no half under its step."""


class Checkpoints:
    """A folder of checkpoints of one pytree, by step.

    A checkpoint is under the number of its step whole or not at all, whenever the process is killed. Saving returns once the
    arrays are copied; they are written while the next steps are computed. With several processes all of them call the same
    methods in the same order, on a folder that all can reach.

    Args:
        folder: where; made if need be.
        keep: how many are kept, the newest; None: all.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with Checkpoints(tempfile.mkdtemp(), keep=2) as checkpoints:
        ...     for step in range(4):
        ...         checkpoints.save(step, {"w": jnp.full(2, step), "name": "a"})
        ...     checkpoints.wait()
        ...     checkpoints.steps, checkpoints.restore({"w": jnp.zeros(2, jnp.int32), "name": ""})
        ([2, 3], {'name': 'a', 'w': Array([3, 3], dtype=int32)})
    """

    def __init__(self, folder: str | Path, *, keep: int | None = None):
        import orbax.checkpoint as ocp

        if keep is not None and keep < 1:
            raise InputError(f"keep={keep}: at least 1 checkpoint is kept; None keeps all.")
        self.folder = Path(folder).expanduser().absolute()
        self._writes = False
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, todelete_subdir=BIN)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise SaveError(
                f"Checkpoints cannot be kept in {self.folder}: {reason_of(error)}. Choose another folder."
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps of which there is a whole checkpoint, rising."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: PyTree) -> None:
        """Copies a tree and begins to write it; a checkpoint of the same step is kept as it is.

        Args:
            step: its number.
            tree: leaves as `save_tree` takes them.

        Raises:
            InputError: leaves that cannot be written.
            SaveError: this or the checkpoint before could not be written; those that are there stay.
        """
        import orbax.checkpoint as ocp

        self._writes = jax.process_index() == 0
        self.wait()
        records, arrays = taken_apart(tree)
        content = {"format": FORMAT, "leaves": records}
        try:
            if step in self._manager.all_steps():
                return
            self._manager.save(
                step,
                args=ocp.args.Composite(**{ARRAYS: ocp.args.PyTreeSave(arrays), LEAVES: ocp.args.JsonSave(content)}),
            )
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
            SaveError: something could not be written; earlier checkpoints stay.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if self._writes and (self.folder / BIN).is_dir():  # who only reads must not disturb one that writes
                shutil.rmtree(self.folder / BIN)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def restore(self, like: PyTree, step: int | None = None, *, partial: bool = False) -> PyTree:
        """Reads a checkpoint.

        Args:
            like: a tree whose leaves say what comes back, as of `load_tree`.
            step: which; None: the newest.
            partial: whether the checkpoint may hold more than `like`; the rest is not read.

        Raises:
            MissingFileError: there is none.
            WeightsError: it is broken.
            StoreMismatchError: it holds another tree.
        """
        steps = self.steps
        step = step if step is not None else steps[-1] if steps else None
        if step is None or step not in steps:
            raise MissingFileError(
                f"{self.folder} has no checkpoint{'' if step is None else f' of step {step}'}; there are those of steps {steps}."
            )
        return rebuilt(self.folder / str(step), self.records(step), like, partial=partial)

    def records(self, step: int) -> list[dict[str, Any]]:
        """What the leaves of a checkpoint are: its "path" and "type", and the "value" of one that is no array."""
        file = self.folder / str(step) / LEAVES / "metadata"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, and {FORMAT!r} is read")
            return content["leaves"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{file} cannot be read ({error}). Delete {self.folder / str(step)} to go on from an earlier checkpoint."
            ) from error

    def _failed(self, error: Exception) -> SaveError:
        return SaveError(
            f"A checkpoint could not be written to {self.folder}: {reason_of(error)}. Nothing half-written stays under a step's "
            f"name; there are whole checkpoints of steps {self.steps}. Free some space, or choose another folder, and run the "
            "same call again."
        )
