"""Training: the loop over a stream of activations."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxinterp._errors import InputError, JaxinterpError, SaveError
from jaxinterp._typing import Array, PyTree
from jaxinterp.mesh import is_writer
from jaxinterp.saes._described import described, differences
from jaxinterp.saes._metrics import Metrics, raise_in_all
from jaxinterp.saes._program import Program, make_program
from jaxinterp.saes._run_folder import CHECKPOINTS
from jaxinterp.saes._sae import SAE
from jaxinterp.saes._step import TrainState
from jaxinterp.saes._stop import Stop
from jaxinterp.saes._train_config import TrainConfig
from jaxinterp.store import Checkpoints, StoreMismatchError, locked

MAY_DIFFER = ("log_every", "checkpoint_every", "keep")


@runtime_checkable
class Stream(Protocol):
    """Batches of activations: `jaxinterp.activations` makes them from models, arrays, files and functions.

    Attributes:
        widths: the width of each site.
        batch_size: rows of a batch.
        dtype: of the rows.
        description: what it is, as JSON can hold it.
    """

    widths: dict[str, int]
    batch_size: int
    dtype: Any
    description: dict[str, Any]

    def __next__(self) -> dict[str, Array]:
        """The next batch, [B, width] of each site."""
        ...

    def documents(self) -> Any:
        """Where each row of the last batch came from: ints [B], an array that is not waited for."""
        ...

    def state(self) -> PyTree:
        """All that the next batches depend on."""
        ...

    def state_shapes(self) -> PyTree:
        """The same with a `jax.ShapeDtypeStruct` in place of each large array: what a checkpoint is read like."""
        ...

    def restore(self, state: PyTree) -> None:
        """Goes on from there."""
        ...


def train(
    config: TrainConfig,
    stream: Stream,
    *,
    mesh: Mesh | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> SAE:
    """Trains one dictionary.

    Args:
        config: what, and how.
        stream: batches of the sites that it reads and is to give; made on the same mesh, if there is one.
        mesh: with the axis `data` (rows of a batch), `dict` (latents), or both. None: the default device.
        folder: keeps `metrics.jsonl` and `checkpoints/`. The same call goes on from the newest checkpoint there, to the bit, with
            a stream made in the same way. SIGTERM and Ctrl-C save first. None: nothing is kept.
        progress: whether the terminal shows how it goes.

    Returns:
        The dictionary.

    Raises:
        InputError: the stream has not the sites, widths or rows that the config needs, or it ran dry; the mesh does not fit; the
            loss or a row is not finite.
        StoreMismatchError: the folder holds a run of another config or stream; the message tells the difference.
        SaveError: a checkpoint could not be written; earlier ones stay.
    """
    return _run([config], stream, mesh=mesh, folder=folder, progress=progress, stacked=False)[0]


def train_ensemble(
    configs: Sequence[TrainConfig],
    stream: Stream,
    *,
    mesh: Mesh | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> list[SAE]:
    """Trains several dictionaries on one stream, as one program: each is what `train` would give it on the same batches.

    Args:
        configs: of one shape and kind; they may differ in seed, learning rate, sparsity (the coefficient or k) and site.
        stream: batches of all their sites.
        mesh, folder, progress: as of `train`.

    Returns:
        The dictionaries, in the order of `configs`.

    Raises:
        ConfigError: the configs differ in what one program cannot vary.
        InputError, StoreMismatchError, SaveError: as of `train`.
    """
    return _run(configs, stream, mesh=mesh, folder=folder, progress=progress, stacked=True)


def _run(
    configs: Sequence[TrainConfig],
    stream: Stream,
    *,
    mesh: Mesh | None,
    folder: str | Path | None,
    progress: bool,
    stacked: bool,
) -> list[SAE]:
    program = make_program(configs, mesh, stacked=stacked)
    config = configs[0]
    _check_stream(program, stream)
    path = None if folder is None else Path(folder).expanduser().absolute()
    with contextlib.ExitStack() as stack:
        checkpoints, state, taken = None, None, 0
        if path is not None:
            _lock(stack, path)
            checkpoints = stack.enter_context(Checkpoints(path / CHECKPOINTS, keep=config.keep))
            state, taken = _resumed(program, stream, checkpoints)
        sites = [(member.sae.site, member.sae.target_site) for member in program.members]
        metrics = stack.enter_context(
            Metrics(
                None if path is None else path / "metrics.jsonl", steps=config.steps, taken=taken,
                batch_size=stream.batch_size, progress=progress, sites=sites,
            )
        )  # fmt: skip
        stop = stack.enter_context(Stop(active=path is not None, taken=taken))
        return program.dictionaries(_trained(program, stream, state, taken, checkpoints, metrics, stop))


def _trained(
    program: Program,
    stream: Stream,
    state: TrainState | None,
    taken: int,
    checkpoints: Checkpoints | None,
    metrics: Metrics,
    stop: Stop,
) -> TrainState:
    """The state behind the last step, from the one behind `taken` steps."""
    config = program.members[0]

    def keep() -> None:
        if checkpoints is not None and state is not None and taken not in checkpoints.steps:
            checkpoints.save(taken, _kept(program, stream, state))

    while taken < config.steps:
        try:
            rows = _next_rows(program, stream, taken)
        except JaxinterpError:  # in all processes; what was trained until here is not lost with the stream
            failed = metrics.close_row()
            keep()
            if failed:
                raise InputError(failed) from None
            raise
        if state is None:
            _check_first(program, metrics, rows, stream)
            state = program.first(*rows)
        elif config.resample_steps and taken % config.resample_steps == 0 and taken <= 0.75 * config.steps:
            state = program.resample(state, *rows)
        state, newest = program.step(state, *rows)
        metrics.add(newest, stream.documents())
        taken += 1
        closes = taken % config.log_every == 0 or taken == config.steps
        asked = stop.agreed(taken) if closes or stop.due(taken) else stop.asked and jax.process_count() == 1
        saves = taken == config.steps or bool(config.checkpoint_every and taken % config.checkpoint_every == 0)
        if not (closes or saves or asked):
            continue
        failed = metrics.close_row()
        if saves or asked or failed:
            keep()
        if failed:
            raise InputError(failed)
        if asked:
            if checkpoints is not None:
                checkpoints.wait()
            stop.act()
    assert state is not None
    return state


def _lock(stack: contextlib.ExitStack, folder: Path) -> None:
    """Locks the folder of a run for as long as the stack is entered; where it is taken, all processes say so."""
    taken = ""
    if is_writer():
        try:
            stack.enter_context(locked(folder, "A training run"))
        except SaveError as error:
            taken = str(error)
    raise_in_all(taken)


def _check_first(program: Program, metrics: Metrics, rows: tuple[Array, Array], stream: Stream) -> None:
    """Raises if the batch that the first parameters are made from is not finite."""
    bad = np.asarray(program.bad_rows(*rows))
    if (bad >= 0).any():
        raise InputError(metrics.not_finite(1, {"bad_rows": bad}, stream.documents()))


def _check_stream(program: Program, stream: Stream) -> None:
    """Raises unless the stream has what the members read and are to give."""
    faults = []
    for sae in dict.fromkeys(member.sae for member in program.members):
        for site, width in ((sae.site, sae.d_in), (sae.target_site, sae.width_out)):
            if stream.widths.get(site) != width:
                there = ", ".join(f"{name!r} ({n} wide)" for name, n in sorted(stream.widths.items()))
                faults.append(f"{site!r}, {width} wide, is not in it; it has {there}")
    if faults:
        raise InputError(
            "The stream does not fit the dictionary: "
            + "; ".join(dict.fromkeys(faults))
            + ". Set SAEConfig.site, d_in, target and "
            "d_out to what the stream has, or make the stream with these sites."
        )
    if not jnp.issubdtype(stream.dtype, jnp.floating):
        raise InputError(
            f"The stream has {stream.dtype}, and activations are floating-point numbers: float32 or bfloat16."
        )
    parts = 1 if program.layout.mesh is None else program.layout.mesh.shape.get("data", 1)
    size = parts * program.members[0].accumulation
    if stream.batch_size % size:
        raise InputError(
            f"batch_size={stream.batch_size} cannot be cut into {size} equal parts (data={parts} on the mesh, "
            f"accumulation={program.members[0].accumulation}). Make the stream with a multiple of {size}."
        )


def _next_rows(program: Program, stream: Stream, taken: int) -> tuple[Array, Array]:
    """The next inputs and targets, where the program has them."""
    try:
        batch = next(stream)
    except StopIteration:
        raise InputError(
            f"The stream ran dry after {taken} of {program.members[0].steps} steps ({taken * stream.batch_size} rows). Make it "
            f"with more epochs (epochs=None goes on for ever): a run that keeps a folder then goes on from there. Or train fewer "
            f"steps, or on more text, which is another run and needs another folder."
        ) from None
    saes = [member.sae for member in program.members] if program.layout.own_rows else [program.members[0].sae]
    rows = [[batch[site] for site in sites] for sites in ([s.site for s in saes], [s.target_site for s in saes])]
    x, target = (jnp.stack(r) if program.layout.own_rows else r[0] for r in rows)
    if program.layout.mesh is None:
        return x, target
    where = NamedSharding(program.layout.mesh, program.layout.rows())
    return jax.device_put(x, where), jax.device_put(target, where)


def _kept(program: Program, stream: Stream, state: TrainState) -> dict[str, PyTree]:
    """All that a run needs to go on."""
    return {"run": _told(program, stream), "state": state, "stream": stream.state()}


def _told(program: Program, stream: Stream) -> str:
    """The run, as text: two of one text are one run."""
    members = [described(member) for member in program.members]
    members = [{name: value for name, value in member.items() if name not in MAY_DIFFER} for member in members]
    return json.dumps({"members": members, "stream": stream.description}, sort_keys=True)


def _resumed(program: Program, stream: Stream, checkpoints: Checkpoints) -> tuple[TrainState | None, int]:
    """The newest checkpoint's state and step, with the stream put where it was; or nothing."""
    if not checkpoints.steps:
        return None, 0
    step = checkpoints.steps[-1]
    there = {record["path"]: record.get("value") for record in checkpoints.records(step)}.get("['run']")
    old, new = json.loads(there or "{}"), json.loads(_told(program, stream))
    lines = differences(_by_member(_without_epochs(old)), _by_member(_without_epochs(new)))
    if lines:
        raise StoreMismatchError(
            f"{checkpoints.folder} holds another run than this one:\n  "
            + "\n  ".join(lines)
            + "\nGive the same config and a stream "
            "made in the same way to go on with it, or another folder to begin anew."
        )
    sae = program.members[0].sae
    lead = (len(program.members),) if program.layout.own_rows else ()
    row = lambda width: jax.ShapeDtypeStruct((*lead, stream.batch_size, width), stream.dtype)
    like = {"run": "", "state": program.shapes(row(sae.d_in), row(sae.width_out)), "stream": stream.state_shapes()}
    kept = checkpoints.restore(like, step)
    stream.restore(kept["stream"])
    return kept["state"], step


def _without_epochs(told: Any) -> Any:
    """A description without how often the tokens are read, which may grow."""
    if not isinstance(told, dict):
        return told
    return {name: _without_epochs(value) for name, value in told.items() if name != "epochs"}


def _by_member(told: dict[str, Any]) -> dict[str, Any]:
    """Members as a dictionary, so that differences name them."""
    members = {f"member {i}": member for i, member in enumerate(told.get("members", []))}
    members = members if len(members) != 1 else members["member 0"]
    return {**members, "stream": told.get("stream")}
