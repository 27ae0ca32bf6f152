"""config.json to `TransformerConfig`, by a family's table. A field that is not understood is an error, never ignored."""

from collections.abc import Mapping
from typing import Any

from jaxinterp._errors import ConfigError
from jaxinterp.models import TransformerConfig
from jaxinterp.weights._family import COUNT, FLAG, LIST, NUMBER, REQUIRED, TABLE, TEXT, Family, Field

COMMON_FIELDS: dict[str, Field] = {
    "is_encoder_decoder": Field(FLAG, False, (False,)),
    "add_cross_attention": Field(FLAG, False, (False,)),
    "cross_attention_hidden_size": Field(COUNT, None, (None,)),
    "pruned_heads": Field(TABLE, None, (None, {})),
    "tie_encoder_decoder": Field(FLAG, False, (False,)),
}
"""Fields that every Hugging Face config may have and that would change the computation."""

COMMON_HARMLESS = frozenset(
    """
    _name_or_path architectures model_type torch_dtype dtype transformers_version tokenizer_class
    _attn_implementation_autoset attn_implementation finetuning_task task_specific_params problem_type id2label label2id
    _num_labels is_decoder prefix auto_map

    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id

    use_cache output_past output_attentions output_hidden_states return_dict torchscript use_bfloat16 tf_legacy_loss
    chunk_size_feed_forward gradient_checkpointing

    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()
)
"""Fields that every Hugging Face config may have and that leave the computation as it is.

In order: what the file is and what wrote it; special tokens (the tokenizer's own files rule); what a call returns and
how it is computed; settings of sampling that old files keep here.
"""

ACTIVATIONS = {
    "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu",
    "gelu_fast": "gelu_new",
}  # fmt: skip
"""Hugging Face's names of activation functions, and ours."""

COMMON_SAME = {
    "vocab_size": "d_vocab",
    "max_position_embeddings": "n_ctx",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "d_mlp",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
}
"""Most families' names of fields of `TransformerConfig`; the `same` of a `Family`."""

GPT_SAME = {
    "vocab_size": "d_vocab",
    "n_positions": "n_ctx",
    "n_embd": "d_model",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "layer_norm_epsilon": "eps",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
}
"""Those of GPT-2 and GPT-J."""

GPT_HARMLESS = COMMON_HARMLESS | frozenset(
    """resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout""".split()
)
"""Their fields that leave the computation as it is."""


def translate(raw: dict[str, Any], family: Family) -> TransformerConfig:
    """The `TransformerConfig` that a config.json describes.

    Args:
        raw: the content of config.json.
        family: the table to read it by.

    Raises:
        ConfigError: an architecture of another kind, unknown fields, values that are not implemented, or values of a
            wrong kind: all of them are named.
    """
    _check_architectures(raw, family)
    faults: list[str] = []
    unknown = [name for name in raw if name not in family.fields and name not in family.harmless]
    if unknown:
        listed = ", ".join(f"{name} = {raw[name]!r}" for name in unknown)
        faults.append(f"not understood, and might change the computation: {listed}")
    values = {}
    for name, field in family.fields.items():
        value = raw.get(name, field.default)
        faults.extend(_faults_of(name, field, value))
        values[name] = float(value) if field.kind == NUMBER and isinstance(value, int) else value
    arguments: dict[str, Any] = {}
    if not faults:
        arguments = {ours: values[theirs] for theirs, ours in family.same.items()} | family.config(values, faults)
    if not faults:
        try:
            return TransformerConfig(**arguments)
        except ConfigError as error:
            faults.append(str(error))
    raise ConfigError(
        f"This config.json of a {family.model_type!r} model cannot be followed exactly:\n  "
        + "\n  ".join(faults)
        + "\nA model that is computed otherwise than it was trained gives wrong findings, so nothing was "
        "loaded. If a field truly does not matter for your checkpoint, remove it from a copy of its config.json."
    )


def head_width(
    values: Mapping[str, Any], faults: list[str], width: str = "hidden_size", heads: str = "num_attention_heads"
) -> int:
    """The features of a head, where the heads share the model's width."""
    if values[width] % values[heads]:
        faults.append(f"{width} = {values[width]} is not a multiple of {heads} = {values[heads]}")
    return values[width] // values[heads]


def _check_architectures(raw: dict[str, Any], family: Family) -> None:
    named = raw.get("architectures") or []
    other = [name for name in named if name not in family.architectures]
    if other:
        raise ConfigError(
            f"The config is of architecture {', '.join(map(str, other))}, which is not supported. Supported for "
            f"model_type {family.model_type!r}: {', '.join(family.architectures) or 'none is named'}."
        )


def _faults_of(name: str, field: Field, value: Any) -> list[str]:
    if value is REQUIRED:
        return [f"{name} is missing: it must be {field.kind}"]
    if value is None and (field.nullable or field.default is None):
        return []
    if not _is_kind(value, field.kind):
        return [f"{name} = {value!r} is not {field.kind}"]
    if field.accepted and value not in field.accepted:
        return [f"{name} = {value!r} is not implemented; {' or '.join(repr(a) for a in field.accepted)} is"]
    return []


def _is_kind(value: Any, kind: str) -> bool:
    if kind == FLAG:
        return isinstance(value, bool)
    if kind == COUNT:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if kind == NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == LIST:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    return isinstance(value, {TEXT: str, TABLE: dict}[kind])
