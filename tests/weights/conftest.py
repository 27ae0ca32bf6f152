"""Small checkpoint folders as other tools write them: random weights, odd sizes, a byte-level tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

GPT2_CONFIG = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 261, "n_positions": 24, "n_ctx": 24, "n_embd": 12,
    "n_layer": 3, "n_head": 2, "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02, "bos_token_id": 256, "eos_token_id": 256, "attn_pdrop": 0.1, "torch_dtype": "float32",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
LLAMA_CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 261, "max_position_embeddings": 32,
    "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
    "head_dim": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 5000.0, "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False, "attention_dropout": 0.0, "torch_dtype": "float32", "transformers_version": "5.0.0",
}  # fmt: skip


def gpt2_tensors(config: dict[str, Any], prefix: str = "transformer.") -> dict[str, tuple[int, ...]]:
    """Names and shapes as GPT-2's reference implementation has them, written out by hand."""
    d, f, shapes = config["n_embd"], config["n_inner"] or 4 * config["n_embd"], {}
    for i in range(config["n_layer"]):
        h = f"{prefix}h.{i}."
        shapes |= {
            h + "ln_1.weight": (d,), h + "ln_1.bias": (d,),
            h + "attn.c_attn.weight": (d, 3 * d), h + "attn.c_attn.bias": (3 * d,),
            h + "attn.c_proj.weight": (d, d), h + "attn.c_proj.bias": (d,), h + "ln_2.weight": (d,), h + "ln_2.bias": (d,),
            h + "mlp.c_fc.weight": (d, f), h + "mlp.c_fc.bias": (f,), h + "mlp.c_proj.weight": (f, d),
            h + "mlp.c_proj.bias": (d,),
        }  # fmt: skip
    shapes[prefix + "wte.weight"], shapes[prefix + "wpe.weight"] = (config["vocab_size"], d), (config["n_positions"], d)
    shapes[prefix + "ln_f.weight"] = shapes[prefix + "ln_f.bias"] = (d,)
    if config.get("tie_word_embeddings") is False:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    return shapes


def llama_tensors(config: dict[str, Any], prefix: str = "model.") -> dict[str, tuple[int, ...]]:
    """Names and shapes as Llama's reference implementation has them, written out by hand."""
    d, f, e = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    h, k, shapes = config["num_attention_heads"] * e, config["num_key_value_heads"] * e, {}
    for i in range(config["num_hidden_layers"]):
        b = f"{prefix}layers.{i}."
        sizes = {"self_attn.q": (h, d), "self_attn.k": (k, d), "self_attn.v": (k, d), "self_attn.o": (d, h)}
        sizes |= {"mlp.gate": (f, d), "mlp.up": (f, d), "mlp.down": (d, f)}
        for name, shape in sizes.items():
            shapes[f"{b}{name}_proj.weight"] = shape
            if config["attention_bias" if "attn" in name else "mlp_bias"]:
                shapes[f"{b}{name}_proj.bias"] = shape[:1]
        shapes[b + "input_layernorm.weight"] = shapes[b + "post_attention_layernorm.weight"] = (d,)
    shapes[prefix + "embed_tokens.weight"], shapes[prefix + "norm.weight"] = (config["vocab_size"], d), (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    return shapes


def byte_tokenizer() -> str:
    """A tokenizer.json with one token a byte and one special token, 256."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer.to_str()


class Checkpoint:
    """A folder under construction: change `config` and `tensors`, then `write`."""

    def __init__(self, folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], seed: int = 0):
        rng = np.random.default_rng(seed)
        self.folder, self.config = folder, config
        self.tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def cast(self, dtype: Any) -> "Checkpoint":
        self.tensors = {name: value.astype(dtype) for name, value in self.tensors.items()}
        return self

    def write(self, *, shards: int = 1, tokenizer: bool = True) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.config, indent=2))
        if tokenizer:
            (self.folder / "tokenizer.json").write_text(byte_tokenizer())
            (self.folder / "tokenizer_config.json").write_text(
                '{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}'
            )
            (self.folder / "generation_config.json").write_text('{"eos_token_id": 256}')
        if shards == 1:
            safetensors.numpy.save_file(self.tensors, self.folder / "model.safetensors", {"format": "pt"})
            return self.folder
        files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        placed = {name: files[i % shards] for i, name in enumerate(self.tensors)}
        for file in files:
            part = {name: value for name, value in self.tensors.items() if placed[name] == file}
            safetensors.numpy.save_file(part, self.folder / file, {"format": "pt"})
        total = sum(value.nbytes for value in self.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return self.folder


@pytest.fixture
def gpt2(tmp_path: Path) -> Callable[..., Checkpoint]:
    """`gpt2(prefix="transformer.", **config)`: a random GPT-2 checkpoint, not yet written."""

    def make(prefix: str = "transformer.", **changes: Any) -> Checkpoint:
        config = {**GPT2_CONFIG, **changes}
        return Checkpoint(tmp_path / "tiny-gpt2", config, gpt2_tensors(config, prefix))

    return make


@pytest.fixture
def llama(tmp_path: Path) -> Callable[..., Checkpoint]:
    """`llama(prefix="model.", **config)`: a random Llama checkpoint, not yet written."""

    def make(prefix: str = "model.", **changes: Any) -> Checkpoint:
        config = {**LLAMA_CONFIG, **changes}
        return Checkpoint(tmp_path / "tiny-llama", config, llama_tensors(config, prefix))

    return make


@pytest.fixture
def bfloat16() -> np.dtype:
    return np.dtype(jnp.bfloat16)
