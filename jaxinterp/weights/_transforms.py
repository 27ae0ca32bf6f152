"""Named, reversible steps from a file's tensor to our parameters of one layer.

A `Transform` turns one tensor of a file into one or several parameters (`load`), and back (`save`), by reshapes,
transpositions, splits and joins alone: no arithmetic, so the round trip is exact to the bit. Shapes are known
beforehand from the model's own parameters (`file_shape`), which is how a mis-shaped tensor is found before anything
is read.

Letters: H query or key/value heads, D residual width, E head width, F MLP width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """How one tensor of a file holds one or several of our parameters (of one layer).

    Attributes:
        name: what it does, for messages and tables.
        file_shape: the tensor's shape, from the shapes of our parameters.
        load: the parameters, from the tensor and their shapes.
        save: the tensor, from the parameters. The inverse of `load`.
    """

    name: str
    file_shape: Callable[[Sequence[Shape]], Shape]
    load: Callable[[np.ndarray, Sequence[Shape]], Sequence[np.ndarray]]
    save: Callable[[Sequence[np.ndarray]], np.ndarray]


same = Transform("same", lambda s: s[0], lambda x, s: [x], lambda p: p[0])
"""The same array: embeddings [V, D], norm weights [D], biases, `Conv1D` weights [in, out]."""

transposed = Transform("transposed", lambda s: s[0][::-1], lambda x, s: [x.T], lambda p: p[0].T)
"""A linear layer's weight [out, in], which we hold as [in, out]."""

flat_heads = Transform(
    "flat_heads",
    lambda s: (s[0][0] * s[0][1], *s[0][2:]),
    lambda x, s: [x.reshape(s[0])],
    lambda p: p[0].reshape(p[0].shape[0] * p[0].shape[1], *p[0].shape[2:]),
)
"""[H * E] or [H * E, D] in the file, [H, E] or [H, E, D] here: a bias of heads, or an output projection stored [in, out]."""

heads_from_rows = Transform(
    "heads_from_rows",
    lambda s: (s[0][0] * s[0][2], s[0][1]),
    lambda x, s: [x.reshape(s[0][0], s[0][2], s[0][1]).transpose(0, 2, 1)],
    lambda p: p[0].transpose(0, 2, 1).reshape(p[0].shape[0] * p[0].shape[2], p[0].shape[1]),
)
"""A query, key or value projection stored [out = H * E, in = D], which we hold as [H, D, E]."""

heads_from_columns = Transform(
    "heads_from_columns",
    lambda s: (s[0][2], s[0][0] * s[0][1]),
    lambda x, s: [x.reshape(s[0][2], s[0][0], s[0][1]).transpose(1, 2, 0)],
    lambda p: p[0].transpose(2, 0, 1).reshape(p[0].shape[2], p[0].shape[0] * p[0].shape[1]),
)
"""An output projection stored [out = D, in = H * E], which we hold as [H, E, D]."""


def _split(x: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(x, np.cumsum(sizes)[:-1], axis=-1)


fused_heads = Transform(
    "fused_heads",
    lambda s: (s[0][1], sum(h * e for h, _, e in s)),
    lambda x, s: [
        part.reshape(d, h, e).transpose(1, 0, 2)
        for part, (h, d, e) in zip(_split(x, [h * e for h, _, e in s]), s, strict=True)
    ],
    lambda p: np.concatenate([w.transpose(1, 0, 2).reshape(w.shape[1], -1) for w in p], axis=1),
)
"""Queries, keys and values side by side, stored [D, H * E + ...], which we hold as several [H, D, E]."""

fused_head_biases = Transform(
    "fused_head_biases",
    lambda s: (sum(h * e for h, e in s),),
    lambda x, s: [part.reshape(shape) for part, shape in zip(_split(x, [h * e for h, e in s]), s, strict=True)],
    lambda p: np.concatenate([b.reshape(-1) for b in p]),
)
"""The biases of `fused_heads`, stored [H * E + ...], which we hold as several [H, E]."""

stacked_heads = Transform(
    "stacked_heads",
    lambda s: (sum(h * e for h, _, e in s), s[0][1]),
    lambda x, s: [
        part.reshape(h, e, d).transpose(0, 2, 1)
        for part, (h, d, e) in zip(np.split(x, np.cumsum([h * e for h, _, e in s])[:-1]), s, strict=True)
    ],
    lambda p: np.concatenate([w.transpose(0, 2, 1).reshape(-1, w.shape[1]) for w in p]),
)
"""Queries, keys and values one above the other, stored [H * E + ..., D], which we hold as several [H, D, E]."""

grouped_heads = Transform(
    "grouped_heads",
    lambda s: (sum(h * e for h, _, e in s), s[0][1]),
    lambda x, s: list(x.reshape(s[0][0], len(s), s[0][2], s[0][1]).transpose(1, 0, 3, 2)),
    lambda p: np.stack(p).transpose(1, 0, 3, 2).reshape(-1, p[0].shape[1]),
)
"""For each head its query, key and value, stored [H * 3 * E, D], which we hold as three [H, D, E]."""

grouped_head_biases = Transform(
    "grouped_head_biases",
    lambda s: (sum(h * e for h, e in s),),
    lambda x, s: list(x.reshape(s[0][0], len(s), s[0][1]).transpose(1, 0, 2)),
    lambda p: np.stack(p).transpose(1, 0, 2).reshape(-1),
)
"""The biases of `grouped_heads`, stored [H * 3 * E], which we hold as three [H, E]."""

stacked_columns = Transform(
    "stacked_columns",
    lambda s: (sum(shape[1] for shape in s), s[0][0]),
    lambda x, s: [part.T for part in np.split(x, np.cumsum([shape[1] for shape in s])[:-1])],
    lambda p: np.concatenate([w.T for w in p]),
)
"""Two linear layers one above the other, stored [out + out, in], which we hold as two [in, out]."""
