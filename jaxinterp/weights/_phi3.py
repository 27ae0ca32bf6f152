"""Phi-3 and Phi-4 with plain RoPE: Llama's block, with fused projections and perhaps a sliding window."""

from typing import Any

from jaxinterp.weights._decoder import ENDS_ROWS, PRE_NORM_ROWS, decoder_config, decoder_family, decoder_fields
from jaxinterp.weights._family import COUNT, FLAG, NUMBER, Field, Row
from jaxinterp.weights._transforms import heads_from_columns, stacked_columns, stacked_heads, transposed

FIELDS = {
    **decoder_fields(
        vocab_size=32064,
        max_position_embeddings=4096,
        hidden_size=3072,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=8192,
        rms_norm_eps=1e-5,
    ),
    "partial_rotary_factor": Field(NUMBER, None),
    "sliding_window": Field(COUNT, None),
    "attention_bias": Field(FLAG, False, (False,)),
    "original_max_position_embeddings": Field(COUNT, 4096),
}


def _config(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    return decoder_config(values, faults, partial_rotary=True) | {"window_size": values["sliding_window"]}


PHI3 = decoder_family(
    "phi3",
    "Phi3",
    FIELDS,
    config=_config,
    rows=(
        *ENDS_ROWS,
        *PRE_NORM_ROWS,
        Row(
            ("blocks.attn.W_Q", "blocks.attn.W_K", "blocks.attn.W_V"),
            "{prefix}layers.{layer}.self_attn.qkv_proj.weight",
            stacked_heads,
        ),
        Row("blocks.attn.W_O", "{prefix}layers.{layer}.self_attn.o_proj.weight", heads_from_columns),
        Row(
            ("blocks.mlp.W_gate", "blocks.mlp.W_in"), "{prefix}layers.{layer}.mlp.gate_up_proj.weight", stacked_columns
        ),
        Row("blocks.mlp.W_out", "{prefix}layers.{layer}.mlp.down_proj.weight", transposed),
    ),
    harmless=("resid_pdrop", "embd_pdrop"),
    describe={
        "partial_rotary_factor": lambda config: config.rotary_features / config.d_head,
        "sliding_window": lambda config: config.window_size,
    },
)
