"""What the families of Llama's kind share: RoPE, RMSNorm, gated MLP, grouped keys and values, the same tensor names."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxinterp.models import TransformerConfig
from jaxinterp.weights._buffers import frequencies_fault
from jaxinterp.weights._config import ACTIVATIONS, COMMON_FIELDS, COMMON_HARMLESS, COMMON_SAME, head_width
from jaxinterp.weights._family import COUNT, FLAG, NUMBER, TEXT, Buffer, Family, Field, Row, Twin
from jaxinterp.weights._rotary_fields import ROTARY_FIELDS, describe_scaling, features, read_rotary
from jaxinterp.weights._transforms import flat_heads, heads_from_columns, heads_from_rows, transposed

HARMLESS = COMMON_HARMLESS | {"attention_dropout", "pretraining_tp", "max_sequence_length"}
BUFFERS = (
    Buffer("{prefix}layers.{layer}.self_attn.rotary_emb.inv_freq", frequencies_fault),
    Buffer("{prefix}rotary_emb.inv_freq", frequencies_fault),
)


def decoder_fields(**defaults: Any) -> dict[str, Field]:
    """The fields that these families have in common, with what the absence of some means (`REQUIRED` where that is not given)."""
    fields = {
        "vocab_size": Field(COUNT),
        "max_position_embeddings": Field(COUNT),
        "hidden_size": Field(COUNT),
        "num_hidden_layers": Field(COUNT),
        "num_attention_heads": Field(COUNT),
        "num_key_value_heads": Field(COUNT, None),
        "head_dim": Field(COUNT, None),
        "intermediate_size": Field(COUNT),
        "hidden_act": Field(TEXT, "silu", tuple(ACTIVATIONS)),
        "rms_norm_eps": Field(NUMBER, 1e-6),
        "initializer_range": Field(NUMBER, 0.02),
        "tie_word_embeddings": Field(FLAG, False),
    }
    fields |= {name: fields[name]._replace(default=value) for name, value in defaults.items()}
    return {**COMMON_FIELDS, **fields, **ROTARY_FIELDS}


ATTENTION_ROWS = (
    Row("blocks.attn.W_Q", "{prefix}layers.{layer}.self_attn.q_proj.weight", heads_from_rows),
    Row("blocks.attn.W_K", "{prefix}layers.{layer}.self_attn.k_proj.weight", heads_from_rows),
    Row("blocks.attn.W_V", "{prefix}layers.{layer}.self_attn.v_proj.weight", heads_from_rows),
    Row("blocks.attn.W_O", "{prefix}layers.{layer}.self_attn.o_proj.weight", heads_from_columns),
    Row("blocks.attn.b_Q", "{prefix}layers.{layer}.self_attn.q_proj.bias", flat_heads),
    Row("blocks.attn.b_K", "{prefix}layers.{layer}.self_attn.k_proj.bias", flat_heads),
    Row("blocks.attn.b_V", "{prefix}layers.{layer}.self_attn.v_proj.bias", flat_heads),
    Row("blocks.attn.b_O", "{prefix}layers.{layer}.self_attn.o_proj.bias"),
)
MLP_ROWS = (
    Row("blocks.mlp.W_gate", "{prefix}layers.{layer}.mlp.gate_proj.weight", transposed),
    Row("blocks.mlp.W_in", "{prefix}layers.{layer}.mlp.up_proj.weight", transposed),
    Row("blocks.mlp.W_out", "{prefix}layers.{layer}.mlp.down_proj.weight", transposed),
    Row("blocks.mlp.b_gate", "{prefix}layers.{layer}.mlp.gate_proj.bias"),
    Row("blocks.mlp.b_in", "{prefix}layers.{layer}.mlp.up_proj.bias"),
    Row("blocks.mlp.b_out", "{prefix}layers.{layer}.mlp.down_proj.bias"),
)
ENDS_ROWS = (
    Row("embed.W_E", "{prefix}embed_tokens.weight"),
    Row("ln_final.w", "{prefix}norm.weight"),
    Row("unembed.W_U", "lm_head.weight", transposed),
)


def norm_rows(**names: str) -> tuple[Row, ...]:
    """A norm of each layer for each of ours, by the family's name for it."""
    return tuple(Row(f"blocks.{ours}.w", f"{{prefix}}layers.{{layer}}.{name}.weight") for ours, name in names.items())


