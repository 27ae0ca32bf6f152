"""A model: a config and module-level functions, frozen, hashed by what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinterp._errors import InputError, TokenError
from jaxinterp._tree import is_traced
from jaxinterp._typing import Array, Bool, Float, Int, Params, PRNGKeyArray
from jaxinterp.models import _parameters, _transformer
from jaxinterp.models._config import TransformerConfig
from jaxinterp.nn import KeyValues
from jaxinterp.tap import IDENTITY, Tap, take_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A transformer as pure functions of its parameters.

    Two models with equal configs are equal and hash alike: a model is a static argument of `jax.jit` that never compiles twice.
    The functions are fields: an own block, say, is `dataclasses.replace(model, block_fn=my_block)`.

    What sweeps rely on when they skip what an edit cannot reach, and what an own function has to keep: `embed` and `unembed` work
    row by row; a block mixes rows through its keys and values only, honors `prefix` (keys and values of earlier rows) and `read`
    (the rows whose output is wanted, with `tap.narrow(read)` behind), and gives sites of these names these meanings. It is given
    `segments` only where texts are packed.

    Attributes:
        config: the shape and kind.
        init_fn, layer_data_fn, embed_fn, block_fn, unembed_fn: module-level functions that take the config first.

    Example:
        >>> import jax, jax.numpy as jnp, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=16, n_heads=2, d_head=4, d_vocab=11, d_mlp=16)
        >>> model = ji.Model(config=config)
        >>> params = model.init(jax.random.key(0))
        >>> model.forward(params, jnp.array([[1, 2, 3]])).shape
        (1, 3, 11)
    """

    config: TransformerConfig
    init_fn: Callable[..., Params] = _parameters.init
    layer_data_fn: Callable[..., Any] = _transformer.layer_data
    embed_fn: Callable[..., Array] = _transformer.embed
    block_fn: Callable[..., tuple[Array, KeyValues]] = _transformer.block
    unembed_fn: Callable[..., Array] = _transformer.unembed

    def init(self, key: PRNGKeyArray) -> Params:
        """Random parameters from a typed key."""
        return self.init_fn(self.config, key)

    def param_shapes(self) -> Params:
        """The tree of `jax.ShapeDtypeStruct`s that `init` would give; nothing is computed."""
        return jax.eval_shape(self.init, jax.eval_shape(lambda: jax.random.key(0)))

    def layer_data(self) -> tuple[Params, ...]:
        """What differs between layers and is not learned, by segment, stacked along L."""
        return self.layer_data_fn(self.config)

    def embed(self, params: Params, tokens: Int[Array, "B T"], **how: Any) -> Float[Array, "B T D"]:
        """See `jaxinterp.models.embed`."""
        return self.embed_fn(self.config, params, tokens, **how)

    def block(self, params: Params, data: Params, x: Float[Array, "B T D"], **how: Any) -> tuple[Array, KeyValues]:
        """See `jaxinterp.models.block`."""
        return self.block_fn(self.config, _cast(self.config, params), data, x, **how)

    def unembed(self, params: Params, x: Float[Array, "B T D"], **how: Any) -> Float[Array, "B T V"]:
        """See `jaxinterp.models.unembed`."""
        return self.unembed_fn(self.config, _cast(self.config, params), x, **how)

    def forward(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        read: Int[Array, "#B P"] | None = None,
        answers: Int[Array, "B n"] | None = None,
        tap: Tap = IDENTITY,
    ) -> Float[Array, "B P V"]:
        """Logits in float32.

        Args:
            params: as `init` gives them.
            tokens: ids, int32 [B, T].
            mask: True at real tokens; padding may stand on either side. None: all are real.
            positions: absolute positions; by default counted from each example's first real token, or each segment's.
            token_types: for models that have them.
            segments: several texts in one row of tokens ("packed"): a number for each text in a row, the same at all of its
                tokens, -1 at padding. A token attends to its own text alone.
            read: rows whose logits are wanted, [B or 1, P]; None: all T.
            answers: token ids whose logits are wanted, [B, n]; None: all V.
            tap: the tap; users pass handlers to `jaxinterp.run` instead.

        Returns:
            [B, P or T, V or n].

        Raises:
            TokenError: ids out of the vocabulary (NaN where they are traced), or more tokens than the context holds.
            InputError: segments of another shape than the tokens.
        """
        inputs = dict(mask=mask, positions=positions, token_types=token_types, segments=segments)
        x, tap = self._residual(params, tokens, None, tap, **inputs)
        if read is not None:
            x, tap = take_rows(x, read), tap.narrow(read)
        return self.unembed(params, x, tokens=answers, tap=tap)

    def residual(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        *,
        stop: int | None = None,
        tap: Tap = IDENTITY,
        **inputs: Any,
    ) -> Float[Array, "B T D"]:
        """The residual stream behind the last block, or behind the first `stop` blocks, after which nothing is computed.

        Args:
            params: as `init` gives them.
            tokens: ids, int32 [B, T].
            stop: how many blocks are run; None: all.
            tap: the tap; users pass handlers to `jaxinterp.run` instead.
            **inputs: `mask`, `positions`, `token_types`, `segments`, as in `forward`.

        Raises:
            TokenError, InputError: as `forward`; a `stop` that is not from 0 to the number of layers.
        """
        if stop is not None and not 0 <= stop <= self.config.n_layers:
            raise InputError(f"stop={stop}: the model has {self.config.n_layers} layers, so legal are 0 to as many.")
        return self._residual(params, tokens, stop, tap, **inputs)[0]

    def _residual(
        self,
        params: Params,
        tokens: Array,
        stop: int | None,
        tap: Tap,
        *,
        mask: Array | None = None,
        positions: Array | None = None,
        token_types: Array | None = None,
        segments: Array | None = None,
    ) -> tuple[Array, Tap]:
        """The residual stream, and the tap that knows its rows' positions."""
        if segments is not None:
            if segments.shape != tokens.shape:
                raise InputError(
                    f"segments have shape {list(segments.shape)}; give that of the tokens, {list(tokens.shape)}."
                )
            mask = segments >= 0 if mask is None else mask & (segments >= 0)
        check_tokens(self.config, tokens, mask)
        tokens = tokens if mask is None else jnp.where(mask, tokens, 0)  # whatever stands at padding
        places = token_positions(tokens, mask, positions, segments)
        extent = tokens.shape[1] if mask is None and positions is None else jnp.max(places, axis=1) + 1
        tap = tap.at(positions=places, extent=extent)
        x = self.embed(params, tokens, positions=places, token_types=token_types, tap=tap)
        x, _ = self.layers(params, x, positions=places, segments=segments, stop=stop, tap=tap)
        return x, tap

    def layers(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "#B T"],
        prefixes: tuple[KeyValues, ...] | None = None,
        segments: Int[Array, "B T"] | None = None,
        stop: int | None = None,
        tap: Tap = IDENTITY,
    ) -> tuple[Float[Array, "B T D"], tuple[KeyValues, ...]]:
        """All blocks, or the first `stop`; one scan for each run of them.

        Args:
            params: as `init` gives them.
            x: the residual stream, from `embed`.
            positions: absolute positions of its rows, -1 for padding.
            prefixes: by run of blocks, keys and values of earlier rows, stacked along L (a cache); their positions are shared.
            segments: which of several texts each row belongs to, as in `forward`; not together with prefixes.
            stop: how many blocks are run; None: all.
            tap: the tap.

        Returns:
            The residual stream after the last block, and by run the keys and values of the rows of `x`, stacked along L.
        """

        def body(x: Array, layer: Any, *, tap: Tap) -> tuple[Array, tuple[Array, Array]]:
            weights, data, cached = layer
            prefix = None if cached is None or past is None else KeyValues(cached[0], cached[1], past)
            x, own = self.block(weights, data, x, positions=positions, prefix=prefix, tap=tap, **packed)
            return x, (own.keys, own.values)

        if segments is not None and prefixes is not None:
            raise InputError("segments cannot go together with keys and values of earlier rows (a cache).")
        packed = {} if segments is None else {"segments": segments}  # an own block need not know of them
        first, made = 0, []
        for i, (weights, data) in enumerate(zip(params["blocks"], self.layer_data(), strict=True)):
            past = None if prefixes is None else prefixes[i].positions
            cached = None if prefixes is None else (prefixes[i].keys, prefixes[i].values)
            depth = jax.tree.leaves(weights)[0].shape[0]
            if stop is not None and first + depth > stop:
                if first >= stop:
                    break
                depth = stop - first
                weights, data, cached = jax.tree.map(lambda leaf: leaf[:depth], (weights, data, cached))  # noqa: B023
            x, own = tap.scan(body, x, (weights, data, cached), first=first, total=self.config.n_layers)
            made.append(KeyValues(own[0], own[1], positions))
            first += depth
        return x, tuple(made)


