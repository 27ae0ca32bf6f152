"""Qwen 2 and 3: Llama's block with biases on queries, keys and values (2), or with a norm on each query and key (3)."""

from typing import Any

from jaxinterp.weights._decoder import (
    DECODER_ROWS,
    PRE_NORM_ROWS,
    QK_NORM_ROWS,
    decoder_config,
    decoder_family,
    decoder_fields,
)
from jaxinterp.weights._family import COUNT, FLAG, Field
from jaxinterp.weights._rotary_fields import GLOBAL, LAYER_TYPES, LOCAL, describe_types, read_windows

SIZES = {
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
}
WINDOW_FIELDS = {
    "use_sliding_window": Field(FLAG, False),
    "sliding_window": Field(COUNT, 4096, nullable=True),
    "max_window_layers": Field(COUNT, 28),
    "layer_types": LAYER_TYPES,
}
FIELDS_2 = {**decoder_fields(**SIZES), "use_mrope": Field(FLAG, False, (False,)), **WINDOW_FIELDS}
FIELDS_3 = {**decoder_fields(**SIZES, head_dim=128), "attention_bias": Field(FLAG, False), **WINDOW_FIELDS}


def _windows(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    window = values["sliding_window"] if values["use_sliding_window"] else None
    n, first = values["num_hidden_layers"], values["max_window_layers"]
    types = values["layer_types"] or [LOCAL if window is not None and i >= first else GLOBAL for i in range(n)]
    return read_windows(window, types, n, faults)


def _config_2(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    return decoder_config(values, faults) | {"attention_bias": True} | _windows(values, faults)


def _config_3(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    return decoder_config(values, faults) | {"qk_norm": "head"} | _windows(values, faults)


WINDOWS: dict[str, Any] = {
    "use_sliding_window": lambda config: config.window_size is not None,
    "sliding_window": lambda config: config.window_size,
    "layer_types": describe_types,
}

QWEN2 = decoder_family("qwen2", "Qwen2", FIELDS_2, config=_config_2, describe=WINDOWS)
QWEN3 = decoder_family(
    "qwen3",
    "Qwen3",
    FIELDS_3,
    config=_config_3,
    rows=(*DECODER_ROWS, *PRE_NORM_ROWS, *QK_NORM_ROWS),
    describe=WINDOWS,
)
