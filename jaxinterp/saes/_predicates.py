"""Latents described by a written predicate: the best one by a systematic search, judged on other text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array, Params, PRNGKeyArray
from jaxinterp.saes._sae import SAE
from jaxinterp.saes._site import Batch, as_batch, read_site

if TYPE_CHECKING:
    import xarray

PATTERNS = (
    r"^\s", r"^\s?[A-Z]", r"^\s?[a-z]", r"^\s?[A-Z]+$", r"^[a-z]", r"^\s?[0-9]+$", r"[0-9]", r"^\s?[^\w\s]+$", r"[.!?]", r",",
    r"[\"“”]", r"'", r"\n", r"^\s?\w$", r"^\s?\w{2}$", r"^\s?\w{3}$", r"^\s?\w{7,}$", r"ed$", r"ing$", r"ly$", r"s$", r"er$",
    r"est$", r"y$", r"e$", r"[^\x00-\x7f]", r"(?i)^\s?(he|she|it|they|we|i|you)$", r"(?i)^\s?(his|her|its|their|my|your|our)$",
    r"(?i)^\s?(a|an|the)$", r"(?i)^\s?(is|are|was|were|be|been|am)$", r"(?i)^\s?(and|or|but|so|because)$",
    r"(?i)^\s?(in|on|at|to|of|with|for|from|by|up|down|out)$", r"(?i)^\s?(not|no|never|n't|didn|don|couldn|can't)$",
    r"(?i)^\s?(said|asked|replied|told|says)$",
)  # fmt: skip
"""The regular expressions that are tried on the text of a token."""

ROUNDS = 12
"""Of the search for a set of tokens; it doubles the digits of the F1 in each."""

KINDS = ("tokens", "previous tokens", "pattern", "previous pattern", "positions")


@pytree
class TokenCounts:
    """How often each latent is active by token, by previous token and by position: all that a predicate is judged by.

    Attributes:
        token, previous: float32 [V, N].
        position: float32 [T, N].
        n_token, n_previous, n_position: the same for all tokens, active or not: [V], [V], [T].
    """

    token: Any
    previous: Any
    position: Any
    n_token: Any
    n_previous: Any
    n_position: Any


@pytree
class Predicates:
    """The best predicate of each latent.

    Attributes:
        kinds: [N], indices into `KINDS`.
        texts: what the predicate says, one for each latent.
        train_f1, f1: [N], on the text that it was found on, and on the other; 0 where it is never right.
        active: [N], how often each latent is active in the other text.
        everywhere: [N], the F1 there of the predicate that names every token.
    """

    kinds: Any
    train_f1: Any
    f1: Any
    active: Any
    everywhere: Any
    texts: tuple[str, ...] = static()

    def count(self, above: float = 0.8, least: int = 10) -> int:
        """How many latents are described."""
        return int(self.described(above, least).sum())

    def described(self, above: float = 0.8, least: int = 10) -> np.ndarray:
        """Which latents have an F1 above `above`, booleans [N].

        Only those count that are active at least `least` times, and not so often that naming every token would do.
        """
        f1, active, everywhere = (np.asarray(a) for a in (self.f1, self.active, self.everywhere))
        return (f1 > above) & (active >= least) & (everywhere <= above)

    def dataset(self) -> xarray.Dataset:
        """The table, by latent."""
        import xarray

        arrays = {
            name: ("latent", np.asarray(getattr(self, name))) for name in ("train_f1", "f1", "active", "everywhere")
        }
        words = {
            "kind": ("latent", [KINDS[i] for i in np.asarray(self.kinds)]),
            "predicate": ("latent", list(self.texts)),
        }
        return xarray.Dataset(words | arrays, coords={"latent": np.arange(len(self.texts))})


def count_tokens(
    sae: SAE,
    model: Any,
    params: Params,
    batches: Iterable[Any],
    *,
    exclude: Sequence[int] = (),
    exclude_positions: Sequence[int] = (),
    threshold: float = 0.0,
    shuffle: PRNGKeyArray | None = None,
) -> TokenCounts:
    """Counts in one pass over texts when latents are active.

    Args:
        sae: the dictionary.
        model, params: the model whose site it reads; `random_weights` gives the control.
        batches: as of `loss_recovered`; each is used once, none is kept.
        exclude, exclude_positions: tokens that are not counted.
        threshold: a latent is active above it.
        shuffle: the control of shuffled labels: activations are dealt to the tokens of a batch in an order drawn from this key.

    Returns:
        The counts. Those of a first token's missing predecessor are under no token.

    Raises:
        InputError: no batch.
    """
    counts = None
    for i, tokens in enumerate(batches):
        batch = as_batch(tokens, tuple(exclude), tuple(exclude_positions))
        key = None if shuffle is None else jax.random.fold_in(shuffle, i)
        new = _counted(sae, params, batch, jnp.float32(threshold), key, model=model)
        counts = new if counts is None else jax.tree.map(jnp.add, counts, new)
    if counts is None:
        raise InputError("count_tokens got no batch of tokens.")
    return counts


@functools.partial(jax.jit, static_argnames=("model",))
def _counted(
    sae: SAE, params: Params, batch: Batch, threshold: Array, key: PRNGKeyArray | None, *, model: Any
) -> TokenCounts:
    value = read_site(model, params, batch, sae.config.site)
    kept = batch.kept.ravel()
    active = ((sae.encode(value) > threshold) & batch.kept[..., None]).reshape(kept.size, -1).astype(jnp.float32)
    if key is not None:  # kept rows among themselves: random order, then the kept ones first
        order = jnp.argsort(jax.random.uniform(key, kept.shape, jnp.float32) + (~kept).astype(jnp.float32))
        active = jnp.zeros_like(active).at[jnp.argsort(~kept, stable=True)].set(active[order])
    tokens = batch.tokens
    v, t = model.config.d_vocab, tokens.shape[1]
    before = jnp.concatenate([jnp.full_like(tokens[:, :1], v), jnp.where(batch.predicts, tokens[:, :-1], v)], axis=1)
    places = batch.how.get("positions", jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32)[None], tokens.shape))

    def by(index: Array, size: int) -> tuple[Array, Array]:
        index = index.ravel()
        zero = jnp.zeros((size, active.shape[1]), jnp.float32)
        return (
            zero.at[index].add(active, mode="drop"),
            jnp.zeros(size, jnp.float32).at[index].add(kept.astype(jnp.float32), mode="drop"),
        )

    token, n_token = by(tokens, v)
    previous, n_previous = by(before, v)
    position, n_position = by(places, t)
    return TokenCounts(
        token=token, previous=previous, position=position, n_token=n_token, n_previous=n_previous, n_position=n_position
    )


def predicates(train: TokenCounts, held_out: TokenCounts, texts: Sequence[str], *, most_tokens: int = 16) -> Predicates:
    """Finds the predicate with the best F1 for each latent on one text, and its F1 on another.

    Tried are: sets of at most `most_tokens` tokens (the best one is found exactly), the same of the previous token, each of
    `PATTERNS` on either token's text, and all ranges of positions with ends at small numbers and powers of 2.

    Args:
        train: counts that the predicates are chosen by.
        held_out: counts of other text.
        texts: the text of each token.
        most_tokens: the size of a set; at 16 a person can read it.

    Returns:
        The predicates. A latent that is active nearly everywhere has a high F1 with "all positions": `everywhere` shows it.

    Raises:
        InputError: counts or texts of different sizes.

    Source: an exhaustive form of the token-based explanations that Foote et al. 2023 ("Neuron to Graph", arXiv 2305.19911) and
    Bills et al. 2023 search for; sets by the method for ratios of Dinkelbach 1967 ("On nonlinear fractional programming").
    """
    v, n = train.token.shape
    if len(texts) != v or held_out.token.shape != (v, n) or held_out.position.shape != train.position.shape:
        raise InputError(
            f"{len(texts)} texts, counts {[v, n]} and {list(held_out.token.shape)} by token, {list(train.position.shape)} and "
            f"{list(held_out.position.shape)} by position: they have to be of one model, dictionary and length of text."
        )
    matches = jnp.asarray(np.array([[bool(re.search(p, text)) for text in texts] for p in PATTERNS]), jnp.float32)
    ranges = _ranges(len(train.position))
    inside = jnp.asarray(np.array([[a <= t < b for t in range(len(train.position))] for a, b in ranges]), jnp.float32)
    tables = lambda name: tuple((getattr(c, name), getattr(c, f"n_{name}"), _active(c)) for c in (train, held_out))
    found = jax.device_get([
        _best_set(*tables("token"), most_tokens), _best_set(*tables("previous"), most_tokens),
        _best_row(matches, *tables("token")), _best_row(matches, *tables("previous")), _best_row(inside, *tables("position")),
    ])  # fmt: skip
    kinds = np.argmax([part["train"] for part in found], axis=0)
    pick = lambda name: np.array([part[name] for part in found])[kinds, np.arange(n)]
    said = [
        _said(kind, {name: value[i] for name, value in found[kind].items()}, texts, ranges)
        for i, kind in enumerate(kinds.tolist())
    ]
    active, tokens = np.asarray(_active(held_out)), float(np.sum(held_out.n_token))
    return Predicates(
        kinds=kinds, texts=tuple(said), train_f1=pick("train"), f1=pick("held_out"), active=active,
        everywhere=2 * active / np.maximum(tokens + active, 1.0),
    )  # fmt: skip


Table = tuple[Array, Array, Array]
"""Of one text: how often each latent is active by token (or position) [V, N], how often those occur [V], and how often each
latent is active in all [N], also where there is no previous token."""


def _active(counts: TokenCounts) -> Array:
    return jnp.sum(counts.token, axis=0)


def _f1(right: Array, named: Array, active: Array) -> Array:
    """2 right / (named + active); 0 where nothing is named or active."""
    return 2.0 * right / jnp.maximum(named + active, 1.0)


@functools.partial(jax.jit, static_argnames=("most",))
def _best_set(train: Table, held_out: Table, most: int) -> dict[str, Array]:
    """The best set of tokens of each latent.

    F1 is a ratio of sums over the set, so the best one for a given F1 takes the tokens with the largest 2 count - F1 n, and its
    own F1 is no lower: a few rounds end at the best of all.
    """
    counts, n, _ = train

    def best(rate: Array) -> tuple[Array, Array]:
        scores, order = jax.lax.top_k((2.0 * counts - rate[None] * n[:, None]).T, min(most, len(counts)))
        return order, (scores > 0).at[:, 0].set(True)

    def f1(table: Table, order: Array, taken: Array) -> Array:
        counts, n, active = table
        total = lambda values: jnp.sum(jnp.where(taken, values, 0.0), axis=1)
        return _f1(total(jnp.take_along_axis(counts.T, order, axis=1)), total(n[order]), active)

    rate = jax.lax.fori_loop(0, ROUNDS, lambda _, rate: f1(train, *best(rate)), jnp.zeros(counts.shape[1], jnp.float32))
    order, taken = best(rate)
    scores = {name: f1(table, order, taken) for name, table in (("train", train), ("held_out", held_out))}
    return {**scores, "size": jnp.sum(taken, axis=1, dtype=jnp.int32), "order": order}


@jax.jit
def _best_row(rows: Array, train: Table, held_out: Table) -> dict[str, Array]:
    """The best of some fixed sets of tokens or positions, [sets, V] or [sets, T], of each latent."""

    def f1(table: Table) -> Array:
        counts, n, active = table
        right = jnp.dot(rows, counts, precision="highest")
        return _f1(right, jnp.dot(rows, n, precision="highest")[:, None], active[None])

    best = jnp.argmax(f1(train), axis=0)
    at = lambda scores: jnp.take_along_axis(scores, best[None], axis=0)[0]
    return {"train": at(f1(train)), "held_out": at(f1(held_out)), "best": best}


def _ranges(t: int) -> list[tuple[int, int]]:
    """Half-open ranges of positions with ends at 0 to 8, powers of 2, and the end."""
    ends = sorted({*range(min(8, t) + 1), *(2**i for i in range(3, t.bit_length()) if 2**i < t), t})
    return [(a, b) for i, a in enumerate(ends) for b in ends[i + 1 :]]


def _said(kind: int, found: dict[str, Any], texts: Sequence[str], ranges: list[tuple[int, int]]) -> str:
    if kind < 2:
        words = ", ".join(repr(texts[int(i)]) for i in found["order"][: int(found["size"])])
        return f"{('token', 'previous token')[kind]} is one of {words}"
    if kind < 4:
        return f"{('token', 'previous token')[kind - 2]} matches {PATTERNS[int(found['best'])]}"
    first, end = ranges[int(found["best"])]
    return f"position {first} to {end - 1}"
