"""The shape and kind of a transformer, as frozen data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from jaxinterp._errors import ConfigError
from jaxinterp.nn import Norm, rotary_frequencies, scale_linear, scale_llama3


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
        normalization_type: "LN", "RMS" or None.
        norm_position: where a block's norms stand: "pre", before attention and MLP; "sandwich", before each and after it (Gemma 2
            and 3); "output", after each alone, before the sum (OLMo 2); "post", after each sum (BERT).
        norm_weight_offset: what norms multiply by is this plus their weight (1 in Gemma).
        final_norm: the same norm before the unembedding.
        eps: added to the variance in norms.
        parallel_attn_mlp: attention and MLP both read the block's input, and nothing stands between them (GPT-NeoX, GPT-J).
        shared_norm: the MLP of a parallel block reads through attention's norm, and has none of its own (GPT-J).
        qk_norm: RMSNorm of queries and keys before RoPE: "head", over each head (Qwen 3), or "all", over all heads (OLMo 2).
        positional_embedding_type: "standard" (learned, added to the embedding), "rotary" or "none".
        rotary_base, rotary_dim, rotary_scaling: RoPE's base, how many features of a head it turns (None: all), its stretch.
        rotary_base_local: RoPE's base in local layers, without a stretch; None: as elsewhere.
        rotary_adjacent_pairs: RoPE pairs features 2i and 2i + 1 (GPT-J), not i and i + rotary_dim / 2.
        attention_dir: "causal" or "bidirectional".
        window_size: how many positions a row of a local layer attends to, its own the last; None: no layer is local.
        attn_types: "global" or "local" for each layer; None: all are local where there is a window_size.
        attn_scale: what attention scores are divided by, above 0; None: sqrt(d_head).
        attn_scores_soft_cap, output_logits_soft_cap: c of c * tanh(x / c) on attention scores and on logits; None: not capped.
        attention_bias: b_Q, b_K, b_V.
        attention_output_bias: b_O.
        mlp_bias: b_in, b_out (and b_gate).
        embed_scale: what token embeddings are multiplied by.
        embed_norm: a norm behind the sum of the embeddings.
        n_token_types: kinds of segment, each with an embedding that is added; None: the model has no such table.
        mlm_head: a linear layer, act_fn and a norm before the unembedding (BERT's masked-language head).
        unembed_bias: b_U.
        tie_word_embeddings: the unembedding is the embedding's transpose.
        compute_dtype: of activations and matrix products: "float32", "bfloat16" or "float16"; parameters are cast to it where
            they are used. None: the parameters' own. Norms, softmax and logits are in float32 in any case.
        precision: of float32 matrix products: "highest" is float32 on every backend (on a TPU six passes of bfloat16, so up to
            six times the time), "high" (three passes) and "default" (one) are faster and less exact there.
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
    norm_position: Literal["pre", "sandwich", "output", "post"] = "pre"
    norm_weight_offset: float = 0.0
    final_norm: bool = True
    eps: float = 1e-5
    parallel_attn_mlp: bool = False
    shared_norm: bool = False
    qk_norm: Literal["head", "all"] | None = None
    positional_embedding_type: Literal["standard", "rotary", "none"] = "standard"
    rotary_base: float = 10000.0
    rotary_dim: int | None = None
    rotary_scaling: RotaryScaling | None = None
    rotary_base_local: float | None = None
    rotary_adjacent_pairs: bool = False
    attention_dir: Literal["causal", "bidirectional"] = "causal"
    window_size: int | None = None
    attn_types: tuple[Literal["global", "local"], ...] | None = None
    attn_scale: float | None = None
    attn_scores_soft_cap: float | None = None
    output_logits_soft_cap: float | None = None
    attention_bias: bool = True
    attention_output_bias: bool = True
    mlp_bias: bool = True
    embed_scale: float = 1.0
    embed_norm: bool = False
    n_token_types: int | None = None
    mlm_head: bool = False
    unembed_bias: bool = False
    tie_word_embeddings: bool = False
    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    precision: Literal["default", "high", "highest"] = "highest"
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _check_choices(self)
        faults = [*_size_faults(self), *_attention_faults(self), *_norm_faults(self)]
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

    @property
    def norm(self) -> Norm:
        """How the norms of the residual stream compute."""
        return Norm(self.normalization_type, self.eps, self.norm_weight_offset)

    @property
    def is_local(self) -> tuple[bool, ...]:
        """For each layer whether its attention has a window."""
        if self.attn_types is None:
            return (self.window_size is not None,) * self.n_layers
        return tuple(kind == "local" for kind in self.attn_types)

    def frequencies(self, *, local: bool = False) -> np.ndarray:
        """RoPE's angles per position in global or local layers, float32 [rotary_features / 2]; see `rotary_scaling`."""
        if local and self.rotary_base_local is not None:
            return rotary_frequencies(self.rotary_features, self.rotary_base_local)
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
    "n_layers", "d_model", "n_ctx", "n_heads", "d_head", "d_vocab", "n_key_value_heads", "d_mlp", "d_vocab_out", "window_size",
    "n_token_types",
)  # fmt: skip


