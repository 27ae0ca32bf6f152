"""OLMo 2: Llama's block with norms behind attention and MLP in place of before, and one norm over all queries, and all keys."""

from typing import Any

from jaxinterp.weights._decoder import DECODER_ROWS, decoder_config, decoder_family, decoder_fields, norm_rows
from jaxinterp.weights._family import FLAG, Field, Row
from jaxinterp.weights._transforms import flat_heads

FIELDS = {
    **decoder_fields(
        vocab_size=50304,
        max_position_embeddings=2048,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=11008,
        rms_norm_eps=1e-5,
    ),
    "attention_bias": Field(FLAG, False),
}


def _config(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    return decoder_config(values, faults) | {"norm_position": "output", "qk_norm": "all"}


OLMO2 = decoder_family(
    "olmo2",
    "Olmo2",
    FIELDS,
    config=_config,
    rows=(
        *DECODER_ROWS,
        *norm_rows(ln1_post="post_attention_layernorm", ln2_post="post_feedforward_layernorm"),
        Row("blocks.attn.q_norm.w", "{prefix}layers.{layer}.self_attn.q_norm.weight", flat_heads),
        Row("blocks.attn.k_norm.w", "{prefix}layers.{layer}.self_attn.k_norm.weight", flat_heads),
    ),
)
