"""GPT-2: learned positions, LayerNorm, one fused projection for queries, keys and values, tied embeddings."""

from typing import Any

from jaxinterp.models import TransformerConfig
from jaxinterp.weights._buffers import mask_fault, masked_bias_fault
from jaxinterp.weights._config import ACTIVATIONS, COMMON_FIELDS, GPT_HARMLESS, GPT_SAME, head_width
from jaxinterp.weights._family import COUNT, FLAG, NUMBER, TEXT, Buffer, Family, Field, Row, Twin
from jaxinterp.weights._transforms import flat_heads, fused_head_biases, fused_heads, transposed

FIELDS: dict[str, Field] = {
    **COMMON_FIELDS,
    "vocab_size": Field(COUNT, 50257),
    "n_positions": Field(COUNT, 1024),
    "n_ctx": Field(COUNT, None),
    "n_embd": Field(COUNT, 768),
    "n_layer": Field(COUNT, 12),
    "n_head": Field(COUNT, 12),
    "n_inner": Field(COUNT, None),
    "activation_function": Field(TEXT, "gelu_new", tuple(ACTIVATIONS)),
    "layer_norm_epsilon": Field(NUMBER, 1e-5),
    "initializer_range": Field(NUMBER, 0.02),
    "scale_attn_weights": Field(FLAG, True),
    "scale_attn_by_inverse_layer_idx": Field(FLAG, False, (False,)),
    "reorder_and_upcast_attn": Field(FLAG, False, (False,)),
    "tie_word_embeddings": Field(FLAG, True),
}
ROWS = (
    Row("embed.W_E", "{prefix}wte.weight"),
    Row("embed.W_pos", "{prefix}wpe.weight"),
    Row("blocks.ln1.w", "{prefix}h.{layer}.ln_1.weight"),
    Row("blocks.ln1.b", "{prefix}h.{layer}.ln_1.bias"),
    Row(("blocks.attn.W_Q", "blocks.attn.W_K", "blocks.attn.W_V"), "{prefix}h.{layer}.attn.c_attn.weight", fused_heads),
    Row(
        ("blocks.attn.b_Q", "blocks.attn.b_K", "blocks.attn.b_V"),
        "{prefix}h.{layer}.attn.c_attn.bias",
        fused_head_biases,
    ),
    Row("blocks.attn.W_O", "{prefix}h.{layer}.attn.c_proj.weight", flat_heads),
    Row("blocks.attn.b_O", "{prefix}h.{layer}.attn.c_proj.bias"),
    Row("blocks.ln2.w", "{prefix}h.{layer}.ln_2.weight"),
    Row("blocks.ln2.b", "{prefix}h.{layer}.ln_2.bias"),
    Row("blocks.mlp.W_in", "{prefix}h.{layer}.mlp.c_fc.weight"),
    Row("blocks.mlp.b_in", "{prefix}h.{layer}.mlp.c_fc.bias"),
    Row("blocks.mlp.W_out", "{prefix}h.{layer}.mlp.c_proj.weight"),
    Row("blocks.mlp.b_out", "{prefix}h.{layer}.mlp.c_proj.bias"),
    Row("ln_final.w", "{prefix}ln_f.weight"),
    Row("ln_final.b", "{prefix}ln_f.bias"),
    Row("unembed.W_U", "lm_head.weight", transposed),
)


def _config(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    if values["n_ctx"] not in (None, values["n_positions"]):
        faults.append(f"n_ctx = {values['n_ctx']} differs from n_positions = {values['n_positions']}")
    return {
        "d_head": head_width(values, faults, "n_embd", "n_head"),
        "d_mlp": values["n_inner"] or 4 * values["n_embd"],
        "act_fn": ACTIVATIONS[values["activation_function"]],
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "attn_scale": None if values["scale_attn_weights"] else 1.0,
    }


def _describe(config: TransformerConfig) -> dict[str, Any]:
    return {
        "n_inner": config.d_mlp,
        "activation_function": config.act_fn,
        "scale_attn_weights": config.attn_scale != 1.0,
    }


GPT2 = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    fields=FIELDS,
    harmless=GPT_HARMLESS | {"n_special", "predict_special_tokens"},
    same=GPT_SAME,
    config=_config,
    describe=_describe,
    rows=ROWS,
    spellings=({"prefix": "transformer."}, {"prefix": ""}),
    buffers=(
        Buffer("{prefix}h.{layer}.attn.bias", mask_fault),
        Buffer("{prefix}h.{layer}.attn.masked_bias", masked_bias_fault),
    ),
    twins=(Twin("lm_head.weight", "{prefix}wte.weight"),),
)
