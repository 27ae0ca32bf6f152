"""Llama 2, 3 and 3.1+: rotary positions (plain, linear or llama3 scaling), RMSNorm, gated MLP, grouped keys and values."""

from typing import Any

import numpy as np

from jaxinterp.models import RotaryScaling, TransformerConfig
from jaxinterp.weights._config import ACTIVATIONS, COMMON_FIELDS, COMMON_HARMLESS
from jaxinterp.weights._family import COUNT, FLAG, NUMBER, TABLE, TEXT, Buffer, Family, Field, Row, Twin
from jaxinterp.weights._transforms import flat_heads, heads_from_columns, heads_from_rows, transposed

FIELDS: dict[str, Field] = {
    **COMMON_FIELDS,
    "vocab_size": Field(COUNT, 32000),
    "max_position_embeddings": Field(COUNT, 2048),
    "hidden_size": Field(COUNT, 4096),
    "num_hidden_layers": Field(COUNT, 32),
    "num_attention_heads": Field(COUNT, 32),
    "num_key_value_heads": Field(COUNT, None),
    "head_dim": Field(COUNT, None),
    "intermediate_size": Field(COUNT, 11008),
    "hidden_act": Field(TEXT, "silu", tuple(ACTIVATIONS)),
    "rms_norm_eps": Field(NUMBER, 1e-6),
    "initializer_range": Field(NUMBER, 0.02),
    "attention_bias": Field(FLAG, False),
    "mlp_bias": Field(FLAG, False),
    "tie_word_embeddings": Field(FLAG, False),
    "rope_theta": Field(NUMBER, None),
    "rope_scaling": Field(TABLE, None),
    "rope_parameters": Field(TABLE, None),
    "partial_rotary_factor": Field(NUMBER, None, (None, 1.0)),
    "rope_interleaved": Field(FLAG, False, (False,)),
}
ROWS = (
    Row("embed.W_E", "{prefix}embed_tokens.weight"),
    Row("blocks.ln1.w", "{prefix}layers.{layer}.input_layernorm.weight"),
    Row("blocks.attn.W_Q", "{prefix}layers.{layer}.self_attn.q_proj.weight", heads_from_rows),
    Row("blocks.attn.W_K", "{prefix}layers.{layer}.self_attn.k_proj.weight", heads_from_rows),
    Row("blocks.attn.W_V", "{prefix}layers.{layer}.self_attn.v_proj.weight", heads_from_rows),
    Row("blocks.attn.W_O", "{prefix}layers.{layer}.self_attn.o_proj.weight", heads_from_columns),
    Row("blocks.attn.b_Q", "{prefix}layers.{layer}.self_attn.q_proj.bias", flat_heads),
    Row("blocks.attn.b_K", "{prefix}layers.{layer}.self_attn.k_proj.bias", flat_heads),
    Row("blocks.attn.b_V", "{prefix}layers.{layer}.self_attn.v_proj.bias", flat_heads),
    Row("blocks.attn.b_O", "{prefix}layers.{layer}.self_attn.o_proj.bias"),
    Row("blocks.ln2.w", "{prefix}layers.{layer}.post_attention_layernorm.weight"),
    Row("blocks.mlp.W_gate", "{prefix}layers.{layer}.mlp.gate_proj.weight", transposed),
    Row("blocks.mlp.W_in", "{prefix}layers.{layer}.mlp.up_proj.weight", transposed),
    Row("blocks.mlp.W_out", "{prefix}layers.{layer}.mlp.down_proj.weight", transposed),
    Row("blocks.mlp.b_gate", "{prefix}layers.{layer}.mlp.gate_proj.bias"),
    Row("blocks.mlp.b_in", "{prefix}layers.{layer}.mlp.up_proj.bias"),
    Row("blocks.mlp.b_out", "{prefix}layers.{layer}.mlp.down_proj.bias"),
    Row("ln_final.w", "{prefix}norm.weight"),
    Row("unembed.W_U", "lm_head.weight", transposed),
)
SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_n_ctx",
    },
}
"""The kinds of RoPE scaling that are implemented: each one's fields, and the fields of `RotaryScaling` they set."""


