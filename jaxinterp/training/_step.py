"""One training step, as a pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxinterp._tree import pytree
from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray, PyTree

if TYPE_CHECKING:
    import optax

Loss: TypeAlias = Callable[[Params, PyTree, PRNGKeyArray], tuple[Float[Array, ""], dict[str, Array]]]
"""(params, batch, key) -> (loss, metrics)."""


@pytree
class TrainState:
    """Everything that a step changes.

    Attributes:
        params: the parameters.
        optimizer: the optimizer's own state.
        step: how many steps were taken.
    """

    params: Params
    optimizer: PyTree
    step: Int[Array, ""]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(params=params, optimizer=optimizer.init(params), step=jnp.zeros((), jnp.int32))


def train_step(
    loss: Loss, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, PyTree, PRNGKeyArray], tuple[TrainState, dict[str, Array]]]:
    """Makes the function of one step: gradient of the loss, update of the parameters.

    The key is that of the whole run; each step folds its own number into it, so a run that goes on from a saved state draws
    what it would have drawn.

    Args:
        loss: `(params, batch, key) -> (loss, metrics)`, pure.
        optimizer: an Optax transformation.

    Returns:
        `step(state, batch, key) -> (state, metrics)`, pure; wrap it in `jax.jit` with `donate_argnums=0`, or hand it to `fit`.
        `metrics` holds the loss's own and `"gradient_norm"`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> step = train_step(lambda p, batch, key: (jnp.sum((p["W_a"] - batch) ** 2), {}), optax.sgd(0.5))
        >>> state, _ = step(init_state({"W_a": jnp.zeros(2)}, optax.sgd(0.5)), jnp.ones(2), jax.random.key(0))
        >>> state.params["W_a"]
        Array([1., 1.], dtype=float32)
    """

    def step(state: TrainState, batch: PyTree, key: PRNGKeyArray) -> tuple[TrainState, dict[str, Array]]:
        import optax

        key = jax.random.fold_in(key, state.step)
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
        # Optax mixes dtypes and ranks, which our own code and tests do not.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
            params: Any = optax.apply_updates(state.params, updates)
        new = TrainState(params=params, optimizer=optimizer_state, step=state.step + 1)
        return new, {**metrics, "gradient_norm": _norm(gradient)}

    return step


def _norm(tree: PyTree) -> Float[Array, ""]:
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))
