"""Induction: random tokens that repeat with a period that varies from sequence to sequence."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import is_traced, pytree
from jaxinterp._typing import Array
from jaxinterp.tasks._build import Row, assemble
from jaxinterp.tasks._draws import check_count, generator
from jaxinterp.tasks._pairs import PromptPairs

_CHUNK = 256


@pytree
class RepeatedTokens:
    """Sequences of random tokens, each repeating with a period of its own.

    Attributes:
        tokens: int32 [B, T], the sequences, with BOS first where there is one.
        period: int32 [B], number of tokens after which each sequence repeats.
        predictable: bool [B, T], True on the rows from which the next token follows by looking back: the token of this row
            has occurred before, and the next one is what came after it then. False on the last row, whose next token is not
            there.
    """

    tokens: Any
    period: Any
    predictable: Any


def repeated_tokens(
    key: Array, n: int, *, d_vocab: int, n_ctx: int, period: tuple[int, int] = (6, 24), bos_id: int | None = None
) -> RepeatedTokens:
    """Sequences made of `p` different random tokens over and over, with `p` drawn for each sequence.

    The period varies because a fixed one can be learned by position alone: a model of one layer then looks as if it had
    induction heads. The tokens of a period are all different, so that one earlier position answers, and no other.
    Can be called in `jit`, for training: `n`, `d_vocab`, `n_ctx`, `period` and `bos_id` are static.

    Args:
        key: a typed key.
        n: number of sequences.
        d_vocab: size of the vocabulary; tokens are drawn evenly from all ids but `bos_id`.
        n_ctx: length of every sequence, BOS included.
        period: smallest and largest period, both possible; drawn evenly.
        bos_id: puts this token first; None for no BOS.

    Returns:
        `RepeatedTokens` with tokens [n, n_ctx].

    Raises:
        InputError: periods outside 2 to the number of tokens, or sequences too short to repeat.

    Example:
        >>> import jax
        >>> batch = repeated_tokens(jax.random.key(0), 4, d_vocab=16, n_ctx=12, period=(3, 5))
        >>> batch.tokens.shape, bool(((batch.period >= 3) & (batch.period <= 5)).all())
        ((4, 12), True)
        >>> period = int(batch.period[0])
        >>> batch.tokens[0, :-period].tolist() == batch.tokens[0, period:].tolist()
        True

    Source: Olsson et al. 2022, "In-context learning and induction heads", repeated random tokens; the variable period is ours.
    """
    low, high, start = _check(n, d_vocab, period, bos_id, extra=0)
    if n_ctx < start + high + 2:
        raise InputError(
            f"n_ctx={n_ctx} is too short for a period of {high}: to have one predictable token after a full period it must be "
            f"at least {start + high + 2}. Make n_ctx longer or the largest period shorter."
        )
    if not is_traced(key):
        generator(key)  # refuses what is not one typed key
    return _repeat(key, n=n, d_vocab=d_vocab, n_ctx=n_ctx, low=low, high=high, bos_id=bos_id)


def induction(
    key: Array, n: int, *, d_vocab: int, period: tuple[int, int] = (6, 24), bos_id: int | None = None
) -> PromptPairs:
    """Pairs that end within the first repeat: the answer is what followed the last token before.

    The corrupt prompt has another token at the one position that the answer is copied from, and is the same otherwise. So
    `correct` is the token that the repeat calls for, `wrong` the one that it calls for in the corrupt prompt.

    Roles: `previous` (the earlier occurrence of the last token), `match` (the token after it: the source of the answer, and the
    only position that differs), `end`. The period of a pair is `roles["end"] - roles["previous"]`.

    Args:
        key: a typed key; the same key gives the same pairs.
        n: number of pairs.
        d_vocab: size of the vocabulary; tokens are drawn evenly from all ids but `bos_id`.
        period: smallest and largest period, both possible; drawn evenly for each pair.
        bos_id: puts this token first; None for no BOS.

    Returns:
        `PromptPairs` with `A` = 1, without texts, padded to `2 * period[1] - 1` tokens (and BOS) whatever was drawn.

    Raises:
        InputError: periods outside 2 to the number of tokens less one.

    Example:
        >>> import jax
        >>> pairs = induction(jax.random.key(0), 3, d_vocab=20, period=(3, 6))
        >>> pairs.clean.shape, pairs.differs().sum(axis=1).tolist()
        ((3, 11), [1, 1, 1])

    Source: Olsson et al. 2022, "In-context learning and induction heads"; the variable period and the corruption are ours.
    """
    low, high, start = _check(n, d_vocab, period, bos_id, extra=1)
    rng = generator(key)
    allowed = np.delete(np.arange(d_vocab), [] if bos_id is None else bos_id)
    front = [] if bos_id is None else [bos_id]
    rows = []
    for _ in range(n):
        ids = rng.choice(allowed, size=high + 1, replace=False).tolist()
        p = int(rng.integers(low, high + 1))
        offset = int(rng.integers(0, p - 1))
        clean = front + ids[:p] + ids[: offset + 1]
        corrupt = list(clean)
        corrupt[start + offset + 1] = ids[high]
        roles = {"previous": start + offset, "match": start + offset + 1}
        rows.append(Row(clean=clean, corrupt=corrupt, correct=[ids[offset + 1]], wrong=[ids[high]], roles=roles))
    pad_id = 0 if bos_id is None else bos_id
    return assemble(rows, pad_id=pad_id, width=start + 2 * high - 1, prepend_bos=bos_id is not None)


@functools.partial(jax.jit, static_argnames=("n", "d_vocab", "n_ctx", "low", "high", "bos_id"))
def _repeat(key: Array, *, n: int, d_vocab: int, n_ctx: int, low: int, high: int, bos_id: int | None) -> RepeatedTokens:
    start = int(bos_id is not None)
    key_period, key_tokens = jax.random.split(key)
    period = jax.random.randint(key_period, (n,), low, high + 1, jnp.int32)
    # The largest of random scores are different ids in random order; in chunks, since there is a score for every id.
    draw = lambda k: jax.lax.top_k(jax.random.uniform(k, (d_vocab - start,)), high)[1].astype(jnp.int32)
    once = jax.lax.map(draw, jax.random.split(key_tokens, n), batch_size=min(n, _CHUNK))
    once = once if bos_id is None else once + (once >= bos_id).astype(jnp.int32)
    place = jnp.arange(n_ctx - start, dtype=jnp.int32)
    tokens = jnp.take_along_axis(once, place[None, :] % period[:, None], axis=1)
    predictable = (place[None, :] >= period[:, None]) & (place < n_ctx - start - 1)[None, :]
    if bos_id is not None:
        tokens = jnp.concatenate([jnp.full((n, 1), bos_id, jnp.int32), tokens], axis=1)
        predictable = jnp.concatenate([jnp.zeros((n, 1), bool), predictable], axis=1)
    return RepeatedTokens(tokens=tokens, period=period, predictable=predictable)


def _check(n: int, d_vocab: int, period: Any, bos_id: int | None, *, extra: int) -> tuple[int, int, int]:
    check_count(n)
    if bos_id is not None and not 0 <= bos_id < d_vocab:
        raise InputError(f"bos_id={bos_id} is outside the vocabulary of {d_vocab} ids.")
    available = d_vocab - (bos_id is not None) - extra
    low, high = (int(p) for p in period)
    if not 2 <= low <= high <= available:
        raise InputError(
            f"period={tuple(period)} with d_vocab={d_vocab}: the smallest must be at least 2, the largest at most {available} "
            "(its tokens are all different), in this order."
        )
    return low, high, int(bos_id is not None)
