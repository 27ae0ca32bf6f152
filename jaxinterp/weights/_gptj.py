"""GPT-J: attention and MLP side by side behind one LayerNorm, RoPE on adjacent pairs of a part of each head."""

from typing import Any

from jaxinterp.models import TransformerConfig
from jaxinterp.weights._buffers import mask_fault, masked_bias_fault
from jaxinterp.weights._config import ACTIVATIONS, COMMON_FIELDS, GPT_HARMLESS, GPT_SAME, head_width
from jaxinterp.weights._family import COUNT, FLAG, NUMBER, TEXT, Buffer, Family, Field, Row, Twin
from jaxinterp.weights._transforms import heads_from_columns, heads_from_rows, transposed

FIELDS: dict[str, Field] = {
    **COMMON_FIELDS,
    "vocab_size": Field(COUNT, 50400),
    "n_positions": Field(COUNT, 2048),
    "n_embd": Field(COUNT, 4096),
    "n_layer": Field(COUNT, 28),
    "n_head": Field(COUNT, 16),
    "rotary_dim": Field(COUNT, 64),
    "n_inner": Field(COUNT, None),
    "activation_function": Field(TEXT, "gelu_new", tuple(ACTIVATIONS)),
    "layer_norm_epsilon": Field(NUMBER, 1e-5),
    "initializer_range": Field(NUMBER, 0.02),
    "rotary": Field(FLAG, True, (True,)),
    "scale_attn_weights": Field(FLAG, True, (True,)),
    "tie_word_embeddings": Field(FLAG, False),
}
LAYER = "{prefix}h.{layer}."
ROWS = (
    Row("embed.W_E", "{prefix}wte.weight"),
    Row("blocks.ln1.w", LAYER + "ln_1.weight"),
    Row("blocks.ln1.b", LAYER + "ln_1.bias"),
    Row("blocks.attn.W_Q", LAYER + "attn.q_proj.weight", heads_from_rows),
    Row("blocks.attn.W_K", LAYER + "attn.k_proj.weight", heads_from_rows),
    Row("blocks.attn.W_V", LAYER + "attn.v_proj.weight", heads_from_rows),
    Row("blocks.attn.W_O", LAYER + "attn.out_proj.weight", heads_from_columns),
    Row("blocks.mlp.W_in", LAYER + "mlp.fc_in.weight", transposed),
    Row("blocks.mlp.b_in", LAYER + "mlp.fc_in.bias"),
    Row("blocks.mlp.W_out", LAYER + "mlp.fc_out.weight", transposed),
    Row("blocks.mlp.b_out", LAYER + "mlp.fc_out.bias"),
    Row("ln_final.w", "{prefix}ln_f.weight"),
    Row("ln_final.b", "{prefix}ln_f.bias"),
    Row("unembed.W_U", "lm_head.weight", transposed),
    Row("unembed.b_U", "lm_head.bias"),
)


def _config(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    return {
        "d_head": head_width(values, faults, "n_embd", "n_head"),
        "d_mlp": values["n_inner"] or 4 * values["n_embd"],
        "act_fn": ACTIVATIONS[values["activation_function"]],
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
        "shared_norm": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": values["rotary_dim"],
        "rotary_adjacent_pairs": True,
        "attention_bias": False,
        "attention_output_bias": False,
        "unembed_bias": True,
    }


def _describe(config: TransformerConfig) -> dict[str, Any]:
    return {
        "rotary_dim": config.rotary_features,
        "n_inner": config.d_mlp,
        "activation_function": config.act_fn,
    }


GPTJ = Family(
    model_type="gptj",
    architectures=("GPTJForCausalLM", "GPTJModel"),
    fields=FIELDS,
    harmless=GPT_HARMLESS,
    same=GPT_SAME,
    config=_config,
    describe=_describe,
    rows=ROWS,
    spellings=({"prefix": "transformer."}, {"prefix": ""}),
    buffers=(Buffer(LAYER + "attn.bias", mask_fault), Buffer(LAYER + "attn.masked_bias", masked_bias_fault)),
    twins=(Twin("lm_head.weight", "{prefix}wte.weight"),),
)