def _config(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    width, heads = values["hidden_size"], values["num_attention_heads"]
    key_value_heads = values["num_key_value_heads"] or heads
    if values["head_dim"] is None and width % heads:
        faults.append(
            f"hidden_size = {width} is not a multiple of num_attention_heads = {heads}, and there is no head_dim"
        )
    if heads % key_value_heads:
        faults.append(f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {key_value_heads}")
    base, scaling = _rotary(values, faults)
    return {
        "n_layers": values["num_hidden_layers"],
        "d_model": width,
        "n_ctx": values["max_position_embeddings"],
        "d_head": values["head_dim"] or width // heads,
        "n_heads": heads,
        "n_key_value_heads": key_value_heads,
        "d_vocab": values["vocab_size"],
        "d_mlp": values["intermediate_size"],
        "act_fn": ACTIVATIONS[values["hidden_act"]],
        "gated_mlp": True,
        "normalization_type": "RMS",
        "eps": values["rms_norm_eps"],
        "positional_embedding_type": "rotary",
        "rotary_base": base,
        "rotary_scaling": scaling,
        "attention_bias": values["attention_bias"],
        "attention_output_bias": values["attention_bias"],
        "mlp_bias": values["mlp_bias"],
        "tie_word_embeddings": values["tie_word_embeddings"],
        "initializer_range": values["initializer_range"],
    }


def _rotary(values: dict[str, Any], faults: list[str]) -> tuple[float, RotaryScaling | None]:
    """Base and scaling, from `rope_theta` and `rope_scaling` (up to transformers 4) or `rope_parameters` (from 5 on)."""
    if values["rope_parameters"] and values["rope_scaling"]:
        faults.append("it has both rope_scaling and rope_parameters; one of them is legal")
        return 0.0, None
    table = dict(values["rope_parameters"] or values["rope_scaling"] or {})
    theta = table.pop("rope_theta", values["rope_theta"])
    theta = 10000.0 if theta is None else theta
    if values["rope_theta"] not in (None, theta):
        faults.append(f"rope_theta is {values['rope_theta']} in one place and {theta} in another")
    if table.pop("partial_rotary_factor", 1.0) != 1.0:
        faults.append("partial_rotary_factor is implemented for 1.0 only")
    kinds = {table.pop(key) for key in ("rope_type", "type") if key in table} or {"default"}
    kind = min(kinds, key=str)
    if len(kinds) > 1 or kind not in SCALINGS:
        faults.append(
            f"RoPE scaling of type {' and '.join(sorted(map(str, kinds)))} is not implemented; {', '.join(SCALINGS)} are"
        )
        return 0.0, None
    renamed = SCALINGS[kind]
    wrong = [f"{key} = {table[key]!r} is not understood" for key in table if key not in renamed]
    wrong += [f"{key} is missing" for key in renamed if key not in table]
    wrong += [
        f"{key} = {table[key]!r} is not a number above 0"
        for key in renamed
        if key in table and (not isinstance(table[key], int | float) or isinstance(table[key], bool) or table[key] <= 0)
    ]
    if wrong:
        faults.append(f"in its RoPE scaling of type {kind}: " + ", ".join(wrong))
        return 0.0, None
    number = {"original_n_ctx": int}
    arguments: dict[str, Any] = {ours: number.get(ours, float)(table[key]) for key, ours in renamed.items()}
    return float(theta), RotaryScaling(kind=kind, **arguments) if renamed else None


def _describe(config: TransformerConfig) -> dict[str, Any]:
    scaling = config.rotary_scaling
    renamed = {} if scaling is None else SCALINGS[scaling.kind]
    table = None if scaling is None else {"rope_type": scaling.kind}
    return {
        "vocab_size": config.d_vocab,
        "max_position_embeddings": config.n_ctx,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_mlp,
        "hidden_act": config.act_fn,
        "rms_norm_eps": config.eps,
        "initializer_range": config.initializer_range,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": config.rotary_base,
        "rope_scaling": table and table | {theirs: getattr(scaling, ours) for theirs, ours in renamed.items()},
    }


def _frequencies_fault(value: np.ndarray, config: TransformerConfig) -> str | None:
    plain = config.rotary_base ** -(np.arange(0, config.d_head, 2) / config.d_head)
    if config.rotary_scaling is not None or (
        value.shape == plain.shape and np.allclose(value.astype(np.float64), plain, rtol=1e-2)
    ):
        return None
    return "its values are not the rotary frequencies of the config"


LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    fields=FIELDS,
    harmless=COMMON_HARMLESS | {"attention_dropout", "pretraining_tp", "max_sequence_length", "is_llama_config"},
    config=_config,
    describe=_describe,
    rows=ROWS,
    prefixes=("model.", ""),
    buffers=(
        Buffer("{prefix}layers.{layer}.self_attn.rotary_emb.inv_freq", _frequencies_fault),
        Buffer("{prefix}rotary_emb.inv_freq", _frequencies_fault),
    ),
    twins=(Twin("lm_head.weight", "{prefix}embed_tokens.weight"),),
)
