"""Llama 2, 3 and 3.1+: rotary positions (plain, linear or llama3 scaling), RMSNorm, gated MLP, grouped keys and values."""

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
from jaxinterp.weights._family import FLAG, NUMBER, Family, Field

FIELDS = {
    **decoder_fields(
        vocab_size=32000,
        max_position_embeddings=2048,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=11008,
    ),
    "attention_bias": Field(FLAG, False),
    "mlp_bias": Field(FLAG, False),
    "partial_rotary_factor": Field(NUMBER, None, (None, 1.0)),
    "rope_interleaved": Field(FLAG, False, (False,)),
}

LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    fields=FIELDS,
    harmless=HARMLESS | {"is_llama_config"},
    config=decoder_config,
    describe=decoder_describe(FIELDS),
    rows=(*DECODER_ROWS, *PRE_NORM_ROWS),
    spellings=SPELLINGS,
    buffers=BUFFERS,
    twins=TWINS,
)
