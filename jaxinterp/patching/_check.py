"""What a caller gives to a sweep, checked: prompts, metrics, meshes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array
from jaxinterp.models import Model, check_tokens, token_positions
from jaxinterp.patching._metrics import Metric
from jaxinterp.patching._ops import Forward, Source, forward_of
from jaxinterp.tap import Handler, Site, run


def differing_rows(base: Array, mask: Any, origin: Source | None) -> np.ndarray:
    """[B, T] whether a row has another token, or another position, in the source."""
    assert origin is not None
    own, other = np.asarray(base), np.asarray(origin.tokens)
    if origin.rows is None:
        return own != other
    own_at = np.asarray(np.broadcast_to(token_positions(base, mask, None), own.shape))
    other_at = np.asarray(np.broadcast_to(token_positions(origin.tokens, origin.mask, None), other.shape))
    rows = np.maximum(origin.rows, 0)
    take = lambda a: np.take_along_axis(a, rows, 1)
    return (origin.rows < 0) | (take(other) != own) | (take(other_at) != own_at)


def make_source(model: Forward, base: Array, mask: Any, source: Any, source_mask: Any, positions: Any) -> Source | None:
    """The prompts to patch from, aligned with the base's row by row or by a map of positions; None where there are none."""
    if source is None:
        if positions is not None or source_mask is not None:
            raise InputError("positions= and source_mask= speak of the source prompts; give source= too.")
        return None
    tokens = as_tokens(source, "source")
    if positions is None:
        if source_mask is not None and not np.array_equal(
            np.asarray(source_mask), np.ones(base.shape) if mask is None else np.asarray(mask)
        ):
            raise InputError(
                "source_mask differs from mask, so rows do not correspond. Give positions=, a map [B, T] from base to source."
            )
        if tokens.shape != base.shape:
            raise InputError(
                f"base has shape {list(base.shape)} and source {list(tokens.shape)}. A patch puts the source's value at the "
                "same place, so both need the same prompts in the same number of tokens: align them, group prompts by length, or "
                "give positions=, a map [B, T] from the base's positions to the source's."
            )
        other = mask
    else:
        other = None if source_mask is None else jnp.asarray(source_mask, bool)
    check_prompts(model, tokens, other)
    return Source(tokens, other, None if positions is None else _mapped_rows(base, mask, tokens, other, positions))


def _mapped_rows(base: Array, mask: Any, source: Array, source_mask: Any, positions: Any) -> np.ndarray:
    """[B, T] rows of the source for each row of the base, from a map of positions."""
    wanted = np.asarray(positions)
    if wanted.shape != base.shape or not np.issubdtype(wanted.dtype, np.integer) or len(source) != len(base):
        raise InputError(
            f"positions is {wanted.dtype}{list(wanted.shape)} for base {list(base.shape)} and source {list(source.shape)}: give "
            "for each position of each base prompt the position in its source prompt, int [B, T], -1 where it has none."
        )
    own = np.broadcast_to(np.asarray(token_positions(base, mask, None)), base.shape)
    there = np.broadcast_to(np.asarray(token_positions(source, source_mask, None)), source.shape)
    rows = np.full(base.shape, -1, np.int32)
    for b in range(len(rows)):
        row_of = {int(p): row for row, p in enumerate(there[b]) if p >= 0}
        for row, p in enumerate(own[b]):
            target = int(wanted[b, p]) if p >= 0 else -1
            if target >= 0 and target not in row_of:
                raise InputError(
                    f"positions[{b}, {p}] = {target}, but source prompt {b} has {len(row_of)} tokens: legal are -1 to "
                    f"{len(row_of) - 1}."
                )
            rows[b, row] = row_of.get(target, -1)
    return rows


def check_prompts(model: Forward, tokens: Array, mask: Any) -> None:
    """Refuses prompts that the model cannot read."""
    if isinstance(model, Model):
        check_tokens(model.config, tokens, mask)
    elif mask is not None:
        arguments = inspect.signature(model).parameters.values()
        if not any(one.name == "mask" or one.kind is one.VAR_KEYWORD for one in arguments):
            raise InputError(
                "a mask was given, but the model is a plain function that takes none. Give it an optional argument `mask` "
                "(True at real tokens, [B, T]), or group prompts by their length."
            )


def check_places(model: Forward, params: Any, tokens: Array, mask: Any, names: Sequence[str]) -> None:
    """Refuses a plain function that takes a mask and does not tell its sites where prompts begin: edits would miss them."""
    if isinstance(model, Model) or mask is None:
        return
    silent = []

    def visit(site: Site, value: Array, *_: Any) -> tuple[Array, tuple[()], None]:
        if "T" in site.axes and site.positions is None:
            silent.append(site.name)
        return value, (), None

    looked = run(forward_of(model, mask), Handler(sites=tuple(names), visit=visit))
    jax.eval_shape(lambda params, tokens: looked(params, tokens)[0], params, tokens)
    if silent:
        raise InputError(
            f"a mask was given, but the function does not say which position a row of {', '.join(dict.fromkeys(silent))} has. "
            "Give the tap positions=, [B, T], counted from each prompt's first real token: tap.at(positions=...)."
        )


