"""Weights in another form with the same log-probabilities, easier to read: TransformerLens's processing, as pure functions.

Each takes parameters and their config and gives both, since the form may need what the config had not: an unembedding of its own,
biases. A norm whose weights were folded stays in the config, with a weight that multiplies by 1 and a bias of 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Params
from jaxinterp.models import TransformerConfig

Processed = tuple[Params, TransformerConfig]


def fold_norms(params: Params, config: TransformerConfig) -> Processed:
    """Moves the weights and biases of the norms into the matrices that read through them.

    x̂ * w + b read by W is x̂ read by w * W, plus the bias b W. Behind a LayerNorm x̂ has mean 0, so each column of W is centered
    too. Norms behind a sublayer of sandwich blocks (Gemma 2) and those of queries and keys stay as they are.

    Args:
        params: as `Model.init` gives them; not changed.
        config: of the model.

    Returns:
        Parameters and config: with its own unembedding, and for LayerNorm with biases b_Q, b_K, b_V, b_in, b_U.

    Raises:
        InputError: nothing reads norms linearly: those after a sum (BERT) or behind each sublayer (OLMo 2); or there are none.

    Example:
        >>> import jax, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=5, d_mlp=8)
        >>> params, folded = ji.weights.fold_norms(ji.Model(config=config).init(jax.random.key(0)), config)
        >>> folded.unembed_bias, float(params["ln_final"]["w"].max())
        (True, 1.0)

    Source: TransformerLens, `fold_ln`; the same numbers.
    """
    _check("fold_norms", config)
    params, config = _untied(params, config)
    c = config
    blocks = []
    for block in params["blocks"]:
        block = {**block, "attn": dict(block["attn"])} | ({"mlp": dict(block["mlp"])} if "mlp" in block else {})
        for letter in "QKV":
            _fold(block["attn"], f"W_{letter}", f"b_{letter}", block["ln1"], c)
        if not c.attn_only:
            norm = block["ln1" if c.shared_norm else "ln2"]
            for part in ("in", "gate") if c.gated_mlp else ("in",):
                _fold(block["mlp"], f"W_{part}", f"b_{part}", norm, c)
            if c.normalization_type == "LN" and not c.mlp_bias:
                block["mlp"]["b_out"] = jnp.zeros(block["mlp"]["W_out"].shape[::2], block["mlp"]["W_out"].dtype)
        blocks.append(block | {name: _plain(block[name], c) for name in ("ln1", "ln2") if name in block})
    out = {**params, "blocks": tuple(blocks)}
    if c.final_norm:
        out["unembed"] = dict(out["unembed"])
        _fold(out["unembed"], "W_U", "b_U", params["ln_final"], c)
        out["ln_final"] = _plain(params["ln_final"], c)
    if c.normalization_type == "LN":
        c = dataclasses.replace(
            c, attention_bias=True, mlp_bias=c.mlp_bias or not c.attn_only, unembed_bias=c.unembed_bias or c.final_norm
        )
    return out, c


def _fold(part: dict[str, Any], weight: str, bias: str, norm: Params, c: TransformerConfig) -> None:
    """One matrix [..., D, out] and its bias [..., out], in place."""
    matrix = part[weight].astype(jnp.float32)
    lead = matrix.ndim - norm["w"].ndim - 1  # an axis of heads
    along = lambda w: w.astype(jnp.float32).reshape(*w.shape[:-1], *(1,) * lead, w.shape[-1], 1)
    new = (along(norm["w"]) + c.norm_weight_offset) * matrix
    if c.normalization_type == "LN":
        moved = jnp.sum(along(norm["b"]) * matrix, axis=-2)
        old = part[bias].astype(jnp.float32) if bias in part else jnp.zeros_like(moved)
        part[bias] = (old + moved).astype(part[weight].dtype)
        new = _centered(new, -2)
    part[weight] = new.astype(part[weight].dtype)


def _plain(norm: Params, c: TransformerConfig) -> Params:
    """The norm's parameters that do nothing."""
    one = 1.0 - c.norm_weight_offset
    return {name: jnp.full_like(value, one if name == "w" else 0.0) for name, value in norm.items()}