PRE_NORM_ROWS = norm_rows(ln1="input_layernorm", ln2="post_attention_layernorm")
SANDWICH_ROWS = norm_rows(
    ln1="input_layernorm",
    ln1_post="post_attention_layernorm",
    ln2="pre_feedforward_layernorm",
    ln2_post="post_feedforward_layernorm",
)
QK_NORM_ROWS = (
    Row("blocks.attn.q_norm.w", "{prefix}layers.{layer}.self_attn.q_norm.weight"),
    Row("blocks.attn.k_norm.w", "{prefix}layers.{layer}.self_attn.k_norm.weight"),
)
DECODER_ROWS = (*ATTENTION_ROWS, *MLP_ROWS, *ENDS_ROWS)


def decoder_config(
    values: Mapping[str, Any], faults: list[str], *, act: str | None = None, partial_rotary: bool = False
) -> dict[str, Any]:
    """The arguments of `TransformerConfig` that these families have in common; biases as `attention_bias` and `mlp_bias` say.

    Args:
        values: the fields' values.
        faults: gets what cannot be translated.
        act: the activation function, where it does not stand in `hidden_act`.
        partial_rotary: whether RoPE may turn a part of each head.
    """
    heads = values["num_attention_heads"]
    key_value_heads = values["num_key_value_heads"] or heads
    d_head = values["head_dim"] or head_width(values, faults)
    if heads % key_value_heads:
        faults.append(f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {key_value_heads}")
    rotary = read_rotary(values, faults)
    partial = rotary.pop("partial", 1.0)
    if partial != 1.0 and not partial_rotary:
        faults.append("partial_rotary_factor is implemented for 1.0 only")
    biases = values.get("attention_bias", False)
    return {
        "d_head": d_head,
        "n_key_value_heads": key_value_heads,
        "act_fn": ACTIVATIONS[values["hidden_act"] if act is None else act],
        "gated_mlp": True,
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        **rotary,
        **features(partial, d_head),
        "attention_bias": biases,
        "attention_output_bias": biases,
        "mlp_bias": values.get("mlp_bias", False),
    }


def decoder_family(
    model_type: str,
    name: str,
    fields: Mapping[str, Field],
    *,
    architectures: tuple[str, ...] = (),
    config: Callable[[dict[str, Any], list[str]], dict[str, Any]] = decoder_config,
    rows: tuple[Row, ...] = (*DECODER_ROWS, *PRE_NORM_ROWS),
    harmless: tuple[str, ...] = (),
    describe: Mapping[str, Callable[[TransformerConfig], Any]] | None = None,
) -> Family:
    """A relative of Llama.

    Args:
        model_type, fields, config, rows: see `Family`.
        name: what the reference implementation's classes begin with.
        architectures: theirs, where they are not those of that name.
        harmless: fields that do not change the computation, beside those that all have.
        describe: how the fields that are the family's own are written.
    """

    def described(config: TransformerConfig) -> dict[str, Any]:
        raw = {
            "num_key_value_heads": config.key_value_heads,
            "head_dim": config.d_head,
            "hidden_act": config.act_fn,
            "attention_bias": config.attention_bias,
            "mlp_bias": config.mlp_bias,
            "rope_theta": config.rotary_base,
            "rope_scaling": describe_scaling(config),
        }
        own = {field: value(config) for field, value in (describe or {}).items()}
        return {field: value for field, value in raw.items() if field in fields} | own

    return Family(
        model_type=model_type,
        architectures=architectures or (f"{name}ForCausalLM", f"{name}Model"),
        fields=fields,
        harmless=HARMLESS | frozenset(harmless),
        same=COMMON_SAME | {"rms_norm_eps": "eps"},
        config=config,
        describe=described,
        rows=rows,
        spellings=({"prefix": "model."}, {"prefix": ""}),
        buffers=BUFFERS,
        twins=(Twin("lm_head.weight", "{prefix}embed_tokens.weight"),),
    )