def _cast(config: TransformerConfig, params: Params) -> Params:
    """Parameters in the dtype that they are used in; norms compute in float32 and keep theirs, blocks are cast one by one."""
    if config.compute_dtype is None:
        return params
    dtype = jnp.dtype(config.compute_dtype)

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [str(getattr(key, "key", "")) for key in path]
        kept = names[:1] == ["blocks"] or any(name.startswith(("ln", "q_norm", "k_norm")) for name in names)
        return leaf if kept else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def token_positions(
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None,
    positions: Int[Array, "#B T"] | None,
    segments: Int[Array, "B T"] | None = None,
) -> Int[Array, "#B T"]:
    """Absolute positions of rows, counted from each example's or segment's first real token; -1 at padding.

    [1, T] without a mask.
    """
    if positions is None and mask is None:
        return jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    if mask is None:
        assert positions is not None
        return positions
    if positions is None:
        positions = jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1
        if segments is not None:
            begins = jnp.concatenate([mask[:, :1], segments[:, 1:] != segments[:, :-1]], axis=1)
            positions = positions - lax.cummax(jnp.where(begins & mask, positions, 0), axis=1)
    return jnp.where(mask, positions, -1)


def _is_hidden(x: Any) -> bool:
    """Whether values cannot be looked at: traced, or in part on devices of another process."""
    return is_traced(x) or (isinstance(x, jax.Array) and not x.is_fully_addressable)


