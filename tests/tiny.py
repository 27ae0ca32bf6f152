"""Tiny transformers for tests, with weights so large that attention is far from uniform and no bias or norm is idle."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji

BASE = dict(n_layers=3, d_model=8, n_ctx=12, n_heads=4, d_head=4, d_vocab=11, d_mlp=12)


_ROTARY = dict(positional_embedding_type="rotary")
_LLAMA = dict(
    **_ROTARY, normalization_type="RMS", n_key_value_heads=2, gated_mlp=True, act_fn="silu", attention_bias=False,
    attention_output_bias=False, mlp_bias=False,
)  # fmt: skip
_WINDOWS = dict(window_size=2, attn_types=("local", "global", "local"))
_GEMMA = dict(_LLAMA, act_fn="gelu_new", norm_weight_offset=1.0, embed_scale=8**0.5, tie_word_embeddings=True, d_head=6)
_GEMMA2 = dict(_GEMMA, **_WINDOWS, norm_position="sandwich", attn_scale=1.5, output_logits_soft_cap=4.0)
FAMILIES = {
    "gpt2": dict(act_fn="gelu_new", tie_word_embeddings=True),
    "gpt_neox": dict(**_ROTARY, rotary_dim=2, parallel_attn_mlp=True),
    "gptj": dict(
        **_ROTARY, rotary_dim=2, rotary_adjacent_pairs=True, parallel_attn_mlp=True, shared_norm=True, attention_bias=False,
        attention_output_bias=False, unembed_bias=True,
    ),
    "llama": _LLAMA,
    "mistral": dict(_LLAMA, window_size=2),
    "qwen2": dict(_LLAMA, attention_bias=True),
    "qwen3": dict(_LLAMA, qk_norm="head"),
    "gemma": dict(_GEMMA, n_key_value_heads=1),
    "gemma2": dict(_GEMMA2, attn_scores_soft_cap=2.0),
    "gemma3_text": dict(_GEMMA2, qk_norm="head", rotary_base_local=50.0),
    "phi3": dict(_LLAMA, rotary_dim=2, window_size=3),
    "olmo2": dict(_LLAMA, norm_position="output", qk_norm="all"),
    "bert": dict(
        attention_dir="bidirectional", norm_position="post", final_norm=False, embed_norm=True, n_token_types=2, mlm_head=True,
        unembed_bias=True, tie_word_embeddings=True,
    ),
}  # fmt: skip
"""What makes a config of BASE one of a family that `jaxinterp.weights` reads."""


def make_model(**changes) -> ji.Model:
    return ji.Model(config=ji.TransformerConfig(**(BASE | changes)))


def make_params(model, seed=0, dtype=jnp.float32):
    """Random numbers everywhere: weights, biases, norms."""
    rng = np.random.default_rng(seed)

    def leaf(path, spec):
        name = path[-1].key
        noise = rng.normal(size=spec.shape)
        if name == "w":
            return jnp.asarray(1 - model.config.norm_weight_offset + 0.3 * noise, dtype)
        spread = {"W_E": 1.0, "W_pos": 1.0, "W_Q": 0.8, "W_K": 0.8}.get(name, 0.3)
        return jnp.asarray(spread * noise, dtype)

    return jax.tree_util.tree_map_with_path(leaf, model.param_shapes())


def make_tokens(batch=2, length=6, seed=0, vocab=11):
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, (batch, length)), jnp.int32)


def check_close(got, want, tolerance=1e-5):
    """Max abs difference over max abs value of the reference."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    assert np.isfinite(got).all() and np.isfinite(want).all()
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    assert error <= tolerance, error


def check_same(got, want):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
