"""Configs refuse what contradicts itself, all faults in one message."""

import dataclasses

import numpy as np
import pytest

import jaxinterp as ji
from tests.tiny import BASE


def make(**changes):
    return ji.TransformerConfig(**(BASE | changes))


def untyped(cls, **fields):
    """What a caller gets without a type checker, which in this session would be the first to object."""
    config = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(config, field.name, fields.get(field.name, field.default))
    config.__post_init__()
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(act_fn="swish"), "act_fn='swish'; legal: 'relu', 'gelu', 'gelu_new', 'silu'"),
        (dict(normalization_type="LNPre"), "legal: 'LN', 'RMS', None"),
        (dict(positional_embedding_type="shortformer"), "legal: 'standard', 'rotary', 'none'"),
        (dict(attention_dir="left"), "legal: 'causal', 'bidirectional'"),
        (dict(precision="float64"), "legal: 'default', 'high', 'highest'"),
        (dict(n_layers=0), "n_layers=0 must be at least 1"),
        (dict(n_key_value_heads=0), "n_key_value_heads=0 must be at least 1"),
        (dict(n_key_value_heads=3), "n_heads=4 is not a multiple of n_key_value_heads=3"),
        (dict(d_mlp=None), "attn_only=False contradicts d_mlp=None"),
        (dict(attn_only=True), "attn_only=True contradicts d_mlp=12"),
        (dict(positional_embedding_type="rotary", rotary_dim=3), "rotary_dim=3 must be even"),
        (dict(positional_embedding_type="rotary", rotary_dim=6), "at most d_head=4"),
        (dict(positional_embedding_type="rotary", d_head=3), "must be even"),
        (dict(rotary_dim=2), "rotary_dim=2.*'standard'"),
        (dict(gated_mlp=True, attn_only=True, d_mlp=None), "gated_mlp"),
        (dict(tie_word_embeddings=True, d_vocab_out=7), "tie_word_embeddings"),
        (dict(eps=-1.0), "eps=-1.0"),
        (dict(attn_types=("local", "global", "global")), "names local layers, and there is no window_size"),
        (dict(window_size=3, attn_types=("global",)), "attn_types has 1 entries for n_layers=3"),
        (dict(window_size=3, attn_types=("global",) * 3), "window_size=3 would do nothing"),
        (dict(window_size=3, attn_types=("global", "local", "near")), "legal: 'global', 'local'"),
        (dict(window_size=3, attn_types=["local"] * 3), "is a list; give a tuple"),
        (dict(window_size=0), "window_size=0 must be at least 1"),
        (dict(window_size=3, attention_dir="bidirectional"), "windows look back only"),
        (dict(positional_embedding_type="rotary", rotary_base_local=10.0), "no layer is local"),
        (dict(rotary_adjacent_pairs=True), "rotary_adjacent_pairs=True would do nothing"),
        (dict(attn_scores_soft_cap=0.0), "attn_scores_soft_cap=0.0 must be positive"),
        (dict(output_logits_soft_cap=-1.0), "output_logits_soft_cap=-1.0 must be positive"),
        (dict(norm_position="post", normalization_type=None), "norm_position='post' would do nothing"),
        (dict(norm_position="sandwich", parallel_attn_mlp=True), "is not implemented"),
        (dict(norm_position="after"), "legal: 'pre', 'sandwich', 'output', 'post'"),
        (dict(shared_norm=True), "shared_norm=True is for parallel_attn_mlp=True"),
        (dict(mlm_head=True, normalization_type=None), "need a normalization_type"),
        (dict(n_token_types=0), "n_token_types=0"),
        (dict(compute_dtype="float64"), "legal: 'float32', 'bfloat16', 'float16', None"),
        (dict(attn_scale=0.0), "attn_scale=0.0 must be positive.*divided by it"),
        (dict(attn_scale=-2.0), "attn_scale=-2.0 must be positive.*divided by it"),
        (dict(attn_scale=float("nan")), "attn_scale=nan must be positive.*divided by it"),
    ],
)
def test_a_contradiction_is_an_error(changes, message):
    with pytest.raises(ji.ConfigError, match=message):
        untyped(ji.TransformerConfig, **(BASE | changes))


def test_all_faults_are_told_together():
    with pytest.raises(ji.ConfigError, match="d_model=0.*tie_word.*multiple"):
        make(d_model=0, n_key_value_heads=3, tie_word_embeddings=True, d_vocab_out=7)


def test_scaling_is_checked():
    for changes in (dict(kind="yarn"), dict(factor=0.0), dict(low_freq_factor=4.0)):
        with pytest.raises(ji.ConfigError):
            untyped(ji.RotaryScaling, **(dict(kind="llama3", factor=8.0) | changes))


def test_a_config_is_frozen_and_hashable():
    config = make(positional_embedding_type="rotary", rotary_scaling=ji.RotaryScaling(kind="linear", factor=2.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layers = 7
    assert hash(config) == hash(dataclasses.replace(config)) and config != make()


def test_derived_sizes():
    config = make()
    assert (config.key_value_heads, config.outputs, config.rotary_features, config.score_scale) == (4, 11, 0, 0.5)
    config = make(n_key_value_heads=2, d_vocab_out=3, positional_embedding_type="rotary", rotary_dim=2, attn_scale=4.0)
    assert (config.key_value_heads, config.outputs, config.rotary_features, config.score_scale) == (2, 3, 2, 0.25)


def test_frequencies_follow_the_scaling():
    rotary = dict(positional_embedding_type="rotary", d_head=64)
    plain = make(**rotary).frequencies()
    np.testing.assert_allclose(
        make(**rotary, rotary_scaling=ji.RotaryScaling(kind="linear", factor=4.0)).frequencies(), plain / 4
    )
    stretched = make(
        **rotary, rotary_scaling=ji.RotaryScaling(kind="llama3", factor=8.0, original_n_ctx=64)
    ).frequencies()
    np.testing.assert_allclose(stretched[0], plain[0])
    np.testing.assert_allclose(stretched[-1], plain[-1] / 8, rtol=1e-6)
