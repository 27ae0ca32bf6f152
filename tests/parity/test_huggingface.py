"""Our forward pass against Hugging Face's, on tiny random models whose attention is far from uniform.

At the default scale of random weights every head attends almost evenly, and a broken mask or RoPE passes unseen; here weights are
scaled up, that the attention is peaked is asserted, and breaking a part on purpose must fail the comparison.
"""

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models import Model, generate

pytestmark = pytest.mark.parity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other libraries' own
    torch = pytest.importorskip("torch", reason="the oracle needs torch (make parity)")
    transformers = pytest.importorskip("transformers", reason="the oracle needs transformers (make parity)")

LENGTH, NEW = 33, 12
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
GPT2 = {"vocab_size": 67, "n_positions": 50, "n_embd": 30, "n_layer": 3, "n_head": 5}
LLAMA = {
    "vocab_size": 71, "max_position_embeddings": 64, "hidden_size": 30, "intermediate_size": 37, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", {**GPT2, "tie_word_embeddings": False}),
    "gpt2-inner-gelu-unscaled": (
        "gpt2", {**GPT2, "n_inner": 41, "activation_function": "gelu", "scale_attn_weights": False, "layer_norm_epsilon": 0.03},
    ),
    "llama": ("llama", {**LLAMA, "num_key_value_heads": 6}),
    "llama-grouped": ("llama", LLAMA),
    "llama-one-key-head": ("llama", {**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama3-scaling": ("llama", {**LLAMA, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear-scaling": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "llama-gelu": ("llama", {**LLAMA, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2}),
}  # fmt: skip


class Reference(NamedTuple):
    """Logits [B, T, V], residual [L + 1, B, T, D] (before each block and after the last), pattern [L, B, H, T, T]."""

    logits: np.ndarray
    residual: np.ndarray
    pattern: np.ndarray


def make(case: str, seed: int) -> Any:
    """A random model of Hugging Face with scaled-up weights."""
    kind, options = CASES[case]
    classes = {"gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel)}
    classes["llama"] = (transformers.LlamaConfig, transformers.LlamaForCausalLM)
    config = classes[kind][0](**options, attn_implementation="eager", bos_token_id=None, eos_token_id=None)
    model = classes[kind][1](config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            draw = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:
                value.copy_(
                    0.3 * draw + (1.0 if "norm" in name or ".ln_" in name else 0.0) * (not name.endswith("bias"))
                )
            elif any(part in name for part in ("q_proj", "k_proj", "c_attn")):
                fan_in = value.shape[0] if "c_attn" in name else value.shape[1]
                value.copy_(draw * (2.0 if options.get("scale_attn_weights", True) else 1.2) / fan_in**0.5)
            elif any(part in name for part in ("embed_tokens", "wte", "wpe", "lm_head")):
                value.copy_(draw)
            else:
                value.copy_(draw / value.shape[0 if kind == "gpt2" else 1] ** 0.5)
    return model


def reference(model: Any, tokens: np.ndarray, mask: np.ndarray | None = None) -> Reference:
    body = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    residual: list[Any] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        residual.append(args[0] if args else kwargs["hidden_states"])

    def after(module: Any, args: Any, out: Any) -> None:
        residual.append(out[0] if isinstance(out, tuple) else out)

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in body]
    hooks.append(body[-1].register_forward_hook(after))
    inputs = {"input_ids": torch.tensor(tokens).long()}
    if mask is not None:
        inputs |= {"attention_mask": torch.tensor(mask).long()}
        inputs |= {"position_ids": torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0)).long()}
    with torch.no_grad():
        out = model(**inputs, output_attentions=True, use_cache=False)
    for hook in hooks:
        hook.remove()
    stack = lambda values: np.stack([value.numpy() for value in values])
    return Reference(out.logits.numpy(), stack(residual), stack(out.attentions))


@functools.partial(jax.jit, static_argnums=0)
def _ours(model: Model, params: Any, tokens: Any, mask: Any) -> Any:
    return ji.run(model.forward, ji.capture("resid_pre", "resid_post", "attn.pattern"))(params, tokens, mask=mask)[:2]


@functools.partial(jax.jit, static_argnums=0)
def _continued(model: Model, params: Any, tokens: Any) -> Any:
    return generate(model, params, tokens, max_new_tokens=NEW)


def ours(lm: ji.LanguageModel, tokens: np.ndarray, mask: np.ndarray | None = None) -> Reference:
    logits, acts = _ours(lm.model, lm.params, tokens, mask)
    residual = np.concatenate([acts["resid_pre"], acts["resid_post"][-1:]])
    return Reference(np.asarray(logits), residual, np.asarray(acts["attn.pattern"]))


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over largest absolute value."""
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def huggingface_from(folder: Path) -> Any:
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@functools.cache
def folder_of(case: str, seed: int, root: Path) -> tuple[Any, Path]:
    model = make(case, seed)
    folder = root / f"{case}-{seed}"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("parity")


def some_tokens(lm: ji.LanguageModel, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, lm.config.d_vocab, (2, LENGTH)).astype(np.int32)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_logits_residual_and_patterns(case, seed, root):
    model, folder = folder_of(case, seed, root)
    lm = ji.load(folder, tokenizer=None)
    tokens = some_tokens(lm, seed)
    expected, got = reference(model, tokens), ours(lm, tokens)
    assert expected.pattern[..., LENGTH // 2 :, :].max(-1).mean() > 0.5, "attention is too uniform to notice a fault"
    assert difference(got.logits, expected.logits) < 1e-4
    assert difference(got.pattern, expected.pattern) < 1e-4
    for layer in range(lm.config.n_layers + 1):
        assert difference(got.residual[layer], expected.residual[layer]) < 1e-4, f"before block {layer}"


@pytest.mark.parametrize("case", ["gpt2", "llama-grouped", "llama3-scaling"])
def test_padding_on_the_left(case, root):
    model, folder = folder_of(case, 0, root)
    lm = ji.load(folder, tokenizer=None)
    tokens, mask = some_tokens(lm, 5), np.ones((2, LENGTH), bool)
    mask[1, :7] = False
    expected, got = reference(model, tokens, mask), ours(lm, tokens, mask)
    for b in range(2):
        rows = mask[b]
        assert difference(got.logits[b, rows], expected.logits[b, rows]) < 1e-4
        assert (
            difference(got.pattern[:, b][:, :, rows][..., rows], expected.pattern[:, b][:, :, rows][..., rows]) < 1e-4
        )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_greedy_generation(case, seed, root):
    model, folder = folder_of(case, seed, root)
    lm = ji.load(folder, tokenizer=None)
    tokens = some_tokens(lm, seed + 10)[:, :9]
    with torch.no_grad():
        settings = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
        expected = model.generate(
            torch.tensor(tokens).long(), attention_mask=torch.ones(tokens.shape, dtype=torch.long), **settings
        )
    got = _continued(lm.model, lm.params, tokens)
    assert np.array_equal(np.asarray(got), expected.numpy())


def scaled(params: Any, segment_key: str) -> Any:
    """Parameters with one norm's weight changed by a tenth, in the first layer only."""
    block = dict(params["blocks"][0])
    block[segment_key] = {**block[segment_key], "w": block[segment_key]["w"].at[0].multiply(1.1)}
    return {**params, "blocks": (block,)}


MUTATIONS = {
    "RoPE base": ("llama-grouped", lambda c: dataclasses.replace(c, rotary_base=1.1 * c.rotary_base), None),
    "RoPE left out": ("llama-grouped", lambda c: dataclasses.replace(c, positional_embedding_type="none"), None),
    "RoPE scaling left out": ("llama3-scaling", lambda c: dataclasses.replace(c, rotary_scaling=None), None),
    "RoPE scaling of another kind": (
        "llama3-scaling",
        lambda c: dataclasses.replace(c, rotary_scaling=dataclasses.replace(c.rotary_scaling, kind="linear")),
        None,
    ),
    "mask of Llama": ("llama-grouped", lambda c: dataclasses.replace(c, attention_dir="bidirectional"), None),
    "mask of GPT-2": ("gpt2", lambda c: dataclasses.replace(c, attention_dir="bidirectional"), None),
    "eps of RMSNorm": ("llama-gelu", lambda c: dataclasses.replace(c, eps=1.2 * c.eps), None),
    "eps of LayerNorm": ("gpt2-inner-gelu-unscaled", lambda c: dataclasses.replace(c, eps=3 * c.eps), None),
    "weight of RMSNorm": ("llama-grouped", None, lambda p: scaled(p, "ln1")),
    "weight of LayerNorm": ("gpt2", None, lambda p: scaled(p, "ln2")),
    "LayerNorm for RMSNorm": ("llama-grouped", lambda c: dataclasses.replace(c, normalization_type="LN"), "biases"),
    "activation": ("gpt2", lambda c: dataclasses.replace(c, act_fn="relu"), None),
    "attention scale": ("gpt2", lambda c: dataclasses.replace(c, attn_scale=1.1 / c.score_scale), None),
    "positions of GPT-2": (
        "gpt2", None, lambda p: {**p, "embed": {**p["embed"], "W_pos": jnp.roll(p["embed"]["W_pos"], 1, axis=0)}},
    ),
}  # fmt: skip


def with_norm_biases(params: Any) -> Any:
    zero = lambda norm: {**norm, "b": jnp.zeros_like(norm["w"])}
    block = {**params["blocks"][0], "ln1": zero(params["blocks"][0]["ln1"]), "ln2": zero(params["blocks"][0]["ln2"])}
    return {**params, "blocks": (block,), "ln_final": zero(params["ln_final"])}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_made_on_purpose_is_noticed(name, root):
    case, change_config, change_params = MUTATIONS[name]
    model, folder = folder_of(case, 0, root)
    lm = ji.load(folder, tokenizer=None)
    tokens = some_tokens(lm, 0)
    expected = reference(model, tokens)
    assert difference(ours(lm, tokens).logits, expected.logits) < 1e-4
    if change_config is not None:
        lm = dataclasses.replace(lm, model=Model(config=change_config(lm.config)))
    if change_params == "biases":
        lm = dataclasses.replace(lm, params=with_norm_biases(lm.params))
    elif change_params is not None:
        lm = dataclasses.replace(lm, params=change_params(lm.params))
    assert difference(ours(lm, tokens).logits, expected.logits) > 1e-3


@pytest.mark.parametrize("case", ["gpt2-untied", "llama-biases"])
def test_bfloat16_shards(case, tmp_path):
    make(case, 3).to(torch.bfloat16).save_pretrained(tmp_path / "m", max_shard_size="10KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    lm = ji.load(tmp_path / "m", tokenizer=None)
    model = huggingface_from(tmp_path / "m")
    tokens = some_tokens(lm, 3)
    assert difference(ours(lm, tokens).logits, reference(model, tokens).logits) < 1e-4


@pytest.mark.parametrize("case", ["gpt2", "llama-biases"])
def test_what_we_save_it_loads(case, root, tmp_path):
    model, folder = folder_of(case, 0, root)
    lm = ji.load(folder, tokenizer=None)
    params = jax.tree.map(lambda x: 1.01 * x, lm.params)
    saved = ji.save(dataclasses.replace(lm, params=params), tmp_path / "saved")
    back = huggingface_from(saved)
    tokens = some_tokens(lm, 0)
    expected = reference(back, tokens)
    assert difference(ours(ji.load(saved, tokenizer=None), tokens).logits, expected.logits) < 1e-4
    assert difference(reference(model, tokens).logits, expected.logits) > 1e-3


def test_a_trained_model(shared):
    model = huggingface_from(shared / "stories260k")
    lm = ji.load(shared / "stories260k")
    story = (shared / "tinystories.txt").read_text()[:900]
    tokens = np.asarray(lm.encode(story))
    expected, got = reference(model, tokens), ours(lm, tokens)
    for a, b in zip(got, expected, strict=True):
        assert difference(a, b) < 1e-4


@pytest.mark.parametrize("folder", ["stories260k", "gpt2-tokenizer"])
def test_tokenizers_agree(folder, shared):
    reference = transformers.AutoTokenizer.from_pretrained(shared / folder)
    tokenizer = ji.Tokenizer.from_folder(shared / folder)
    stories = (shared / "tinystories.txt").read_text()[:20_000].split("<|endoftext|>")
    for text in [*stories, "When Mary and John went to the store,", " naïve café — 東京 🙂", "a\n\n b\tc  "]:
        assert tokenizer.encode(text) == reference(text)["input_ids"]
