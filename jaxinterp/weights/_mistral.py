"""Mistral: Llama's block, with a sliding window in every layer."""

from typing import Any

from jaxinterp.weights._decoder import (
    BUFFERS,
    DECODER_ROWS,
    HARMLESS,
    PRE_NORM_ROWS,
    SPELLINGS,
    TWINS,
    decoder_config,
    decoder_describe,
    decoder_fields,
)
from jaxinterp.weights._family import COUNT, Family, Field

FIELDS = {
    **decoder_fields(
        vocab_size=32000,
        max_position_embeddings=4096 * 32,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
    ),
    "sliding_window": Field(COUNT, 4096, nullable=True),
}


def _config(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    return decoder_config(values, faults) | {"window_size": values["sliding_window"]}


MISTRAL = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM", "MistralModel"),
    fields=FIELDS,
    harmless=HARMLESS,
    config=_config,
    describe=decoder_describe(FIELDS, sliding_window=lambda config: config.window_size),
    rows=(*DECODER_ROWS, *PRE_NORM_ROWS),
    spellings=SPELLINGS,
    buffers=BUFFERS,
    twins=TWINS,
)
