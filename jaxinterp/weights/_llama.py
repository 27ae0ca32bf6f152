"""Llama 2, 3 and 3.1+: rotary positions (plain, linear or llama3 scaling), RMSNorm, gated MLP, grouped keys and values."""

from jaxinterp.weights._decoder import decoder_family, decoder_fields
from jaxinterp.weights._family import FLAG, NUMBER, Field

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

LLAMA = decoder_family("llama", "Llama", FIELDS, harmless=("is_llama_config",))
