"""The shape and kind of a transformer, as frozen data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from jaxinterp._errors import ConfigError
from jaxinterp.nn import rotary_frequencies, scale_linear, scale_llama3


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How RoPE's frequencies are stretched for a longer context.

    Attributes:
        kind: "linear" (every angle divided by factor) or "llama3" (long wavelengths only, with a blend).
        factor: the stretch.
        low_freq_factor, high_freq_factor, original_n_ctx: of "llama3" alone (see `scale_llama3`).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_n_ctx: int = 8192

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.factor <= 0 or self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(f"{self}: factor must be positive and high_freq_factor above low_freq_factor.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """One block, configured. Field names are TransformerLens's where it has the field.

    Attributes:
        n_layers: number of blocks (L).
        d_model: width of the residual stream (D).
        n_ctx: the longest sequence.
        n_heads: query heads (H).
        d_head: width of a head (E).
        d_vocab: input tokens (V).
        n_key_value_heads: key/value heads (K); None: as many as n_heads.
        d_mlp: width of the MLP (F); None together with attn_only.
        d_vocab_out: outputs; None: d_vocab.
        act_fn: "relu", "gelu" (erf), "gelu_new" (tanh) or "silu".
        gated_mlp: whether the MLP has a gate.
        attn_only: no MLPs.
        normalization_type: "LN", "RMS" or None, before attention and MLP.
        final_norm: the same norm before the unembedding.
        eps: added to the variance in norms.
        positional_embedding_type: "standard" (learned, added to the embedding), "rotary" or "none".
        rotary_base, rotary_dim, rotary_scaling: RoPE's base, how many features of a head it turns (None: all), its stretch.
        attention_dir: "causal" or "bidirectional".
        attn_scale: what attention scores are divided by, above 0; None: sqrt(d_head).
        attention_bias: b_Q, b_K, b_V.
        attention_output_bias: b_O.
        mlp_bias: b_in, b_out (and b_gate).
        unembed_bias: b_U.
        tie_word_embeddings: the unembedding is the embedding's transpose.
        precision: of float32 matrix products: "highest" is float32 on every backend (several passes on a TPU), "high" and
            "default" are faster and less exact there.
        initializer_range: standard deviation of random weights.

    Raises:
        ConfigError: fields that contradict each other; all of them in one message.
    """

    n_layers: int
    d_model: int
    n_ctx: int
    n_heads: int
    d_head: int
    d_vocab: int
    n_key_value_heads: int | None = None
    d_mlp: int | None = None
    d_vocab_out: int | None = None
    act_fn: Literal["relu", "gelu", "gelu_new", "silu"] = "gelu"
    gated_mlp: bool = False
    attn_only: bool = False
    normalization_type: Literal["LN", "RMS"] | None = "LN"
    final_norm: bool = True
    eps: float = 1e-5
    positional_embedding_type: Literal["standard", "rotary", "none"] = "standard"
    rotary_base: float = 10000.0
    rotary_dim: int | None = None
    rotary_scaling: RotaryScaling | None = None
    attention_dir: Literal["causal", "bidirectional"] = "causal"
    attn_scale: float | None = None
    attention_bias: bool = True
    attention_output_bias: bool = True
    mlp_bias: bool = True
    unembed_bias: bool = False
    tie_word_embeddings: bool = False
    precision: Literal["default", "high", "highest"] = "highest"
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _check_choices(self)
        sizes = {name: getattr(self, name) for name in _POSITIVE}
        faults = [f"{name}={n} must be at least 1" for name, n in sizes.items() if n is not None and n < 1]
        if self.attn_only != (self.d_mlp is None):
            faults.append(
                f"attn_only={self.attn_only} contradicts d_mlp={self.d_mlp}: give d_mlp, or attn_only=True without it"
            )
        if self.n_heads % max(1, self.key_value_heads):
            faults.append(f"n_heads={self.n_heads} is not a multiple of n_key_value_heads={self.key_value_heads}")
        if self.positional_embedding_type != "rotary" and (self.rotary_dim, self.rotary_scaling) != (None, None):
            faults.append(
                f"rotary_dim={self.rotary_dim} and rotary_scaling={self.rotary_scaling} do nothing with "
                f"positional_embedding_type={self.positional_embedding_type!r}"
            )
        if self.attn_only and self.gated_mlp:
            faults.append("gated_mlp=True contradicts attn_only=True")
        if self.eps < 0 or self.rotary_base <= 0:
            faults.append(f"eps={self.eps} must not be negative and rotary_base={self.rotary_base} must be positive")
        if self.attn_scale is not None and not 0 < self.attn_scale < math.inf:
            faults.append(
                f"attn_scale={self.attn_scale} must be positive: scores are divided by it (None: by sqrt(d_head))"
            )
        if self.rotary_features % 2 or self.rotary_features > self.d_head:
            faults.append(f"rotary_dim={self.rotary_features} must be even and at most d_head={self.d_head}")
        if self.tie_word_embeddings and self.outputs != self.d_vocab:
            faults.append(f"tie_word_embeddings with d_vocab_out={self.d_vocab_out} != d_vocab={self.d_vocab}")
        if faults:
            raise ConfigError("TransformerConfig: " + "; ".join(faults) + ".")

    @property
    def key_value_heads(self) -> int:
        """K: n_key_value_heads, or n_heads where that is None."""
        return self.n_heads if self.n_key_value_heads is None else self.n_key_value_heads

    @property
    def outputs(self) -> int:
        """How many logits a position has."""
        return self.d_vocab if self.d_vocab_out is None else self.d_vocab_out

    @property
    def rotary_features(self) -> int:
        """How many features of a head RoPE turns; 0 without RoPE."""
        if self.positional_embedding_type != "rotary":
            return 0
        return self.d_head if self.rotary_dim is None else self.rotary_dim

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied by: 1 / attn_scale, 1 / sqrt(d_head) where that is None."""
        return 1 / (math.sqrt(self.d_head) if self.attn_scale is None else self.attn_scale)

    def frequencies(self) -> np.ndarray:
        """RoPE's angles per position, float32 [rotary_features / 2], stretched as `rotary_scaling` says."""
        f = rotary_frequencies(self.rotary_features, self.rotary_base)
        s = self.rotary_scaling
        if s is None:
            return f
        if s.kind == "linear":
            return scale_linear(f, factor=s.factor)
        return scale_llama3(
            f,
            factor=s.factor,
            low_freq_factor=s.low_freq_factor,
            high_freq_factor=s.high_freq_factor,
            original_n_ctx=s.original_n_ctx,
        )


_POSITIVE = (
    "n_layers", "d_model", "n_ctx", "n_heads", "d_head", "d_vocab", "n_key_value_heads", "d_mlp", "d_vocab_out",
)  # fmt: skip


def _check_choices(config: Any) -> None:
    """Every field that has a closed list of values holds one of them."""
    faults = []
    for name, hint in get_type_hints(type(config)).items():
        legal = [v for part in (get_args(hint) or ()) if get_origin(part) is Literal for v in get_args(part)]
        legal = list(get_args(hint)) if get_origin(hint) is Literal else legal + ([None] if legal else [])
        if legal and getattr(config, name) not in legal:
            faults.append(f"{name}={getattr(config, name)!r}; legal: {', '.join(map(repr, legal))}")
    if faults:
        raise ConfigError(f"{type(config).__name__}: " + "; ".join(faults) + ".")
