import dataclasses
import json

import pytest

from jaxinterp._errors import ConfigError
from jaxinterp.models import Model, RotaryScaling, TransformerConfig
from jaxinterp.weights import FAMILIES
from jaxinterp.weights._config import translate
from jaxinterp.weights._families import find_family
from jaxinterp.weights._family import COUNT, REQUIRED, Family, Field, Row
from jaxinterp.weights._mapping import fit

# what the hub's gpt2 and meta-llama/Llama-3.1-8B say, field for field
GPT2_SMALL = """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id":
50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
"resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
"summary_type": "cls_index", "summary_use_proj": true, "task_specific_params": {"text-generation":
{"do_sample": true, "max_length": 50}}, "vocab_size": 50257}"""
LLAMA_31 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id":
128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
"initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0,
"high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta":
500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0",
"use_cache": true, "vocab_size": 128256}"""
LLAMA3 = RotaryScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_n_ctx=8192)


def read(raw):
    return translate(raw, find_family(raw))


def test_gpt2_small():
    assert read(json.loads(GPT2_SMALL)) == TransformerConfig(
        n_layers=12, d_model=768, n_ctx=1024, n_heads=12, d_head=64, d_vocab=50257, d_mlp=3072, act_fn="gelu_new",
        normalization_type="LN", eps=1e-5, positional_embedding_type="standard", tie_word_embeddings=True,
    )  # fmt: skip


def test_llama_31():
    assert read(json.loads(LLAMA_31)) == TransformerConfig(
        n_layers=32, d_model=4096, n_ctx=131072, n_heads=32, n_key_value_heads=8, d_head=128, d_vocab=128256, d_mlp=14336,
        act_fn="silu", gated_mlp=True, normalization_type="RMS", eps=1e-5, positional_embedding_type="rotary",
        rotary_base=500000.0, rotary_scaling=LLAMA3, attention_bias=False, attention_output_bias=False, mlp_bias=False,
    )  # fmt: skip


def test_what_is_absent_means_the_reference_default():
    assert read({"model_type": "gpt2"}) == read(json.loads(GPT2_SMALL))
    llama = read({"model_type": "llama"})
    assert (llama.d_model, llama.n_ctx, llama.eps, llama.rotary_base, llama.tie_word_embeddings) == (
        4096,
        2048,
        1e-6,
        1e4,
        False,
    )
    assert llama.key_value_heads == 32


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_inner": 100}, {"d_mlp": 100}),
        ({"activation_function": "gelu"}, {"act_fn": "gelu"}),
        ({"activation_function": "gelu_pytorch_tanh"}, {"act_fn": "gelu_new"}),
        ({"activation_function": "relu"}, {"act_fn": "relu"}),
        ({"scale_attn_weights": False}, {"attn_scale": 1.0}),
        ({"tie_word_embeddings": False}, {"tie_word_embeddings": False}),
        ({"layer_norm_epsilon": 1e-3}, {"eps": 1e-3}),
    ],
)
def test_gpt2_fields_that_change_the_computation(changes, expected):
    plain = read(json.loads(GPT2_SMALL))
    assert read({**json.loads(GPT2_SMALL), **changes}) == dataclasses.replace(plain, **expected)


@pytest.mark.parametrize(
    ("changes", "base", "scaling"),
    [
        ({"rope_scaling": None}, 500000.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 500000.0, RotaryScaling(kind="linear", factor=2.0)),
        ({"rope_scaling": {"rope_type": "default"}}, 500000.0, None),
        (
            {"rope_scaling": None, "rope_theta": None, "rope_parameters": {"rope_theta": 7e5, "rope_type": "default"}},
            7e5,
            None,
        ),
        (
            {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
            5e5,
            RotaryScaling(kind="linear", factor=4.0),
        ),
        ({"rope_scaling": None, "rope_theta": 10000, "rope_parameters": None}, 10000.0, None),
        ({"partial_rotary_factor": 1.0}, 500000.0, LLAMA3),
    ],
)
def test_rope_in_all_its_spellings(changes, base, scaling):
    config = read({**json.loads(LLAMA_31), **changes})
    assert (config.rotary_base, config.rotary_scaling) == (base, scaling)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "type dynamic is not implemented; default, linear, llama3 are",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "type yarn"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "low_freq_factor is missing.*original_max_position_embeddings is missing",
        ),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor = '2' is not a number"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "beta = 1 is not understood"),
        ({"rope_parameters": {"rope_type": "default"}}, "both rope_scaling and rope_parameters"),
        (
            {"rope_scaling": None, "rope_parameters": {"rope_theta": 1e4}},
            "rope_theta is 500000.0 in one place and 10000.0 in another",
        ),
        (
            {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"rope_interleaved": True}, "rope_interleaved = True is not implemented"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not implemented"),
        ({"head_dim": None, "num_attention_heads": 31}, "hidden_size = 4096 is not a multiple"),
        ({"num_key_value_heads": 5}, "num_attention_heads = 32 is not a multiple of num_key_value_heads = 5"),
        ({"hidden_act": "swiglu"}, "hidden_act = 'swiglu' is not implemented"),
        ({"attention_bias": "yes"}, "attention_bias = 'yes' is not true or false"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 is not a whole number"),
        ({"hidden_size": "4096"}, "hidden_size = '4096'"),
        ({"vocab_size": None}, "vocab_size = None is not a whole number"),
        ({"head_dim": 7}, "rotary_dim=7 must be even"),
    ],
)
def test_llama_configs_that_are_refused(changes, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        read({**json.loads(LLAMA_31), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"add_cross_attention": True},
        {"is_encoder_decoder": True},
        {"n_ctx": 512},
        {"n_head": 7},
        {"pruned_heads": {"0": [1]}},
        {"activation_function": "mish"},
    ],
)
def test_gpt2_configs_that_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        read({**json.loads(GPT2_SMALL), **changes})


def test_every_fault_is_named_at_once():
    raw = {
        **json.loads(GPT2_SMALL),
        "window": 128,
        "quantization_config": {"bits": 4},
        "reorder_and_upcast_attn": True,
        "n_layer": 1.5,
    }
    with pytest.raises(ConfigError) as caught:
        read(raw)
    for words in (
        "window = 128",
        "quantization_config = {'bits': 4}",
        "reorder_and_upcast_attn = True",
        "n_layer = 1.5",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("raw", [{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, {}, {"model_type": 3}])
def test_an_unsupported_architecture_says_which_are_supported(raw):
    with pytest.raises(ConfigError) as caught:
        read(raw)
    for words in ("gpt2 (GPT2LMHeadModel", "llama (LlamaForCausalLM", "jaxinterp"):
        assert words in str(caught.value)
    if raw:
        assert str(raw["model_type"]) in str(caught.value)


def test_another_head_on_a_known_model_is_refused():
    with pytest.raises(ConfigError, match="GPT2ForSequenceClassification, which is not supported.*GPT2LMHeadModel"):
        read({**json.loads(GPT2_SMALL), "architectures": ["GPT2ForSequenceClassification"]})


CONFIGS = [
    TransformerConfig(n_layers=2, d_model=8, n_ctx=16, n_heads=2, d_head=4, d_vocab=11, attn_only=True, normalization_type=None),
    TransformerConfig(
        n_layers=1, d_model=8, n_ctx=16, n_heads=4, d_head=6, d_vocab=11, d_mlp=5, d_vocab_out=3, gated_mlp=True, act_fn="relu",
        n_key_value_heads=2, normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=4, rotary_scaling=LLAMA3,
        attn_scale=3.0, attention_dir="bidirectional", unembed_bias=True, final_norm=False, precision="default", eps=1e-3,
    ),
    TransformerConfig(n_layers=1, d_model=8, n_ctx=16, n_heads=2, d_head=4, d_vocab=11, d_mlp=5, tie_word_embeddings=True),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_our_own_configs_come_back(config):
    native = FAMILIES["jaxinterp"]
    text = json.dumps({"model_type": "jaxinterp", **native.describe(config)})
    assert read(json.loads(text)) == config


def test_attention_scale_divides():
    unscaled = read({**json.loads(GPT2_SMALL), "scale_attn_weights": False})
    assert unscaled.score_scale == 1.0 and read(json.loads(GPT2_SMALL)).score_scale == 1 / 8
    raw = {"model_type": "jaxinterp", **FAMILIES["jaxinterp"].describe(CONFIGS[0])}
    assert raw["attn_scale"] is None and read(raw).score_scale == 0.5
    assert read({**raw, "attn_scale": 4}).score_scale == 0.25
    with pytest.raises(ConfigError, match=r"attn_scale=0\.0 must be positive"):
        read({**raw, "attn_scale": 0})


def test_our_own_config_with_faults():
    raw = {"model_type": "jaxinterp", **FAMILIES["jaxinterp"].describe(CONFIGS[1])}
    with pytest.raises(ConfigError, match="format_version = 2 is not implemented"):
        read({**raw, "format_version": 2})
    with pytest.raises(ConfigError, match="(?s)n_layers is missing"):
        read({key: value for key, value in raw.items() if key != "n_layers"})
    with pytest.raises(ConfigError, match="rotary_scaling.*beta"):
        read({**raw, "rotary_scaling": {"kind": "linear", "factor": 2.0, "beta": 1}})
    with pytest.raises(ConfigError, match="act_fn = 'cosine' is not implemented; 'relu' or"):
        read({**raw, "act_fn": "cosine"})


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_tables_are_sound(family):
    assert not set(family.fields) & family.harmless
    for name, field in family.fields.items():
        assert (
            field.default is REQUIRED or field.default is None or not field.accepted or field.default in field.accepted
        ), name
    rows = [row.paths for row in family.rows]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        *((name, {}) for name in FAMILIES if name != "jaxinterp"),
        ("gpt2", {"tie_word_embeddings": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
    ],
)
def test_every_row_and_parameter_has_a_place(model_type, changes):
    import jax

    config = read({"model_type": model_type, **changes})
    fitted = fit(FAMILIES[model_type], config)
    paths = [path for place in fitted.places for path in place.paths]
    assert len(paths) == len(set(paths)) == len(jax.tree.leaves(Model(config=config).param_shapes()))
    assert all(len(place.names) == config.n_layers for place in fitted.places if place.layered)


def test_a_new_family_is_a_table():
    toy = Family(
        model_type="toy",
        architectures=("Toy",),
        fields={"width": Field(COUNT), "depth": Field(COUNT, 2)},
        harmless=frozenset({"model_type"}),
        same={"depth": "n_layers"},
        config=lambda values, faults: {
            "d_model": values["width"], "n_ctx": 8, "n_heads": 1, "d_head": values["width"],
            "d_vocab": 5, "attn_only": True, "normalization_type": None, "attention_bias": False, "attention_output_bias": False,
        },
        describe=lambda config: {"width": config.d_model},
        rows=(Row("*", "toy.{path}"),),
    )  # fmt: skip
    config = translate({"model_type": "toy", "width": 4}, toy)
    assert (config.n_layers, config.d_model) == (2, 4)
    assert "toy.blocks.attn.W_Q" in {place.names[0] for place in fit(toy, config).places}
    with pytest.raises(ConfigError, match="width is missing: it must be a whole number"):
        translate({"model_type": "toy"}, toy)
