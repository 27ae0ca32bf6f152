"""One training step of a dictionary, as a pure function: the same on one device and inside `shard_map`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinterp._tree import pytree
from jaxinterp._typing import Array, Float, Int, Params
from jaxinterp.saes._architecture import Outcome, Training
from jaxinterp.saes._axes import Axes
from jaxinterp.saes._linear import variance
from jaxinterp.saes._normalize import normalized

if TYPE_CHECKING:
    from jaxinterp.saes._train_config import TrainConfig

NEVER = 2**30
"""A latent that has been idle for so many rows is not counted further: the counter has 32 bits."""


@pytree
class Hyper:
    """The numbers that may differ between the members of an ensemble, as data.

    Attributes:
        learning_rate: the highest learning rate.
        sparsity: the architecture's sparsity coefficient.
        k: the number of active latents, at most that of the architecture; None: that.
    """

    learning_rate: Any
    sparsity: Any
    k: Any = None


@pytree
class TrainState:
    """Everything that a step changes.

    Attributes:
        params: the parameters, float32.
        optimizer: Adam's moments.
        idle: int32 [N]: for how many rows each latent has not fired.
        step: how many steps were taken.
        scales: what rows are multiplied by, "input" and "target"; constant.
    """

    params: Any
    optimizer: Any
    idle: Any
    step: Any
    scales: Any


Step = Callable[[TrainState, Array, Array, Hyper], tuple[TrainState, dict[str, Array]]]


def make_step(config: TrainConfig, axes: Axes = Axes()) -> Step:
    """The function of one step.

    Returns:
        `step(state, x [B, D], target [B, D_out], hyper) -> (state, metrics)`. Metrics are scalars: the loss, its terms, "l0",
        "fvu", "dead" (a fraction), "gradient_norm", "learning_rate"; "finite"; and "bad_rows" [2], the first row of the inputs
        and of the targets with a value that is not finite, or -1. A step whose loss or gradient is not finite changes nothing
        but the number of the step, so the state stays good.
    """
    adam, rate, warmup = config.optimizer(), config.rate(), config.sparsity_warmup()

    def gradient_of(state: TrainState, x: Array, target: Array, hyper: Hyper) -> tuple[Array, Outcome, Params]:
        at = Training(
            sparsity=hyper.sparsity * warmup(state.step), dead=state.idle >= config.dead_after, k=hyper.k, config=config.sae,
            axes=axes
        )  # fmt: skip
        x = normalized(x, state.scales["input"], config.sae.normalize)[0]
        target = x if config.sae.target is None else normalized(target, state.scales["target"], config.sae.normalize)[0]
        loss = lambda params, x, target: config.sae.architecture.loss(params, x, target, at)
        params = axes.local(state.params)
        if config.accumulation == 1:
            (value, outcome), gradient = jax.value_and_grad(loss, has_aux=True)(params, x, target)
        else:
            at = dataclasses.replace(at, variance=variance(target, axes))
            value, outcome, gradient = _accumulated(loss, params, x, target, config.accumulation)
        return value, outcome, axes.rows(gradient)  # over the shards of the batch once, not for each part

    def step(state: TrainState, x: Array, target: Array, hyper: Hyper) -> tuple[TrainState, dict[str, Array]]:
        value, outcome, gradient = gradient_of(state, x, target, hyper)
        gradient = config.sae.architecture.project(gradient, state.params)
        norm = _global_norm(gradient, axes)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        now = rate(state.step) * hyper.learning_rate

        def update(params: Params, optimizer: Any) -> tuple[Params, Any]:
            factor = 1.0 if config.clip is None else jnp.minimum(1.0, config.clip / jnp.maximum(norm, 1e-30))
            scaled = gradient if config.clip is None else jax.tree.map(lambda g: g * factor, gradient)
            # Optax mixes dtypes and ranks, which our own code and tests do not.
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                direction, optimizer = adam.update(scaled, optimizer, params)
            params = jax.tree.map(lambda p, d: p - now * d, params, direction)
            return config.sae.architecture.constrain(params, outcome), optimizer

        params, optimizer = lax.cond(finite, update, lambda *kept: kept, state.params, state.optimizer)
        rows = axes.rows(jnp.full_like(x, len(x), jnp.int32, shape=()))
        idle = jnp.where(outcome.fired, 0, jnp.minimum(state.idle + rows, NEVER))
        idle = jnp.where(finite, idle, state.idle)
        dead = axes.latents(jnp.sum(idle >= config.dead_after, dtype=jnp.float32)) / config.sae.n_latents
        metrics = {
            "loss": value, **outcome.terms, "l0": outcome.l0, "fvu": outcome.fvu, "dead": dead, "gradient_norm": norm,
            "learning_rate": now, "finite": finite, "bad_rows": jnp.stack([first_bad_row(rows, axes) for rows in (x, target)]),
        }  # fmt: skip
        return TrainState(
            params=params, optimizer=optimizer, idle=idle, step=state.step + 1, scales=state.scales
        ), metrics

    return step


def _global_norm(tree: Params, axes: Axes) -> Float[Array, ""]:
    """The length of a whole gradient; parts of latents are summed over the shards of the dictionary."""
    squares = {name: jnp.sum(jnp.square(leaf)) for name, leaf in tree.items()}
    zero = jnp.zeros((), jnp.float32)
    cut = sum((square for name, square in squares.items() if is_cut(name, tree[name].ndim)), zero)
    whole = sum((square for name, square in squares.items() if not is_cut(name, tree[name].ndim)), zero)
    return jnp.sqrt(axes.latents(cut) + whole)


def first_bad_row(rows: Float[Array, "B D"], axes: Axes = Axes()) -> Int[Array, ""]:
    """The index in the whole batch of the first row that is not finite; -1: all are."""
    here = 0 if axes.data is None else lax.axis_index(axes.data) * len(rows)
    index = jnp.arange(len(rows), dtype=jnp.int32) + here
    first = jnp.min(jnp.where(jnp.all(jnp.isfinite(rows), axis=1), NEVER, index))
    first = first if axes.data is None else lax.pmin(first, axes.data)
    return jnp.where(first == NEVER, -1, first)


def is_cut(name: str, ndim: int) -> bool:
    """Whether a parameter has a leading axis of latents, which the mesh axis `dict` cuts."""
    return ndim > 0 and name not in ("b_dec", "W_skip")


def _accumulated(
    loss: Callable[..., Any], params: Params, x: Array, target: Array, parts: int
) -> tuple[Array, Outcome, Params]:
    """Loss, outcome and gradient as means over `parts` equal parts of a batch, one at a time.

    Part i holds the rows i, i + parts, i + 2 parts, ..., which are the same ones however a mesh cuts the batch.
    """
    cut = lambda rows: jnp.swapaxes(rows.reshape(len(rows) // parts, parts, rows.shape[1]), 0, 1)

    def one(total: Any, rows: tuple[Array, Array]) -> tuple[Any, Outcome]:
        (value, outcome), gradient = jax.value_and_grad(loss, has_aux=True)(params, *rows)
        return jax.tree.map(jnp.add, total, (value, gradient)), outcome

    (value, gradient), outcomes = lax.scan(
        one, (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)), (cut(x), cut(target))
    )
    mean = lambda a: None if a is None else jnp.mean(a, axis=0)
    smallest = None if outcomes.smallest is None else jnp.min(outcomes.smallest, axis=0)
    outcome = Outcome(
        terms=jax.tree.map(mean, outcomes.terms),
        fired=jnp.any(outcomes.fired, axis=0),
        l0=mean(outcomes.l0),
        fvu=mean(outcomes.fvu),
        smallest=smallest,
    )
    return value / parts, outcome, jax.tree.map(lambda g: g / parts, gradient)
