"""Patching several heads at once, and counting for how many prompts the next token changes."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, SiteIndexError
from jaxinterp._typing import Array, Bool, Int, Params
from jaxinterp.models import Model
from jaxinterp.tap import capture, patch, run
from jaxinterp.tasks import PromptPairs

Heads = Sequence[tuple[int, int]]
"""(layer, head) pairs."""

_SITE = "attn.z"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flips:
    """What joint patches did to the most probable next token, in both directions of every pair.

    Direction 0 runs the corrupt prompt with heads patched from the clean one, direction 1 the other way round.

    Attributes:
        says: [2, B], whether the unpatched run's most probable token is its own answer, so that there is something to flip.
        flipped: [S, 2, B], for each set of heads whether the most probable token became an answer of the other prompt;
            False where `says` is.
    """

    says: Bool[np.ndarray, "2 B"]
    flipped: Bool[np.ndarray, "S 2 B"]

    def rate(self) -> np.ndarray:
        """[S], flips among the prompts that have something to flip; NaN where there are none."""
        total = self.says.sum()
        return self.flipped.sum(axis=(1, 2)) / total if total else np.full(len(self.flipped), math.nan)


def flips(model: Model, params: Params, pairs: PromptPairs, sets: Sequence[Heads]) -> Flips:
    """For each set of heads: patch all of them at once from the other prompt of each pair; does the next token change?

    The heads' outputs (`attn.z`, all positions) come from the other prompt's run. One compiled program serves all sets.

    Args:
        model: the model.
        params: its parameters.
        pairs: B prompt pairs.
        sets: S sets of (layer, head), of any sizes.

    Returns:
        One Boolean for each set, direction and pair.

    Raises:
        InputError: no set, or an empty one.
        SiteIndexError: a layer or head that the model does not have.

    Example:
        >>> import jax, jaxinterp as ji
        >>> lm = ji.load("../shared/data/stories260k")
        >>> pairs = ji.tasks.pronouns(jax.random.key(0), 8, lm.tokenizer, templates="held_out")
        >>> every = [(layer, head) for layer in range(5) for head in range(8)]
        >>> result = flips(lm.model, lm.params, pairs, [every, [(0, 0)]])
        >>> bool(result.rate()[0] > result.rate()[1])
        True
    """
    padded = _padded_sets(sets, model.config.n_layers, model.config.n_heads)
    mask = pairs.mask if pairs.is_padded else None
    rows = pairs.answer_position[:, None]
    own, patched = [], []
    for base, source in ((pairs.corrupt, pairs.clean), (pairs.clean, pairs.corrupt)):
        plain, tokens = _next_tokens(model, params, base, source, mask, rows, jnp.asarray(padded))
        own.append(np.asarray(plain))
        patched.append(np.asarray(tokens))
    answers = [np.asarray(pairs.correct), np.asarray(pairs.wrong)]
    says = np.stack([_among(own[0], answers[1]), _among(own[1], answers[0])])
    reached = np.stack([_among(patched[0], answers[0]), _among(patched[1], answers[1])], axis=1)
    return Flips(says=says, flipped=reached & says[None])


def random_sets(model: Model, size: int, n: int, *, seed: int = 0, without: Heads = ()) -> list[list[tuple[int, int]]]:
    """Different sets of `size` heads, drawn at random: a control for a set that was found.

    Args:
        model: the model.
        size: heads in each set.
        n: how many sets; fewer are returned where fewer exist.
        seed: the same seed gives the same sets.
        without: heads that no set may hold, such as the ones that were found.

    Returns:
        At most `n` sets, each sorted.
    """
    left = [cell for cell in _every_head(model) if cell not in {tuple(h) for h in without}]
    if size < 1 or size > len(left):
        return []
    random = np.random.default_rng(seed)
    if math.comb(len(left), size) <= n:
        return [sorted(one) for one in itertools.combinations(left, size)]
    chosen: dict[tuple[tuple[int, int], ...], None] = {}
    while len(chosen) < n:
        chosen[tuple(sorted(left[i] for i in random.permutation(len(left))[:size]))] = None
    return [list(one) for one in chosen]


def _every_head(model: Model) -> list[tuple[int, int]]:
    return list(itertools.product(range(model.config.n_layers), range(model.config.n_heads)))


def _padded_sets(sets: Sequence[Heads], n_layers: int, n_heads: int) -> Int[np.ndarray, "S k 2"]:
    """All sets as long as the longest: a head that is patched twice is patched once."""
    if not sets or not all(len(heads) for heads in sets):
        raise InputError(
            "flips needs at least one set of heads, and at least one head in each: [[(layer, head), ...], ...]."
        )
    most = max(map(len, sets))
    array = np.array([[*heads, *[heads[0]] * (most - len(heads))] for heads in sets], dtype=np.int32)
    wrong = [tuple(map(int, cell)) for heads in array for cell in heads if not _inside(cell, n_layers, n_heads)]
    if wrong:
        raise SiteIndexError(
            f"(layer, head) = {wrong[0]} is outside the model: layers are 0 to {n_layers - 1}, heads 0 to {n_heads - 1}."
        )
    return array


def _inside(cell: Any, n_layers: int, n_heads: int) -> bool:
    return bool(0 <= cell[0] < n_layers and 0 <= cell[1] < n_heads)


def _among(tokens: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Whether each token [..., B] is one of its prompt's answers [B, n]; -1 pads the answers."""
    return ((tokens[..., None] == answers) & (answers >= 0)).any(-1)


@functools.partial(jax.jit, static_argnames="model")
def _next_tokens(
    model: Model, params: Params, base: Array, source: Array, mask: Array | None, rows: Array, sets: Array
) -> tuple[Int[Array, " B"], Int[Array, "S B"]]:
    """The most probable next token of the plain base run, and under each joint patch."""
    _, acts, _ = run(model.forward, capture(_SITE))(params, source, mask=mask, read=rows)
    logits = model.forward(params, base, mask=mask, read=rows)

    def one(heads: Array) -> Array:
        edits = [patch(_SITE, per_layer=acts[_SITE], layer=heads[i, 0], head=heads[i, 1]) for i in range(sets.shape[1])]
        patched, _, _ = run(model.forward, *edits)(params, base, mask=mask, read=rows)
        return jnp.argmax(patched[:, 0], axis=-1)

    return jnp.argmax(logits[:, 0], axis=-1), jax.lax.map(one, sets)
