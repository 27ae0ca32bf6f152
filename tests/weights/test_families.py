"""The tables of the families: configs as the hub has them, checkpoints there and back (tests/parity has what they compute)."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxinterp as ji
from jaxinterp.models import Model, TransformerConfig
from jaxinterp.weights._config import translate
from jaxinterp.weights._families import FAMILIES, find_family
from tests.tiny import BASE, make_params
from tests.tiny import FAMILIES as CONFIGS

DECODER = {
    "hidden_act": "silu", "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16", "attention_dropout": 0.0,
    "transformers_version": "4.40.1", "rope_scaling": None,
}  # fmt: skip
GEMMA = {
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": 1, "rms_norm_eps": 1e-6, "head_dim": 256,
}  # fmt: skip
HUB = {
    "EleutherAI/pythia-70m": {
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
        "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
    },
    "EleutherAI/gpt-j-6b": {
        "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.0, "bos_token_id": 50256,
        "embd_pdrop": 0.0, "eos_token_id": 50256, "gradient_checkpointing": False, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28,
        "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
        "summary_use_proj": True, "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer", "use_cache": True,
        "vocab_size": 50400,
    },
    "mistralai/Mistral-7B-v0.1": {
        **DECODER, "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "Qwen/Qwen2.5-0.5B": {
        **DECODER, "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643, "hidden_size": 896,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False,
        "use_sliding_window": False, "vocab_size": 151936,
    },
    "Qwen/Qwen3-0.6B": {
        **DECODER, "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_size": 1024, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
    },
    "google/gemma-2b": {
        **DECODER, **GEMMA, "architectures": ["GemmaForCausalLM"], "hidden_act": "gelu", "hidden_activation": None,
        "hidden_size": 2048, "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma",
        "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "rope_theta": 10000.0,
        "vocab_size": 256000,
    },
    "google/gemma-2-2b": {
        **DECODER, **GEMMA, "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "hidden_size": 2304, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
        "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rope_theta": 10000.0, "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "google/gemma-3-1b-pt": {
        **{k: v for k, v in (DECODER | GEMMA).items() if k != "hidden_act"}, "architectures": ["Gemma3ForCausalLM"],
        "attn_logit_softcapping": None, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": None, "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262144,
    },
    "microsoft/Phi-3-mini-4k-instruct": {
        **DECODER, "architectures": ["Phi3ForCausalLM"], "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "attention_bias": False, "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "pad_token_id": 32000,
        "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 2047,
        "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "allenai/OLMo-2-1124-7B": {
        **DECODER, "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "eos_token_id": 100257,
        "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "olmo2",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277,
        "rms_norm_eps": 1e-06, "rope_theta": 500000, "tie_word_embeddings": False, "vocab_size": 100352,
    },
    "google-bert/bert-base-uncased": {
        "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
        "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
    },
}  # fmt: skip
PARAMETERS = {
    "EleutherAI/pythia-70m": 70_426_624, "EleutherAI/gpt-j-6b": 6_050_882_784, "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen3-0.6B": 596_049_920, "google/gemma-2b": 2_506_172_416,
    "google/gemma-2-2b": 2_614_341_888, "google/gemma-3-1b-pt": 999_885_952, "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "allenai/OLMo-2-1124-7B": 7_298_617_344, "google-bert/bert-base-uncased": 109_514_298,
}  # fmt: skip
"""As the models' pages count them."""


def read(raw):
    return translate(raw, find_family(raw))


@pytest.mark.parametrize("name", HUB)
def test_a_config_of_the_hub_is_understood_and_has_as_many_parameters(name):
    config = read(HUB[name])
    assert (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(Model(config=config).param_shapes())) == PARAMETERS[name]
    )


