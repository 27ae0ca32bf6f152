"""GPT-NeoX and Pythia: attention and MLP side by side, RoPE on a part of each head, LayerNorm, one projection by head."""

from typing import Any

from jaxinterp.models import TransformerConfig
from jaxinterp.weights._buffers import frequencies_fault, mask_fault, masked_bias_fault
from jaxinterp.weights._config import ACTIVATIONS, COMMON_FIELDS, COMMON_HARMLESS, COMMON_SAME, head_width
from jaxinterp.weights._family import COUNT, FLAG, NUMBER, TEXT, Buffer, Family, Field, Row, Twin
from jaxinterp.weights._rotary_fields import ROTARY_FIELDS, describe_scaling, read_rotary
from jaxinterp.weights._transforms import grouped_head_biases, grouped_heads, heads_from_columns, transposed

FIELDS: dict[str, Field] = {
    **COMMON_FIELDS,
    **ROTARY_FIELDS,
    "vocab_size": Field(COUNT, 50432),
    "hidden_size": Field(COUNT, 6144),
    "num_hidden_layers": Field(COUNT, 44),
    "num_attention_heads": Field(COUNT, 64),
    "intermediate_size": Field(COUNT, 24576),
    "hidden_act": Field(TEXT, "gelu", tuple(ACTIVATIONS)),
    "max_position_embeddings": Field(COUNT, 2048),
    "layer_norm_eps": Field(NUMBER, 1e-5),
    "initializer_range": Field(NUMBER, 0.02),
    "use_parallel_residual": Field(FLAG, True),
    "attention_bias": Field(FLAG, True),
    "rotary_pct": Field(NUMBER, None),
    "rotary_emb_base": Field(NUMBER, None),
    "tie_word_embeddings": Field(FLAG, False),
}
LAYER = "{prefix}layers.{layer}."
ROWS = (
    Row("embed.W_E", "{prefix}embed_in.weight"),
    Row("blocks.ln1.w", LAYER + "input_layernorm.weight"),
    Row("blocks.ln1.b", LAYER + "input_layernorm.bias"),
    Row("blocks.ln2.w", LAYER + "post_attention_layernorm.weight"),
    Row("blocks.ln2.b", LAYER + "post_attention_layernorm.bias"),
    Row(
        ("blocks.attn.W_Q", "blocks.attn.W_K", "blocks.attn.W_V"),
        LAYER + "attention.query_key_value.weight",
        grouped_heads,
    ),
    Row(
        ("blocks.attn.b_Q", "blocks.attn.b_K", "blocks.attn.b_V"),
        LAYER + "attention.query_key_value.bias",
        grouped_head_biases,
    ),
    Row("blocks.attn.W_O", LAYER + "attention.dense.weight", heads_from_columns),
    Row("blocks.attn.b_O", LAYER + "attention.dense.bias"),
    Row("blocks.mlp.W_in", LAYER + "mlp.dense_h_to_4h.weight", transposed),
    Row("blocks.mlp.b_in", LAYER + "mlp.dense_h_to_4h.bias"),
    Row("blocks.mlp.W_out", LAYER + "mlp.dense_4h_to_h.weight", transposed),
    Row("blocks.mlp.b_out", LAYER + "mlp.dense_4h_to_h.bias"),
    Row("ln_final.w", "{prefix}final_layer_norm.weight"),
    Row("ln_final.b", "{prefix}final_layer_norm.bias"),
    Row("unembed.W_U", "embed_out.weight", transposed),
)


def _config(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    table = values["rope_parameters"] or values["rope_scaling"] or {}
    by_name = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    given = {ours: values[theirs] for ours, theirs in by_name.items() if values[theirs] is not None}
    given = {"partial_rotary_factor": None if "partial_rotary_factor" in table else 0.25, **given}
    rotary = read_rotary({**values, **given}, faults)
    partial, d_head = rotary.pop("partial", 1.0), head_width(values, faults)
    return {
        "d_head": d_head,
        "act_fn": ACTIVATIONS[values["hidden_act"]],
        "normalization_type": "LN",
        "positional_embedding_type": "rotary",
        **rotary,
        "rotary_dim": int(partial * d_head),
        "attention_output_bias": values["attention_bias"],
    }


def _describe(config: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_act": config.act_fn,
        "rotary_emb_base": config.rotary_base,
        "rotary_pct": config.rotary_features / config.d_head,
        "rope_scaling": describe_scaling(config),
    }


GPT_NEOX = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    fields=FIELDS,
    harmless=COMMON_HARMLESS | {"attention_dropout", "hidden_dropout", "classifier_dropout"},
    same=COMMON_SAME
    | {"layer_norm_eps": "eps", "use_parallel_residual": "parallel_attn_mlp", "attention_bias": "attention_bias"},
    config=_config,
    describe=_describe,
    rows=ROWS,
    spellings=({"prefix": "gpt_neox."}, {"prefix": ""}),
    buffers=(
        Buffer(LAYER + "attention.bias", mask_fault),
        Buffer(LAYER + "attention.masked_bias", masked_bias_fault),
        Buffer(LAYER + "attention.rotary_emb.inv_freq", frequencies_fault),
    ),
    twins=(Twin("embed_out.weight", "{prefix}embed_in.weight"),),
)
