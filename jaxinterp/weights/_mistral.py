"""Mistral: Llama's block, with a sliding window in every layer."""

from typing import Any

from jaxinterp.weights._decoder import decoder_config, decoder_family, decoder_fields
from jaxinterp.weights._family import COUNT, Field

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


MISTRAL = decoder_family(
    "mistral", "Mistral", FIELDS, config=_config, describe={"sliding_window": lambda config: config.window_size}
)