def check_tokens(config: TransformerConfig, tokens: Any, mask: Any = None, new: int = 0) -> None:
    """Refuses tokens that the model cannot read.

    Args:
        config: of the model.
        tokens: [B, T].
        mask: [B, T] or None.
        new: how many tokens will be generated behind them.
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(f"tokens are {tokens.dtype}{list(tokens.shape)}; give integer ids of shape [batch, position].")
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != jnp.bool_):
        raise InputError(
            f"mask is {mask.dtype}{list(mask.shape)}; give booleans of the tokens' shape {list(tokens.shape)}."
        )
    length = tokens.shape[1]
    if mask is not None and not _is_hidden(mask) and not np.asarray(mask).any(1).all():
        raise TokenError(
            f"examples {np.flatnonzero(~np.asarray(mask).any(1)).tolist()} have no real token: their mask is False throughout."
        )
    if length == 0:
        raise TokenError("the prompt is empty: give at least one token (a BOS token counts).")
    if length + new > config.n_ctx:
        raise TokenError(
            f"{length} tokens"
            + (f" and {new} new ones" if new else "")
            + f" are more than the model's context of {config.n_ctx}. "
            "Shorten the prompt" + (" or generate fewer." if new else ".")
        )
    if not _is_hidden(tokens) and not _is_hidden(mask):
        ids = np.asarray(tokens)
        wrong = (ids < 0) | (ids >= config.d_vocab)
        wrong = wrong if mask is None else wrong & np.asarray(mask)
        if wrong.any():
            raise TokenError(
                f"token ids {sorted(set(ids[wrong].tolist()))[:10]} are outside the vocabulary of {config.d_vocab}: legal are 0 "
                f"to {config.d_vocab - 1}. Were they made by another model's tokenizer?"
            )
