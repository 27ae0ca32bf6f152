"""Tiny random models of Hugging Face's for each family, whose attention is far from uniform, and what they compute.

At the default scale of random weights every head attends almost evenly, and a broken mask or RoPE passes unseen; here weights are
scaled up. Sizes are odd where they may be, windows are far shorter than the sequences, and soft caps bite.
"""

import functools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other libraries' own
    torch = pytest.importorskip("torch", reason="the oracle needs torch (make parity)")
    transformers = pytest.importorskip("transformers", reason="the oracle needs transformers (make parity)")

LENGTH = 33
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
GPT2 = {"vocab_size": 67, "n_positions": 50, "n_embd": 30, "n_layer": 3, "n_head": 5}
NEOX = {
    "vocab_size": 69, "max_position_embeddings": 50, "hidden_size": 40, "intermediate_size": 37, "num_hidden_layers": 3,
    "num_attention_heads": 5, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
}  # fmt: skip
GPTJ = {"vocab_size": 67, "n_positions": 50, "n_embd": 40, "n_layer": 3, "n_head": 5, "rotary_dim": 6}
PLAIN = {
    "vocab_size": 71, "max_position_embeddings": 64, "hidden_size": 30, "intermediate_size": 37, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 3,
}  # fmt: skip
LLAMA = {**PLAIN, "head_dim": 10, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
QWEN = {**PLAIN, "hidden_size": 48}
GEMMA = {**PLAIN, "head_dim": 14}
GEMMA2 = {
    **GEMMA, "sliding_window": 5, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 6.0, "final_logit_softcapping": 4.0,
}  # fmt: skip
GEMMA3 = {
    **GEMMA, "sliding_window": 5, "query_pre_attn_scalar": 7, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}  # fmt: skip
BERT = {
    "vocab_size": 67, "max_position_embeddings": 50, "hidden_size": 30, "intermediate_size": 37, "num_hidden_layers": 3,
    "num_attention_heads": 5, "type_vocab_size": 3, "layer_norm_eps": 1e-3,
}  # fmt: skip
WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", {**GPT2, "tie_word_embeddings": False}),
    "gpt2-inner-gelu-unscaled": (
        "gpt2", {**GPT2, "n_inner": 41, "activation_function": "gelu", "scale_attn_weights": False, "layer_norm_epsilon": 0.03},
    ),
    "neox": ("gpt_neox", NEOX),
    "neox-in-turn": ("gpt_neox", {**NEOX, "use_parallel_residual": False, "tie_word_embeddings": True}),
    "neox-no-biases": ("gpt_neox", {**NEOX, "attention_bias": False, "rope_parameters": None, "hidden_act": "gelu_fast"}),
    "gptj": ("gptj", GPTJ),
    "gptj-tied-inner": ("gptj", {**GPTJ, "n_inner": 41, "tie_word_embeddings": True}),
    "llama": ("llama", {**LLAMA, "num_key_value_heads": 6}),
    "llama-grouped": ("llama", LLAMA),
    "llama-one-key-head": ("llama", {**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama3-scaling": ("llama", {**LLAMA, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear-scaling": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "llama-gelu": ("llama", {**LLAMA, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2}),
    "mistral": ("mistral", {**PLAIN, "head_dim": 10, "sliding_window": 7}),
    "mistral-no-window": ("mistral", {**PLAIN, "head_dim": 10, "sliding_window": None, "num_key_value_heads": 6}),
    "qwen2": ("qwen2", QWEN),
    "qwen2-windows": ("qwen2", {**QWEN, **WINDOWS, "num_key_value_heads": 6, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**PLAIN, "head_dim": 10}),
    "qwen3-windows-biases": ("qwen3", {**PLAIN, **WINDOWS, "head_dim": 10, "attention_bias": True, "num_key_value_heads": 1}),
    "gemma": ("gemma", {**GEMMA, "num_key_value_heads": 1}),
    "gemma-untied": ("gemma", {**GEMMA, "tie_word_embeddings": False, "num_key_value_heads": 6}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma2-no-caps": (
        "gemma2", {**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None, "num_key_value_heads": 6},
    ),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3-cap-no-windows": (
        "gemma3_text",
        {**GEMMA3, "layer_types": ["full_attention"] * 4, "final_logit_softcapping": 4.0, "num_key_value_heads": 6},
    ),
    "gemma3-all-windows": ("gemma3_text", {**GEMMA3, "layer_types": ["sliding_attention"] * 4}),
    "phi3": ("phi3", {**QWEN, "pad_token_id": None, "sliding_window": 9}),
    "phi3-partial": (
        "phi3", {
            **QWEN, "pad_token_id": None, "num_key_value_heads": 6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        },
    ),
    "olmo2": ("olmo2", {**QWEN, "pad_token_id": None}),
    "bert": ("bert", BERT),
    "bert-relu": ("bert", {**BERT, "hidden_act": "relu", "layer_norm_eps": 1e-12}),
}  # fmt: skip
CAUSAL = [case for case, (kind, _) in CASES.items() if kind != "bert"]
ONE_OF_EACH = [
    "gpt2", "neox", "gptj", "llama-grouped", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2", "bert",
]  # fmt: skip
"""A case of each family; its parts are those of the other cases of the family where it could have them."""


class Reference(NamedTuple):
    """Logits [B, T, V], residual [L + 1, B, T, D] (before each block and after the last), pattern [L, B, H, T, T]."""

    logits: np.ndarray
    residual: np.ndarray
    pattern: np.ndarray


QUERIES_AND_KEYS = ("q_proj", "k_proj", "c_attn", "query_key_value", "self.query", "self.key", "qkv_proj")
EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "wpe", "lm_head", "embed_out", "embeddings", "decoder.weight")


