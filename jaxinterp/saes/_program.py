"""The compiled functions of a run, on one device or cut over a mesh: first state, step, resampling."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, PyTree
from jaxinterp.saes._axes import Axes
from jaxinterp.saes._members import common, hypers
from jaxinterp.saes._normalize import measured_scale, normalized
from jaxinterp.saes._resample import resampled
from jaxinterp.saes._sae import SAE
from jaxinterp.saes._step import Hyper, TrainState, first_bad_row, is_cut, make_step
from jaxinterp.saes._train_config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How arrays lie: where, and with which leading axes. It and a config decide what is compiled.

    Attributes:
        mesh: with axes named `data`, `dict` or both; None: the default device.
        stacked: whether parameters have a leading axis of members.
        own_rows: whether rows have one too, since members read other sites.
    """

    mesh: Mesh | None
    stacked: bool
    own_rows: bool

    @property
    def axes(self) -> Axes:
        """The axes that the mesh has."""
        there = () if self.mesh is None else self.mesh.axis_names
        return Axes(data="data" if "data" in there else None, dict="dict" if "dict" in there else None)

    def rows(self) -> PartitionSpec:
        """How rows are cut: over `data`."""
        lead = (None,) if self.own_rows else ()
        return PartitionSpec(*lead, self.axes.data)

    def state(self, state: TrainState) -> PyTree:
        """How each array of a state is cut: those of latents over `dict`, all else whole."""
        lead = (None,) if self.stacked else ()

        def of(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
            last = path[-1]
            name = last.key if isinstance(last, jax.tree_util.DictKey) else getattr(last, "name", "")
            rank = len(leaf.shape) - len(lead)
            cut = name not in ("step", "count", "input", "target") and is_cut(name, rank)
            return PartitionSpec(*lead, self.axes.dict) if cut and self.axes.dict else PartitionSpec()

        return jax.tree_util.tree_map_with_path(of, state)

    def placed(self, tree: PyTree, specs: PyTree) -> PyTree:
        """The shardings of some specs; None without a mesh."""
        if self.mesh is None:
            return None
        mesh = self.mesh
        return jax.tree.map(
            lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda s: isinstance(s, PartitionSpec)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One dictionary, or several in one program.

    Attributes:
        members: the config of each.
        layout: where they are.
    """

    members: tuple[TrainConfig, ...]
    layout: Layout

    @functools.cached_property
    def config(self) -> TrainConfig:
        """What is compiled for all members; without what is data."""
        config = common(self.members)
        return dataclasses.replace(config, seed=0, learning_rate=1.0, log_every=1, checkpoint_every=0, keep=1)

    def first(self, x: Array, target: Array) -> TrainState:
        """The state before the first step, from the first batch: [B, D], or [members, B, D] where each has its own rows."""
        return _first(self.config, self.layout)(self._keys, self._hyper.k, x, target)

    def bad_rows(self, x: Array, target: Array) -> Array:
        """The first row of the inputs and of the targets that is not finite, or -1: [2], or [members, 2] with own rows."""
        return _bad_rows(self.layout)(x, target)

    def shapes(self, x: jax.ShapeDtypeStruct, target: jax.ShapeDtypeStruct) -> TrainState:
        """A state's shapes and shardings, from those of a batch; nothing is computed."""
        shapes = jax.eval_shape(self.first, x, target)
        where = self.layout.placed(shapes, self.layout.state(shapes))
        if where is None:
            return shapes
        return jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, where)

    def step(self, state: TrainState, x: Array, target: Array) -> tuple[TrainState, dict[str, Array]]:
        """One step; `state` is used up."""
        return _step(self.config, self.layout)(state, x, target, self._hyper)

    def compiled_first(self, x: Any, target: Any) -> Any:
        """The compiled program of the first state (a `jax.stages.Compiled`); arrays may be shapes."""
        return _first(self.config, self.layout).lower(self._keys, self._hyper.k, x, target).compile()

    def compiled(self, state: TrainState, x: Any, target: Any) -> Any:
        """The compiled program of a step; arrays may be shapes."""
        return _step(self.config, self.layout).lower(state, x, target, self._hyper).compile()

    def resample(self, state: TrainState, x: Array, target: Array) -> TrainState:
        """Dead latents given new directions; `state` is used up."""
        return _resample(self.config, self.layout)(state, x, target, self._keys)

    def dictionaries(self, state: TrainState) -> list[SAE]:
        """What was trained, one dictionary for each member."""
        trees = [(state.params, state.scales)]
        if self.layout.stacked:
            trees = [jax.tree.map(lambda leaf, i=i: leaf[i], trees[0]) for i in range(len(self.members))]
        return [
            SAE(params=params, scales=scales, config=member.sae)
            for (params, scales), member in zip(trees, self.members, strict=True)
        ]

    @functools.cached_property
    def _hyper(self) -> Hyper:
        each = hypers(self.members)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) if self.layout.stacked else each[0]

    @functools.cached_property
    def _keys(self) -> Array:
        keys = [jax.random.key(member.seed) for member in self.members]
        return jnp.stack(keys) if self.layout.stacked else keys[0]


