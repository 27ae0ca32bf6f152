"""The choice of the next token: temperature, top-k, top-p, stop tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, TokenError
from jaxinterp._tree import is_traced
from jaxinterp._typing import Array, Bool, Float, Int, PRNGKeyArray


class Sampling(NamedTuple):
    """How tokens are chosen; arrays may be traced.

    Attributes:
        temperature: what logits are divided by.
        key: None: the most probable token each time.
        top_k, top_p: see `likely`.
        stop: ids after which an example is finished, [n]; None: none.
    """

    temperature: Any = 0.0
    key: PRNGKeyArray | None = None
    top_k: Any = None
    top_p: Any = None
    stop: Any = None

    def choose(self, logits: Float[Array, "B V"], step: Any) -> Int[Array, " B"]:
        """The next token of each example; -1, which is no token, where logits are NaN."""
        scores = logits
        if self.key is not None:
            heat = jnp.asarray(self.temperature, jnp.float32)
            noise = jax.random.gumbel(jax.random.fold_in(self.key, step), logits.shape)
            kept = likely(logits, temperature=heat, top_k=self.top_k, top_p=self.top_p)
            # The largest of logits + temperature * noise is a draw from softmax(logits / temperature).
            scores = jnp.where(kept, logits + heat * noise, -jnp.inf)
        chosen = jnp.where(jnp.isnan(logits).any(-1), -1, jnp.argmax(scores, -1).astype(jnp.int32))
        return jnp.where(self._illegal(logits.shape[-1]), -1, chosen)

    def is_stop(self, tokens: Int[Array, " B"]) -> Bool[Array, " B"]:
        """Which examples are finished by these tokens."""
        if self.stop is None:
            return jnp.zeros(tokens.shape, bool)
        return (tokens[:, None] == jnp.asarray(self.stop, jnp.int32).reshape(1, -1)).any(-1)

    def _illegal(self, d_vocab: int) -> Any:
        """Whether a traced number is out of range, so that no token may be chosen."""
        bad: Any = False
        if is_traced(self.top_k):
            bad = bad | (self.top_k < 1) | (self.top_k > d_vocab)
        if is_traced(self.top_p):
            bad = bad | ~((self.top_p > 0) & (self.top_p <= 1))
        return bad


def likely(
    logits: Float[Array, "B V"], *, temperature: Any = 1.0, top_k: Any = None, top_p: Any = None
) -> Bool[Array, "B V"]:
    """Which tokens may be drawn: first the `top_k` most probable, then of those the fewest that hold `top_p` of the rest.

    Args:
        logits: as the model gives them.
        temperature: what they are divided by before `top_p` weighs them.
        top_k: how many tokens; those as probable as the last of them stay too. None: all.
        top_p: a share of the probability, above 0 and at most 1: the most probable tokens up to and with the one that reaches it,
            and those as probable as that one. None: all.

    Source: Fan et al. 2018 (arXiv 1805.04833) for top-k; Holtzman et al. 2020 (arXiv 1904.09751) for top-p.
    """
    if top_k is None and top_p is None:
        return jnp.ones(logits.shape, bool)
    order = jnp.sort(logits, axis=-1, descending=True)
    kept = jnp.ones(order.shape, bool)
    if top_k is not None:
        last = jnp.asarray(top_k, jnp.int32) - 1
        kept = order >= jnp.take(order, last, axis=-1, mode="clip")[:, None]
    if top_p is not None:
        share = jnp.asarray(top_p, jnp.float32)
        heat = jnp.maximum(jnp.asarray(temperature, jnp.float32), jnp.finfo(jnp.float32).tiny)
        p = jax.nn.softmax(jnp.where(kept, (order - order[:, :1]) / heat, -jnp.inf))
        kept = kept & (
            (jnp.cumsum(p, axis=-1) - p < share) | (share >= 1)
        )  # what is before a token does not hold the share
    least = jnp.min(jnp.where(kept, order, jnp.inf), axis=-1, keepdims=True)
    return logits >= least


def check_sampling(d_vocab: int, sampling: Sampling) -> None:
    """Refuses settings that are not legal or would be ignored, where their values are known; all in one message.

    Raises:
        InputError: temperature, key, top_k or top_p; a stop that is no ids.
        TokenError: ids in stop that the vocabulary does not have.
    """
    heat, key, k, p, stop = sampling
    faults = []
    if not _is_number(heat, np.number, lambda x: 0 <= x < np.inf):
        faults.append(
            f"temperature={heat!r} is not legal: give 0 for the most probable token each time, or a positive number and a key"
        )
    elif isinstance(heat, (int, float, np.generic)) and heat == 0:
        given = [f"{name}={value!r}" for name, value in (("top_k", k), ("top_p", p)) if value is not None]
        if idle := ["key"] * (key is not None) + given:
            faults.append(
                f"{', '.join(idle)} with temperature=0, which takes the most probable token each time: leave it out, or give a "
                "temperature above 0"
            )
    elif key is None:
        faults.append(
            f"temperature={heat!r} without a key: sampling needs both (temperature=1.0, key=jax.random.key(0))"
        )
    if k is not None and not _is_number(k, np.integer, lambda x: 1 <= x <= d_vocab):
        faults.append(f"top_k={k!r} is not legal: give a whole number from 1 to the vocabulary's {d_vocab}")
    if p is not None and not _is_number(p, np.number, lambda x: 0 < x <= 1):
        faults.append(f"top_p={p!r} is not legal: give a number above 0 and at most 1")
    if faults:
        raise InputError("; ".join(faults) + ".")
    if stop is None or is_traced(stop):
        return
    ids = np.asarray(stop)
    if ids.ndim > 1 or not (ids.size == 0 or np.issubdtype(ids.dtype, np.integer)):
        raise InputError(f"stop={stop!r}: give the ids of stop tokens, integers [n].")
    if wrong := sorted({int(i) for i in ids.ravel() if not 0 <= i < d_vocab}):
        raise TokenError(f"stop has ids {wrong}, outside the vocabulary of {d_vocab}: legal are 0 to {d_vocab - 1}.")


def _is_number(value: Any, kind: Any, legal: Callable[[Any], Any]) -> bool:
    """Whether a value is one number of a kind, Python's or an array's, and legal where it is known."""
    if not isinstance(value, (int, float, np.generic, np.ndarray, jax.Array)) or np.ndim(value):
        return False
    dtype = value.dtype if isinstance(value, (np.generic, np.ndarray, jax.Array)) else np.dtype(type(value))
    return bool(jnp.issubdtype(dtype, kind) and (is_traced(value) or legal(value)))