def make(case: str, seed: int) -> Any:
    """A random model of Hugging Face with scaled-up weights."""
    kind, options = CASES[case]
    none = {"bos_token_id": None, "eos_token_id": None, **({"pad_token_id": None} if kind != "bert" else {})}
    config = transformers.AutoConfig.for_model(kind, **{**none, **options})
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    sharp = 1.2 if options.get("scale_attn_weights") is False else 3.0 if kind == "bert" else 2.0
    with torch.no_grad():
        for name, value in model.named_parameters():
            draw = torch.randn(value.shape, generator=generator)
            if "q_norm" in name or "k_norm" in name:
                value.copy_(value + 0.8 * draw + 1.0)
            elif value.ndim == 1:
                value.copy_(value + 0.3 * draw)  # around one for norms, around zero for biases
            elif any(part in name for part in QUERIES_AND_KEYS):
                value.copy_(draw * sharp / value.shape[0 if "c_attn" in name else 1] ** 0.5)
            elif any(part in name for part in EMBEDDINGS):
                value.copy_(draw / value.shape[1] ** 0.5 if kind.startswith("gemma") else draw)
            else:
                value.copy_(draw / value.shape[0 if kind == "gpt2" else 1] ** 0.5)
    return model


def blocks_of(model: Any) -> Any:
    """The list of a model's blocks."""
    return max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)


def reference(model: Any, tokens: np.ndarray, mask: np.ndarray | None = None, **inputs: Any) -> Reference:
    body, residual = blocks_of(model), []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        residual.append(args[0] if args else kwargs["hidden_states"])

    def after(module: Any, args: Any, out: Any) -> None:
        residual.append(out[0] if isinstance(out, tuple) else out)

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in body]
    hooks.append(body[-1].register_forward_hook(after))
    arguments = {"input_ids": torch.tensor(tokens).long(), **{k: torch.tensor(v).long() for k, v in inputs.items()}}
    if mask is not None:
        arguments |= {"attention_mask": torch.tensor(mask).long()}
        arguments |= {"position_ids": torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0)).long()}
    if "token_type_ids" not in arguments and model.config.model_type != "bert":
        arguments["use_cache"] = False
    with torch.no_grad():
        out = model(**arguments, output_attentions=True)
    for hook in hooks:
        hook.remove()
    stack = lambda values: np.stack([value.float().numpy() for value in values])
    return Reference(out.logits.float().numpy(), stack(residual), stack(out.attentions))


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over largest absolute value."""
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@functools.cache
def folder_of(case: str, seed: int, root: Path) -> tuple[Any, Path]:
    """A model, and the folder that it was saved to."""
    model = make(case, seed)
    folder = root / f"{case}-{seed}"
    model.save_pretrained(folder)
    return model, folder