def make_program(members: Sequence[TrainConfig], mesh: Mesh | None = None, *, stacked: bool = False) -> Program:
    """The functions beneath `train`: for a loop of one's own.

    Args:
        members: the config, or several with `stacked`.
        mesh: as of `train`.
        stacked: whether arrays have a leading axis of members, as in `train_ensemble`.

    Example:
        >>> from jaxinterp.saes import ReLU, SAEConfig
        >>> sae = SAEConfig(architecture=ReLU(), d_in=2, n_latents=4)
        >>> program = make_program([TrainConfig(sae=sae, steps=1, learning_rate=1e-3)])
        >>> x = jnp.ones((3, 2))
        >>> state, metrics = program.step(program.first(x, x), x, x)
        >>> program.dictionaries(state)[0].params["W_enc"].shape
        (4, 2)

    Raises:
        ConfigError: members differ in what one program cannot vary.
        InputError: the mesh has other axes, or one that does not divide the latents.
    """
    config = common(members)
    if mesh is not None:
        sizes = dict(mesh.shape)
        others = sorted(set(sizes) - {"data", "dict"})
        n, parts = config.sae.n_latents, sizes.get("dict", 1)
        if others or n % parts:
            fault = f"axes {', '.join(others)}" if others else f"n_latents={n} is not a multiple of dict={parts}"
            raise InputError(
                f"The mesh {sizes} does not fit a dictionary of {n} latents: {fault}. Legal are the axes `data` (rows of a "
                f"batch) and `dict` (latents), for example jaxinterp.mesh.make_mesh(data=-1, dict={math.gcd(n, 2)})."
            )
    sites = {(member.sae.site, member.sae.target) for member in members}
    layout = Layout(mesh=mesh, stacked=stacked, own_rows=stacked and len(sites) > 1)
    return Program(members=tuple(members), layout=layout)


@functools.lru_cache(maxsize=32)
def _first(config: TrainConfig, layout: Layout) -> Any:
    """`(keys, k, x, target) -> state`, jitted."""
    sae = config.sae

    def one(key: Array, k: Array | None, x: Array, target: Array) -> TrainState:
        scales = {"input": measured_scale(x, sae.normalize), "target": measured_scale(target, sae.normalize)}
        rows = normalized(target, scales["target"], sae.normalize)[0]
        params = sae.architecture.init(key, sae, rows, k)
        zero = jnp.zeros((), jnp.int32)
        idle = jnp.zeros(sae.n_latents, jnp.int32)
        return TrainState(params=params, optimizer=config.optimizer().init(params), idle=idle, step=zero, scales=scales)

    made = _over_members(one, layout, (True, True, layout.own_rows, layout.own_rows))

    def placed(*args: Any) -> TrainState:
        state = made(*args)
        where = layout.placed(state, layout.state(state))
        return state if where is None else jax.lax.with_sharding_constraint(state, where)

    return jax.jit(placed)


@functools.lru_cache(maxsize=32)
def _bad_rows(layout: Layout) -> Callable[..., Array]:
    one = lambda x, target: jnp.stack([first_bad_row(x), first_bad_row(target)])
    return jax.jit(jax.vmap(one) if layout.own_rows else one, out_shardings=layout.placed(None, PartitionSpec()))


@functools.lru_cache(maxsize=32)
def _step(config: TrainConfig, layout: Layout) -> Any:
    """`(state, x, target, hyper) -> (state, metrics)`, jitted; the state is donated."""
    axes = layout.axes
    step = _over_members(make_step(config, axes), layout, (True, layout.own_rows, layout.own_rows, True))
    if layout.mesh is None:
        return jax.jit(step, donate_argnums=0)

    def cut(state: TrainState, x: Array, target: Array, hyper: PyTree) -> tuple[TrainState, dict[str, Array]]:
        specs, rows, whole = layout.state(state), layout.rows(), PartitionSpec()
        return jax.shard_map(
            step, mesh=layout.mesh, in_specs=(specs, rows, rows, whole), out_specs=(specs, whole)
        )(state, x, target, hyper)  # fmt: skip

    return jax.jit(cut, donate_argnums=0)


@functools.lru_cache(maxsize=32)
def _resample(config: TrainConfig, layout: Layout) -> Callable[..., TrainState]:
    one = functools.partial(resampled, config)
    return jax.jit(_over_members(one, layout, (True, layout.own_rows, layout.own_rows, True)), donate_argnums=0)


def _over_members(fn: Callable[..., Any], layout: Layout, mapped: tuple[bool, ...]) -> Callable[..., Any]:
    """`fn` for each member, where there are several; `mapped` tells which arguments have an axis of members.

    Side by side where a device has the width for it. A CPU takes them in turn, inside of one program: batched gathers and
    scatters cost it twice as much, and AuxK could not be left out while no latent is dead.
    """
    if not layout.stacked:
        return fn
    if _platform(layout) != "cpu":
        return jax.vmap(fn, in_axes=tuple(0 if m else None for m in mapped))

    def in_turn(*args: Any) -> Any:
        own = [arg for arg, m in zip(args, mapped, strict=True) if m]

        def one(mine: list[Any]) -> Any:
            rest = iter(mine)
            return fn(*(next(rest) if m else arg for arg, m in zip(args, mapped, strict=True)))

        return jax.lax.map(one, own)

    return in_turn


def _platform(layout: Layout) -> str:
    return jax.default_backend() if layout.mesh is None else layout.mesh.devices.flat[0].platform