def fold_value_biases(params: Params, config: TransformerConfig) -> Processed:
    """Moves the value biases into the output bias: attention probabilities sum to 1, so b_V adds the sum over heads of b_V W_O.

    Args: see `fold_norms`. Returns: with b_V = 0, and a b_O.

    Raises:
        InputError: there are no value biases.
    """
    _check("fold_value_biases", config)
    blocks = []
    for block in params["blocks"]:
        attn = dict(block["attn"])
        weight = attn["W_O"].astype(jnp.float32)
        biases = jnp.repeat(attn["b_V"].astype(jnp.float32), config.n_heads // config.key_value_heads, axis=1)
        moved = jnp.einsum("lhe,lhed->ld", biases, weight, precision="highest")
        old = attn["b_O"].astype(jnp.float32) if "b_O" in attn else jnp.zeros_like(moved)
        attn |= {"b_V": jnp.zeros_like(attn["b_V"]), "b_O": (old + moved).astype(attn["W_O"].dtype)}
        blocks.append({**block, "attn": attn})
    return {**params, "blocks": tuple(blocks)}, dataclasses.replace(config, attention_output_bias=True)


def center_writing_weights(params: Params, config: TransformerConfig) -> Processed:
    """Subtracts from all that writes to the residual stream its mean over the stream's features, which every LayerNorm removes.

    Args: see `fold_norms`. Returns: with its own unembedding, since the embedding changes.

    Raises:
        InputError: something reads the mean: RMSNorm, no norm, norms of the writes themselves.

    Source: TransformerLens, `center_writing_weights`; the same numbers.
    """
    _check("center_writing_weights", config)
    params, config = _untied(params, config)
    out = {**params, "embed": {n: v if n == "ln" else _centered(v, -1) for n, v in params["embed"].items()}}
    blocks = []
    for block in params["blocks"]:
        parts = {
            part: {n: _centered(v, -1) if n in ("W_O", "b_O", "W_out", "b_out") else v for n, v in block[part].items()}
            for part in ("attn", "mlp")
            if part in block
        }
        blocks.append({**block, **parts})
    return out | {"blocks": tuple(blocks)}, config


def center_unembedding(params: Params, config: TransformerConfig) -> Processed:
    """Subtracts from the unembedding its mean over the vocabulary: logits change by the same number for all tokens.

    Args: see `fold_norms`. Returns: with its own unembedding.

    Raises:
        InputError: logits have a soft cap, which such a number passes through.

    Source: TransformerLens, `center_unembed`; the same numbers.
    """
    _check("center_unembedding", config)
    params, config = _untied(params, config)
    return {**params, "unembed": {name: _centered(value, -1) for name, value in params["unembed"].items()}}, config


def _centered(x: Array, axis: int) -> Array:
    full = x.astype(jnp.float32)
    return (full - jnp.mean(full, axis, keepdims=True)).astype(x.dtype)


def _untied(params: Params, config: TransformerConfig) -> Processed:
    if not config.tie_word_embeddings:
        return params, config
    unembed = {**params.get("unembed", {}), "W_U": params["embed"]["W_E"].T}
    return {**params, "unembed": unembed}, dataclasses.replace(config, tie_word_embeddings=False)


def _why_not_fold_norms(c: TransformerConfig) -> str | None:
    if c.normalization_type is None:
        return "the model has no norms"
    if c.norm_position in ("post", "output"):
        return f"norm_position={c.norm_position!r}: what its norms give is added to the residual stream"
    if c.mlm_head and c.final_norm:
        return "mlm_head=True stands between the last norm and the unembedding"
    return None


def _why_not_center_writing_weights(c: TransformerConfig) -> str | None:
    if c.normalization_type != "LN":
        return f"normalization_type={c.normalization_type!r} does not remove the mean, so the mean is read"
    if c.norm_position in ("sandwich", "output"):
        return f"norm_position={c.norm_position!r}: a norm writes to the residual stream, whose mean no matrix can take away"
    if c.norm_position == "pre" and not c.final_norm:
        return "final_norm=False: the unembedding reads the mean"
    if c.norm_position == "post" and not c.embed_norm:
        return "norm_position='post' with embed_norm=False: the first attention reads the embedding's mean"
    return None


def _why_not_center_unembedding(c: TransformerConfig) -> str | None:
    if c.output_logits_soft_cap is None:
        return None
    return f"output_logits_soft_cap={c.output_logits_soft_cap}: logits that are shifted before a soft cap have other differences"


def _why_not_fold_value_biases(c: TransformerConfig) -> str | None:
    return None if c.attention_bias else "attention_bias=False: there are no value biases"


_STEPS: dict[str, tuple[Callable[..., Processed], Callable[[TransformerConfig], str | None]]] = {
    "fold_norms": (fold_norms, _why_not_fold_norms),
    "fold_value_biases": (fold_value_biases, _why_not_fold_value_biases),
    "center_writing_weights": (center_writing_weights, _why_not_center_writing_weights),
    "center_unembedding": (center_unembedding, _why_not_center_unembedding),
}


def _check(step: str, config: TransformerConfig) -> None:
    fault = _STEPS[step][1](config)
    if fault is not None:
        raise InputError(f"{step} would change what this model computes, or nothing at all: {fault}. Leave it out.")


def applicable(config: TransformerConfig) -> tuple[str, ...]:
    """The steps of processing that leave the log-probabilities of such a model as they are, in their order."""
    done = []
    for step, (_, why_not) in _STEPS.items():
        if why_not(config) is None:
            done.append(step)
            gives_biases = step == "fold_norms" and config.normalization_type == "LN"
            config = dataclasses.replace(config, attention_bias=True) if gives_biases else config
    return tuple(done)


def process(params: Params, config: TransformerConfig, *, steps: Sequence[str] | None = None) -> Processed:
    """Folds norms and value biases and centers what can be centered: what TransformerLens's `from_pretrained` does unasked.

    Args:
        params: as `Model.init` gives them, in float32 if they can be (what is folded is rounded to their dtype).
        config: of the model.
        steps: names of these functions; None: all that `applicable(config)` lists.

    Returns:
        Parameters and config of a model with the same log-probabilities.

    Raises:
        InputError: a step that is unknown, or refused (see each).

    Example:
        >>> import dataclasses, jaxinterp as ji
        >>> lm = ji.load("../shared/data/stories260k")
        >>> ji.weights.applicable(lm.config)
        ('fold_norms', 'center_unembedding')
        >>> params, config = ji.weights.process(lm.params, lm.config)
        >>> processed = dataclasses.replace(lm, params=params, model=ji.Model(config=config), layout=None)
        >>> processed.predict("Once upon a", k=1)[0].token
        ' time'
    """
    chosen = applicable(config) if steps is None else tuple(steps)
    unknown = [step for step in chosen if step not in _STEPS]
    if unknown:
        raise InputError(f"steps={list(chosen)}: legal are {', '.join(_STEPS)}.")
    for step, (function, _) in _STEPS.items():
        if step in chosen:
            params, config = function(params, config)
    return params, config