def test_what_is_special_about_some():
    gemma3 = read(HUB["google/gemma-3-1b-pt"])
    assert [i for i, local in enumerate(gemma3.is_local) if not local] == [5, 11, 17, 23]
    assert (gemma3.window_size, gemma3.rotary_base, gemma3.rotary_base_local) == (512, 1e6, 1e4)
    gemma2 = read(HUB["google/gemma-2-2b"])
    assert gemma2.is_local[:3] == (True, False, True) and gemma2.attn_scale == 16 and gemma2.embed_scale == 48
    assert read(HUB["google/gemma-2b"]).act_fn == "gelu_new"
    assert read(HUB["EleutherAI/pythia-70m"]).rotary_features == 16
    assert read(HUB["Qwen/Qwen2.5-0.5B"]).window_size is None
    assert all(read(HUB["mistralai/Mistral-7B-v0.1"]).is_local)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("google/gemma-2-2b", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not implemented"),
        ("google/gemma-2-2b", {"layer_types": ["chunked_attention"] * 26}, "names chunked_attention"),
        ("google/gemma-2-2b", {"layer_types": ["full_attention"]}, "1 entries for 26 layers"),
        ("google/gemma-2-2b", {"layer_types": 3}, "layer_types = 3 is not a list of texts"),
        ("google/gemma-2-2b", {"sliding_window": None}, "there is no sliding_window"),
        ("google/gemma-3-1b-pt", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not implemented"),
        ("google/gemma-3-1b-pt", {"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters has rope_theta"),
        ("EleutherAI/pythia-70m", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type dynamic is not implemented"),
        ("EleutherAI/pythia-70m", {"hidden_size": 511}, "hidden_size = 511 is not a multiple"),
        ("EleutherAI/gpt-j-6b", {"rotary": False}, "rotary = False is not implemented"),
        ("mistralai/Mistral-7B-v0.1", {"num_experts": 8}, "not understood.*num_experts = 8"),
        ("mistralai/Mistral-7B-v0.1", {"sliding_window": 0}, "sliding_window = 0 is not a whole number"),
        ("Qwen/Qwen2.5-0.5B", {"use_mrope": True}, "use_mrope = True is not implemented"),
        (
            "microsoft/Phi-3-mini-4k-instruct",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            "type longrope is not implemented",
        ),
        ("google-bert/bert-base-uncased", {"is_decoder": True}, "is_decoder = True is not implemented"),
        ("google-bert/bert-base-uncased", {"position_embedding_type": "relative_key"}, "'relative_key' is not implemented"),
        ("google-bert/bert-base-uncased", {"architectures": ["BertForSequenceClassification"]}, "BertForSequenceClass"),
    ],
)  # fmt: skip
def test_an_unknown_variant_is_refused(name, changes, words):
    with pytest.raises(ji.ConfigError, match=words):
        read(HUB[name] | changes)


def model_of(family):
    """Heads as wide as the families without a field for it have them."""
    changes = CONFIGS[family] | ({} if "gemma" in family else {"d_model": 16})
    model = ji.Model(config=TransformerConfig(**(BASE | changes)))
    return ji.LanguageModel(model=model, params=make_params(model, 5))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_comes_back_from_its_family_and_from_our_own_layout(family, tmp_path):
    lm = model_of(family)
    for layout in (family, "jaxinterp"):
        folder = ji.save(lm, tmp_path / layout, family=layout)
        back = ji.load(folder, tokenizer=None)
        assert back.source["family"] == layout
        assert jax.tree.structure(back.params) == jax.tree.structure(lm.params)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back.params, lm.params)))
        again = ji.save(back, tmp_path / f"{layout}-again")
        for path in folder.iterdir():
            assert (again / path.name).read_bytes() == path.read_bytes()
        assert layout != "jaxinterp" or back.config == lm.config
        tokens = np.array([[1, 2, 3, 4, 5, 6]], np.int32)
        expected = lm.model.forward(lm.params, jax.numpy.asarray(tokens))
        np.testing.assert_allclose(
            back.model.forward(back.params, jax.numpy.asarray(tokens)), expected, atol=1e-5 * float(abs(expected).max())
        )


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("jaxinterp", "gpt2")])
def test_a_family_that_cannot_say_what_the_model_is_refuses(family, tmp_path):
    lm = model_of("gpt2")
    with pytest.raises(ji.InputError, match="cannot say what this model is"):
        ji.save(lm, tmp_path / "x", family=family)


