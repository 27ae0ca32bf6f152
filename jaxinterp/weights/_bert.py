"""BERT with its masked-language head: bidirectional, a norm after each sum and on the embeddings, token types."""

from typing import Any

from jaxinterp.models import TransformerConfig
from jaxinterp.weights._buffers import of_another_head, position_ids_fault
from jaxinterp.weights._config import ACTIVATIONS, COMMON_FIELDS, COMMON_HARMLESS, COMMON_SAME, head_width
from jaxinterp.weights._family import COUNT, FLAG, NUMBER, TEXT, Buffer, Family, Field, Row, Twin
from jaxinterp.weights._transforms import flat_heads, heads_from_columns, heads_from_rows, transposed

FIELDS: dict[str, Field] = {
    **COMMON_FIELDS,
    "is_decoder": Field(FLAG, False, (False,)),
    "vocab_size": Field(COUNT, 30522),
    "hidden_size": Field(COUNT, 768),
    "num_hidden_layers": Field(COUNT, 12),
    "num_attention_heads": Field(COUNT, 12),
    "intermediate_size": Field(COUNT, 3072),
    "hidden_act": Field(TEXT, "gelu", tuple(ACTIVATIONS)),
    "max_position_embeddings": Field(COUNT, 512),
    "type_vocab_size": Field(COUNT, 2),
    "layer_norm_eps": Field(NUMBER, 1e-12),
    "initializer_range": Field(NUMBER, 0.02),
    "position_embedding_type": Field(TEXT, "absolute", ("absolute",)),
    "tie_word_embeddings": Field(FLAG, True, (True,)),
}
HARMLESS = (COMMON_HARMLESS - {"is_decoder"}) | frozenset(
    """hidden_dropout_prob attention_probs_dropout_prob classifier_dropout pooler_fc_size pooler_num_attention_heads
    pooler_num_fc_layers pooler_size_per_head pooler_type directionality""".split()
)
EMBED, LAYER, HEAD = "{prefix}embeddings.", "{prefix}encoder.layer.{layer}.", "cls.predictions."
ROWS = (
    Row("embed.W_E", EMBED + "word_embeddings.weight"),
    Row("embed.W_pos", EMBED + "position_embeddings.weight"),
    Row("embed.W_token_type", EMBED + "token_type_embeddings.weight"),
    Row("embed.ln.w", EMBED + "LayerNorm.{weight}"),
    Row("embed.ln.b", EMBED + "LayerNorm.{bias}"),
    Row("blocks.attn.W_Q", LAYER + "attention.self.query.weight", heads_from_rows),
    Row("blocks.attn.W_K", LAYER + "attention.self.key.weight", heads_from_rows),
    Row("blocks.attn.W_V", LAYER + "attention.self.value.weight", heads_from_rows),
    Row("blocks.attn.b_Q", LAYER + "attention.self.query.bias", flat_heads),
    Row("blocks.attn.b_K", LAYER + "attention.self.key.bias", flat_heads),
    Row("blocks.attn.b_V", LAYER + "attention.self.value.bias", flat_heads),
    Row("blocks.attn.W_O", LAYER + "attention.output.dense.weight", heads_from_columns),
    Row("blocks.attn.b_O", LAYER + "attention.output.dense.bias"),
    Row("blocks.ln1.w", LAYER + "attention.output.LayerNorm.{weight}"),
    Row("blocks.ln1.b", LAYER + "attention.output.LayerNorm.{bias}"),
    Row("blocks.mlp.W_in", LAYER + "intermediate.dense.weight", transposed),
    Row("blocks.mlp.b_in", LAYER + "intermediate.dense.bias"),
    Row("blocks.mlp.W_out", LAYER + "output.dense.weight", transposed),
    Row("blocks.mlp.b_out", LAYER + "output.dense.bias"),
    Row("blocks.ln2.w", LAYER + "output.LayerNorm.{weight}"),
    Row("blocks.ln2.b", LAYER + "output.LayerNorm.{bias}"),
    Row("mlm_head.W", HEAD + "transform.dense.weight", transposed),
    Row("mlm_head.b", HEAD + "transform.dense.bias"),
    Row("mlm_head.ln.w", HEAD + "transform.LayerNorm.{weight}"),
    Row("mlm_head.ln.b", HEAD + "transform.LayerNorm.{bias}"),
    Row("unembed.b_U", HEAD + "bias"),
)


def _config(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    return {
        "d_head": head_width(values, faults),
        "act_fn": ACTIVATIONS[values["hidden_act"]],
        "normalization_type": "LN",
        "norm_position": "post",
        "final_norm": False,
        "positional_embedding_type": "standard",
        "attention_dir": "bidirectional",
        "embed_norm": True,
        "mlm_head": True,
        "unembed_bias": True,
    }


def _describe(config: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_act": config.act_fn,
    }


BERT = Family(
    model_type="bert",
    architectures=("BertForMaskedLM", "BertForPreTraining"),
    fields=FIELDS,
    harmless=HARMLESS,
    same=COMMON_SAME | {"layer_norm_eps": "eps", "type_vocab_size": "n_token_types"},
    config=_config,
    describe=_describe,
    rows=ROWS,
    spellings=(
        {"prefix": "bert.", "weight": "weight", "bias": "bias"},
        {"prefix": "bert.", "weight": "gamma", "bias": "beta"},
    ),
    buffers=(
        Buffer(EMBED + "position_ids", position_ids_fault),
        Buffer("{prefix}pooler.dense.weight", of_another_head),
        Buffer("{prefix}pooler.dense.bias", of_another_head),
        Buffer("cls.seq_relationship.weight", of_another_head),
        Buffer("cls.seq_relationship.bias", of_another_head),
    ),
    twins=(
        Twin(HEAD + "decoder.weight", EMBED + "word_embeddings.weight"),
        Twin(HEAD + "decoder.bias", HEAD + "bias"),
    ),
)
