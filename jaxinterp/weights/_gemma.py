"""Gemma 1, 2 and 3 (text): scaled embeddings, norms that multiply by 1 + w, tanh GELU, heads of their own width.

2 and 3 add norms behind attention and MLP, and alternate windows with full attention; 2 caps scores and logits; 3 normalizes
queries and keys, and has another RoPE base in its local layers.
"""

import math
from typing import Any

from jaxinterp.models import TransformerConfig
from jaxinterp.weights._config import ACTIVATIONS
from jaxinterp.weights._decoder import (
    DECODER_ROWS,
    QK_NORM_ROWS,
    SANDWICH_ROWS,
    decoder_config,
    decoder_family,
    decoder_fields,
)
from jaxinterp.weights._family import COUNT, FLAG, NUMBER, TEXT, Field
from jaxinterp.weights._rotary_fields import (
    GLOBAL,
    LAYER_TYPES,
    LOCAL,
    describe_types,
    read_scaling,
    read_windows,
)

TANH = "gelu_pytorch_tanh"
SHARED_FIELDS = {
    "hidden_act": Field(TEXT, None, tuple(ACTIVATIONS)),
    "hidden_activation": Field(TEXT, None, tuple(ACTIVATIONS)),
    "attention_bias": Field(FLAG, False),
    "use_bidirectional_attention": Field(FLAG, None, (False,)),
}
FIELDS_1 = {
    **decoder_fields(
        vocab_size=256000, max_position_embeddings=8192, hidden_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=16, head_dim=256, intermediate_size=24576, tie_word_embeddings=True,
    ),
    **SHARED_FIELDS,
}  # fmt: skip
SIZES = {
    "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "intermediate_size": 9216, "tie_word_embeddings": True,
}  # fmt: skip
FIELDS_2 = {
    **decoder_fields(vocab_size=256000, max_position_embeddings=8192, **SIZES),
    **SHARED_FIELDS,
    "query_pre_attn_scalar": Field(NUMBER, 256),
    "sliding_window": Field(COUNT, 4096, nullable=True),
    "layer_types": LAYER_TYPES,
    "final_logit_softcapping": Field(NUMBER, 30.0, nullable=True),
    "attn_logit_softcapping": Field(NUMBER, 50.0, nullable=True),
}
FIELDS_3 = {
    **FIELDS_2,
    **decoder_fields(vocab_size=262208, max_position_embeddings=131072, **SIZES),
    **SHARED_FIELDS,
    "final_logit_softcapping": Field(NUMBER, None),
    "attn_logit_softcapping": Field(NUMBER, None, (None,)),  # the reference implementation reads it and caps nothing
    "rope_local_base_freq": Field(NUMBER, None),
    "sliding_window_pattern": Field(COUNT, None),
    "_sliding_window_pattern": Field(COUNT, None),
}


def _shared(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    act = values["hidden_activation"] or values["hidden_act"] or TANH
    act = TANH if act == "gelu" else act  # the first configs said "gelu", and the tanh form was meant
    arguments = decoder_config(values, faults, act=act)
    return arguments | {"norm_weight_offset": 1.0, "embed_scale": math.sqrt(values["hidden_size"])}


def _capped(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    return _shared(values, faults) | {
        "norm_position": "sandwich",
        "attn_scale": math.sqrt(values["query_pre_attn_scalar"]),
        "attn_scores_soft_cap": values["attn_logit_softcapping"],
        "output_logits_soft_cap": values["final_logit_softcapping"],
    }


def _config_2(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    n = values["num_hidden_layers"]
    types = values["layer_types"] or [GLOBAL if i % 2 else LOCAL for i in range(n)]
    return _capped(values, faults) | read_windows(values["sliding_window"], types, n, faults)


def _config_3(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    n = values["num_hidden_layers"]
    pattern = values["sliding_window_pattern"] or values["_sliding_window_pattern"] or 6
    types = values["layer_types"] or [LOCAL if (i + 1) % pattern else GLOBAL for i in range(n)]
    windows = read_windows(values["sliding_window"], types, n, faults)
    rotary = _bases(values, windows, faults)
    plain = {**values, "rope_parameters": None, "rope_scaling": None, "rope_theta": None}
    return _capped(plain, faults) | windows | rotary | {"qk_norm": "head"}


def _bases(values: dict[str, Any], windows: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """RoPE of global layers (stretched perhaps) and of local ones, in the spellings before and from transformers 5."""
    tables = values["rope_parameters"] or {}
    unknown = sorted(set(tables) - {GLOBAL, LOCAL})
    if unknown:
        faults.append(f"rope_parameters has {', '.join(unknown)}; tables for {GLOBAL} and {LOCAL} are understood")
    wide = {**(tables.get(GLOBAL) or {}), **(values["rope_scaling"] or {})}
    near = dict(tables.get(LOCAL) or {})
    base = wide.pop("rope_theta", values["rope_theta"] or 1_000_000.0)
    local = near.pop("rope_theta", values["rope_local_base_freq"] or 10_000.0)
    if read_scaling(near, faults) is not None:
        faults.append(f"a stretch of RoPE in {LOCAL} layers is not implemented")
    only_local = bool(windows) and windows["attn_types"] is None
    if only_local:
        return {"rotary_base": float(local), "rotary_scaling": None}
    return {
        "rotary_base": float(base),
        "rotary_scaling": read_scaling(wide, faults),
        "rotary_base_local": float(local) if windows else None,
    }


def _square(config: TransformerConfig) -> float:
    scale = config.attn_scale or math.sqrt(config.d_head)
    nearest = float(round(scale**2))
    return nearest if math.sqrt(nearest) == scale else scale**2


CAPPED: dict[str, Any] = {
    "hidden_act": lambda config: None,
    "hidden_activation": lambda config: TANH if config.act_fn == "gelu_new" else config.act_fn,
    "query_pre_attn_scalar": _square,
    "sliding_window": lambda config: config.window_size,
    "layer_types": describe_types,
    "final_logit_softcapping": lambda config: config.output_logits_soft_cap,
    "attn_logit_softcapping": lambda config: config.attn_scores_soft_cap,
}

GEMMA = decoder_family(
    "gemma",
    "Gemma",
    FIELDS_1,
    config=_shared,
    describe={"hidden_act": lambda config: TANH if config.act_fn == "gelu_new" else config.act_fn},
)
GEMMA2 = decoder_family(
    "gemma2",
    "Gemma2",
    FIELDS_2,
    config=_config_2,
    rows=(*DECODER_ROWS, *SANDWICH_ROWS),
    harmless=("cache_implementation",),
    describe=CAPPED,
)
GEMMA3 = decoder_family(
    "gemma3_text",
    "Gemma3",
    FIELDS_3,
    architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
    config=_config_3,
    rows=(*DECODER_ROWS, *SANDWICH_ROWS, *QK_NORM_ROWS),
    harmless=("cache_implementation",),
    describe={**CAPPED, "rope_local_base_freq": lambda config: config.rotary_base_local},
)