def test_bert_in_its_old_spelling_with_its_other_head(tmp_path):
    lm = model_of("bert")
    folder = ji.save(lm, tmp_path / "new", family="bert")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    renamed = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )
    old = {renamed(name): value for name, value in tensors.items()}
    assert set(old) != set(tensors)
    d = lm.config.d_model
    old |= {"bert.pooler.dense.weight": np.ones((d, d), np.float32), "bert.pooler.dense.bias": np.ones(d, np.float32)}
    old |= {
        "cls.seq_relationship.weight": np.ones((2, d), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
    }
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"]
    old["bert.embeddings.position_ids"] = np.arange(lm.config.n_ctx)[None]
    safetensors.numpy.save_file(old, folder / "model.safetensors")
    back = ji.load(folder, tokenizer=None)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back.params, lm.params)))
    assert (ji.save(back, tmp_path / "again") / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    old["bert.embeddings.position_ids"] = np.arange(1, lm.config.n_ctx + 1)[None]
    safetensors.numpy.save_file(old, folder / "model.safetensors")
    with pytest.raises(ji.WeightsError, match="position_ids: it does not count from 0"):
        ji.load(folder, tokenizer=None)


def test_a_bidirectional_model_predicts_at_its_mask(tmp_path):
    lm = model_of("bert")
    with pytest.raises(ji.InputError, match="predicts the token at a position.*0 mask tokens"):
        lm.predict([1, 2, 3])
    logits = np.asarray(lm.model.forward(lm.params, jax.numpy.asarray([[1, 2, 3]])))[0, 1]
    assert [row.id for row in lm.predict([1, 2, 3], k=3, position=1).rows] == np.argsort(-logits)[:3].tolist()
    with pytest.raises(ji.InputError, match="position = 3 is not legal: the prompt has 3 tokens, 0 to 2"):
        lm.predict([1, 2, 3], position=3)
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "a": 4, "b": 5}
    backend = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [
            {"id": i, "content": w, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for w, i in words.items() if "[" in w
        ],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }  # fmt: skip
    folder = ji.save(lm, tmp_path / "m", family="bert")
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    (folder / "tokenizer_config.json").write_text('{"mask_token": "[MASK]"}')
    read_back = ji.load(folder)
    ids = np.array([[1, 4, 3, 5, 2]], np.int32)
    logits = np.asarray(lm.model.forward(lm.params, jax.numpy.asarray(ids)))[0, 2]
    assert read_back.predict("a [MASK] b", k=2).rows[0].id == int(np.argmax(logits))


def test_compute_dtype_is_not_part_of_a_checkpoint(tmp_path):
    lm = model_of("llama")
    half = dataclasses.replace(lm, model=Model(config=dataclasses.replace(lm.config, compute_dtype="bfloat16")))
    folder = ji.save(half, tmp_path / "m", family="llama")
    assert ji.load(folder, tokenizer=None).config.compute_dtype is None
    back = ji.load(folder, tokenizer=None, compute_dtype="bfloat16")
    assert back.config.compute_dtype == "bfloat16" and back.params["embed"]["W_E"].dtype == "float32"
    logits, acts = back.run_with_cache([1, 2, 3], "resid_post", "final.in")
    assert (logits.dtype, acts["resid_post"].dtype) == ("float32", "bfloat16")
    ji.save(back, tmp_path / "again")
    with pytest.raises(ji.InputError, match="dtype = 'float64' is not legal"):
        ji.load(folder, tokenizer=None, compute_dtype="float64")
