"""Documents into rows of equal length: pieces at fixed places, several in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class TokenBatch(NamedTuple):
    """Rows of tokens, int32 [B, T] each; -1 at padding, but for `tokens` and `positions`, which are 0 there.

    Attributes:
        tokens: ids.
        documents: which document of the source a token comes from, from 0.
        positions: counted from the first token of its piece.
        segments: which piece of its row a token belongs to, from 0: what `Model.forward` takes as `segments`.
    """

    tokens: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


class Piece(NamedTuple):
    """A part of a document that is a context of its own: its document, its number there, its ids."""

    document: int
    number: int
    ids: np.ndarray


def cut(document: int, ids: np.ndarray, n_ctx: int, front: Sequence[int], back: Sequence[int]) -> list[Piece]:
    """A document as pieces of at most `n_ctx` tokens, each with `front` before it and `back` behind it.

    Example:
        >>> [piece.ids.tolist() for piece in cut(0, np.array([5, 6, 7]), 3, front=[1], back=[])]
        [[1, 5, 6], [1, 7]]
    """
    step, before, behind = n_ctx - len(front) - len(back), np.asarray(front, ids.dtype), np.asarray(back, ids.dtype)
    return [
        Piece(document, i, np.concatenate([before, ids[start : start + step], behind]))
        for i, start in enumerate(range(0, len(ids), step))
    ]


def fill(
    documents: Iterator[Sequence[Piece]], waiting: Sequence[Piece], rows: int, n_ctx: int, pack: bool
) -> tuple[list[list[Piece]], list[Piece]]:
    """The pieces of the next batch by row, and those that wait for another one.

    Each goes to the first row with room for it, those that waited first, so that none waits for ever. Documents are read until
    all is full, or as many pieces wait as there are rows.
    """
    placed: list[list[Piece]] = [[] for _ in range(rows)]
    free = [n_ctx] * rows
    left: list[Piece] = []

    def place(pieces: Sequence[Piece]) -> None:
        for i, piece in enumerate(pieces):
            if not any(free):
                left.extend(pieces[i:])
                return
            at = next((row for row, room in enumerate(free) if room >= len(piece.ids)), None)
            if at is None:
                left.append(piece)
            else:
                placed[at].append(piece)
                free[at] = free[at] - len(piece.ids) if pack else 0

    place(waiting)
    while any(free) and len(left) < rows:
        pieces = next(documents, None)
        if pieces is None:
            break
        place(pieces)
    return placed, left


def as_batch(placed: Sequence[Sequence[Piece]], n_ctx: int) -> TokenBatch:
    """Rows of pieces as arrays."""
    shape = (len(placed), n_ctx)
    batch = TokenBatch(*(np.full(shape, value, np.int32) for value in (0, -1, 0, -1)))
    for row, pieces in enumerate(placed):
        start = 0
        for i, piece in enumerate(pieces):
            here = (row, slice(start, start + len(piece.ids)))
            batch.tokens[here], batch.documents[here] = piece.ids, piece.document
            batch.positions[here], batch.segments[here] = np.arange(len(piece.ids)), i
            start += len(piece.ids)
    return batch
