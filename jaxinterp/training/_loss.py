"""The loss of a language model."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Bool, Float, Int, Params
from jaxinterp.tap import Handler, run


def token_nats(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """The cost of each target token, -log p, in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> token_nats(jnp.zeros((1, 1, 8)), jnp.zeros((1, 1), jnp.int32)).round(3)
        Array([[2.079]], dtype=float32)
    """
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def next_token_loss(
    model: Any,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    weights: Float[Array, "B T-1"] | Bool[Array, "B T-1"] | None = None,
    handlers: Sequence[Handler] = (),
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean cost of the next token, in nats.

    Args:
        model: anything with `forward(params, tokens, *, tap) -> logits`.
        params: its parameters.
        tokens: every row is read without its last token and predicted without its first.
        weights: how much each prediction counts. None: all alike.
        handlers: what acts on the forward pass, such as `dropout`.

    Returns:
        The loss, and metrics: a form that `train_step` takes.

    Raises:
        InputError: fewer than two tokens in a row.
    """
    if tokens.shape[-1] < 2:
        raise InputError(
            f"tokens of shape {tuple(tokens.shape)} have no next token to predict: rows need at least two tokens."
        )
    logits = run(model.forward, *handlers)(params, tokens[:, :-1])[0]
    nats = token_nats(logits, tokens[:, 1:])
    if weights is None:
        loss = jnp.mean(nats)
    else:
        counts = weights.astype(nats.dtype)
        loss = jnp.sum(nats * counts) / jnp.maximum(jnp.sum(counts), 1.0)
    return loss, {"loss": loss}