def check_mapped(metrics: Mapping[str, Metric], base: Array, mask: Any, origin: Source | None) -> None:
    """Refuses metrics that read a position without a counterpart in the source."""
    if origin is None or origin.rows is None:
        return
    own = np.broadcast_to(np.asarray(token_positions(base, mask, None)), base.shape)
    for name, m in metrics.items():
        read = (own[:, :, None] == np.asarray(m.positions)[:, None, :]).any(2)
        lost = np.flatnonzero((read & (origin.rows < 0)).any(1))
        if len(lost):
            raise InputError(
                f"metric {name!r} reads a position of prompts {lost[:10].tolist()} that positions= maps to nothing (-1), so the "
                "source run's metric is not defined. Map the positions that are read."
            )


def check_mesh(mesh: Any, base: Array) -> None:
    if mesh is None:
        return
    names = tuple(mesh.axis_names)
    if set(names) != {"cells", "prompts"}:
        raise InputError(
            f"the mesh has axes {names}; a sweep shares cells and prompts: jaxinterp.mesh.make_mesh(cells=4, prompts=2)."
        )
    deep = mesh.shape["prompts"]
    if len(base) % deep:
        raise InputError(
            f"{len(base)} prompts do not divide among {deep} devices of the mesh's axis 'prompts': give a multiple of {deep} "
            "prompts, or fewer devices to prompts and more to cells."
        )


def check_keep(keep: Sequence[str]) -> None:
    """Refuses to keep what a sweep does not have."""
    if set(keep) - {"prompts", "interval", "logits"}:
        raise InputError(f"keep={tuple(keep)}: legal are 'prompts', 'interval' and 'logits'.")


def named_metrics(metric: Any) -> dict[str, Metric]:
    """Metrics by name, of one or of a mapping; one alone has its own name."""
    metrics = (
        {metric.name: metric} if isinstance(metric, Metric) else dict(metric) if isinstance(metric, Mapping) else {}
    )
    if not metrics or not all(isinstance(m, Metric) for m in metrics.values()):
        raise InputError(
            f"metric={metric!r}: give a metric, such as jaxinterp.patching.logit_difference(correct, wrong, position), or a "
            "mapping from names to metrics."
        )
    return metrics


def check_metrics(model: Forward, base: Array, mask: Any, metrics: Mapping[str, Metric]) -> None:
    length = np.asarray(jnp.broadcast_to(jnp.max(token_positions(base, mask, None), 1) + 1, (base.shape[0],)))
    for name, m in metrics.items():
        rows = np.asarray(m.positions)
        if rows.shape[0] != base.shape[0]:
            raise InputError(f"metric {name!r} is for {rows.shape[0]} prompts, base has {base.shape[0]}.")
        if (rows < 0).any() or (rows >= length[:, None]).any():
            wrong = sorted({int(i) for i in np.where(((rows < 0) | (rows >= length[:, None])).any(1))[0]})
            raise InputError(
                f"metric {name!r} reads positions outside prompts {wrong[:10]}, whose lengths are {length[wrong[:10]].tolist()}."
            )
        if isinstance(model, Model) and m.tokens is not None and int(np.max(m.tokens)) >= model.config.outputs:
            raise InputError(
                f"metric {name!r} reads token {int(np.max(m.tokens))}; the model has {model.config.outputs} outputs."
            )


def as_tokens(tokens: Any, what: str) -> Array:
    """Token ids as an array.

    Args:
        tokens: an array or nested lists of integers.
        what: its name, for the message.

    Returns:
        Ids [B, T].

    Raises:
        InputError: texts, ragged lists, other shapes or dtypes; the message says how to encode and pad.

    Example:
        >>> import jaxinterp as ji
        >>> ji.patching.as_tokens([[1, 2, 3]], "base").shape
        (1, 3)
    """
    array = (
        tokens if hasattr(tokens, "dtype") else np.asarray(tokens, dtype=None if _is_rectangular(tokens) else object)
    )
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{what} is not an array of token ids [batch, position], but {type(tokens).__name__} of {array.dtype}"
            f"{list(array.shape)}. Encode texts first (lm.encode(texts), jaxinterp.tasks.pairs_from_text); prompts of different "
            "lengths need padding and a mask (lm.encode_padded)."
        )
    return jnp.asarray(array)


def _is_rectangular(rows: Any) -> bool:
    return not isinstance(rows, (list, tuple)) or len({np.size(row) for row in rows}) <= 1