def _size_faults(c: TransformerConfig) -> list[str]:
    sizes = {name: getattr(c, name) for name in _POSITIVE}
    faults = [f"{name}={n} must be at least 1" for name, n in sizes.items() if n is not None and n < 1]
    if c.attn_only != (c.d_mlp is None):
        faults.append(f"attn_only={c.attn_only} contradicts d_mlp={c.d_mlp}: give d_mlp, or attn_only=True without it")
    if c.attn_only and c.gated_mlp:
        faults.append("gated_mlp=True contradicts attn_only=True")
    if c.tie_word_embeddings and c.outputs != c.d_vocab:
        faults.append(f"tie_word_embeddings with d_vocab_out={c.d_vocab_out} != d_vocab={c.d_vocab}")
    return faults


def _attention_faults(c: TransformerConfig) -> list[str]:
    faults = []
    if c.n_heads % max(1, c.key_value_heads):
        faults.append(f"n_heads={c.n_heads} is not a multiple of n_key_value_heads={c.key_value_heads}")
    idle = {"rotary_dim": None, "rotary_scaling": None, "rotary_base_local": None, "rotary_adjacent_pairs": False}
    given = [f"{name}={getattr(c, name)}" for name, value in idle.items() if getattr(c, name) != value]
    if c.positional_embedding_type != "rotary" and given:
        faults.append(
            f"{', '.join(given)} would do nothing with positional_embedding_type={c.positional_embedding_type!r}"
        )
    if c.rotary_features % 2 or c.rotary_features > c.d_head:
        faults.append(f"rotary_dim={c.rotary_features} must be even and at most d_head={c.d_head}")
    positive = ("rotary_base", "rotary_base_local", "attn_scores_soft_cap", "output_logits_soft_cap")
    for name in positive:
        if getattr(c, name) is not None and not 0 < getattr(c, name) < math.inf:
            faults.append(f"{name}={getattr(c, name)} must be positive")
    if c.attn_scale is not None and not 0 < c.attn_scale < math.inf:
        faults.append(f"attn_scale={c.attn_scale} must be positive: scores are divided by it (None: by sqrt(d_head))")
    if c.attn_types is not None and len(c.attn_types) != c.n_layers:
        faults.append(f"attn_types has {len(c.attn_types)} entries for n_layers={c.n_layers}")
    if c.window_size is None and "local" in (c.attn_types or ()):
        faults.append("attn_types names local layers, and there is no window_size")
    if c.window_size is not None and not any(c.is_local):
        faults.append(f"window_size={c.window_size} would do nothing: no layer is local")
    if c.rotary_base_local is not None and not any(c.is_local):
        faults.append(f"rotary_base_local={c.rotary_base_local} would do nothing: no layer is local")
    if c.window_size is not None and c.attention_dir == "bidirectional":
        faults.append("window_size with attention_dir='bidirectional' is not implemented: windows look back only")
    return faults


def _norm_faults(c: TransformerConfig) -> list[str]:
    faults = []
    if c.eps < 0:
        faults.append(f"eps={c.eps} must not be negative")
    if c.norm_position != "pre" and c.normalization_type is None:
        faults.append(f"norm_position={c.norm_position!r} would do nothing with normalization_type=None")
    if c.norm_position != "pre" and c.parallel_attn_mlp:
        faults.append(f"parallel_attn_mlp=True with norm_position={c.norm_position!r} is not implemented")
    if c.shared_norm and not c.parallel_attn_mlp:
        faults.append("shared_norm=True is for parallel_attn_mlp=True")
    if c.parallel_attn_mlp and c.attn_only:
        faults.append("parallel_attn_mlp=True contradicts attn_only=True")
    if (c.embed_norm or c.mlm_head) and c.normalization_type is None:
        faults.append("embed_norm and mlm_head need a normalization_type")
    return faults


def _check_choices(config: Any) -> None:
    """Every field that has a closed list of values holds one of them, or a tuple of them where it is a tuple."""
    faults = []
    for name, hint in get_type_hints(type(config)).items():
        parts = [p for part in (hint, *get_args(hint)) for p in (part, *get_args(part))]
        legal = list(dict.fromkeys(v for part in parts if get_origin(part) is Literal for v in get_args(part)))
        value = getattr(config, name)
        given = value if isinstance(value, (tuple, list)) else (value,)
        if isinstance(value, list):
            faults.append(f"{name}={value!r} is a list; give a tuple, which can be hashed")
        may_be_none = type(None) in get_args(hint)
        if legal and any(v not in legal for v in given) and not (value is None and may_be_none):
            shown = legal + ([None] if may_be_none else [])
            faults.append(f"{name}={value!r}; legal: {', '.join(map(repr, shown))}")
    if faults:
        raise ConfigError(f"{type(config).__name__}: " + "; ".join(faults) + ".")
