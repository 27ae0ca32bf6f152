"""The dictionaries of a run as its newest checkpoint has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp._errors import MissingFileError
from jaxinterp.saes._described import config_from
from jaxinterp.saes._program import make_program
from jaxinterp.saes._sae import SAE
from jaxinterp.saes._step import TrainState
from jaxinterp.saes._train_config import TrainConfig
from jaxinterp.store import Checkpoints

CHECKPOINTS = "checkpoints"


def load_run(folder: str | Path, *, step: int | None = None) -> list[SAE]:
    """The dictionaries of a run that is still going, was interrupted, or failed.

    Args:
        folder: as given to `train` or `train_ensemble`.
        step: of which checkpoint; None: the newest.

    Returns:
        The dictionaries as they were then, in the order of the configs, on the default device.

    Raises:
        MissingFileError: no run, or no checkpoint yet.
        WeightsError: the checkpoint is broken.

    Example:
        >>> import tempfile
        >>> from jaxinterp import activations, saes
        >>> rows = activations.from_arrays({"x": jax.random.normal(jax.random.key(0), (64, 4))}, batch_size=32,
        ...     key=jax.random.key(1))
        >>> config = saes.TrainConfig(sae=saes.SAEConfig(architecture=saes.TopK(k=2), d_in=4, n_latents=8), steps=2,
        ...     learning_rate=1e-3)
        >>> folder = tempfile.mkdtemp()
        >>> trained = saes.train(config, rows, folder=folder, progress=False)
        >>> bool((load_run(folder)[0].params["W_dec"] == trained.params["W_dec"]).all())
        True
    """
    path = Path(folder).expanduser().absolute()
    if not (path / CHECKPOINTS).is_dir():
        raise MissingFileError(
            f"{path} holds no run: there is no {CHECKPOINTS}. Give the folder that `train` was given."
        )
    with Checkpoints(path / CHECKPOINTS) as checkpoints:
        steps = checkpoints.steps
        if not steps:
            raise MissingFileError(f"{path / CHECKPOINTS} holds no checkpoint yet: wait, or set checkpoint_every.")
        newest = steps[-1] if step is None else step
        told = json.loads(checkpoints.restore({"run": ""}, newest, partial=True)["run"])
        types = {record["path"]: record["type"] for record in checkpoints.records(newest)}
        members = [_config_from(member) for member in told["members"]]
        program = make_program(members, stacked=types["['state'].step"] != "int32[]")
        state = checkpoints.restore({"state": _like(program, members)}, newest, partial=True)["state"]
    return program.dictionaries(state)


def _config_from(told: dict[str, Any]) -> TrainConfig:
    return TrainConfig(**{**told, "sae": config_from(told["sae"])})


def _like(program: Any, members: list[TrainConfig]) -> TrainState:
    """A state's parameters and scales as shapes; the rest of it is not read."""
    sae, lead = members[0].sae, (len(members),) if program.layout.own_rows else ()
    row = lambda width: jax.ShapeDtypeStruct((*lead, 64, width), jnp.float32)
    shapes = program.shapes(row(sae.d_in), row(sae.width_out))
    return TrainState(params=shapes.params, optimizer=None, idle=None, step=None, scales=shapes.scales)
