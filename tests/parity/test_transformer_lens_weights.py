"""Weights from TransformerLens and back, and weight processing, against TransformerLens itself on tiny random models.

Its models get random numbers everywhere (its own zero biases and unit norms would hide faults), large in queries and keys.
"""

import dataclasses
import functools
import importlib
import types
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from tests.tiny import check_close

pytestmark = pytest.mark.parity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other libraries' own
    torch = pytest.importorskip("torch", reason="the oracle needs torch (make parity)")
    transformer_lens = pytest.importorskip("transformer_lens", reason="the oracle is transformer-lens (make parity)")

BASE = dict(n_layers=3, d_model=24, n_ctx=16, n_heads=4, d_head=6, d_mlp=20, d_vocab=41)
GPT2 = (dict(act_fn="gelu_new", normalization_type="LN"), dict(act_fn="gelu_new", unembed_bias=True))
ROTARY = dict(positional_embedding_type="rotary", rotary_dim=6, rotary_base=5000)
RMS = dict(act_fn="silu", normalization_type="RMS", gated_mlp=True, **ROTARY)
OURS_RMS = RMS | dict(rotary_base=5000.0, unembed_bias=True, rotary_dim=None)
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # TransformerLens's config and ours
    "gpt2": GPT2,
    "llama": (RMS | dict(n_key_value_heads=2), OURS_RMS | dict(n_key_value_heads=2)),
    "attention only": (GPT2[0] | dict(attn_only=True), GPT2[1] | dict(attn_only=True, d_mlp=None)),
    "gptj": (
        ROTARY | dict(act_fn="gelu_new", normalization_type="LN", parallel_attn_mlp=True, rotary_dim=4,
                      rotary_adjacent_pairs=True),
        dict(act_fn="gelu_new", positional_embedding_type="rotary", rotary_dim=4, rotary_base=5000.0, rotary_adjacent_pairs=True,
             parallel_attn_mlp=True, shared_norm=True, unembed_bias=True),
    ),
    "neox": (
        ROTARY | dict(act_fn="gelu", normalization_type="LN", parallel_attn_mlp=True, rotary_dim=2),
        dict(act_fn="gelu", positional_embedding_type="rotary", rotary_dim=2, rotary_base=5000.0, parallel_attn_mlp=True,
             unembed_bias=True),
    ),
    "gemma2": (
        RMS | dict(use_normalization_before_and_after=True, attn_scores_soft_cap=5.0, output_logits_soft_cap=3.0,
                   use_qk_norm=True, use_local_attn=True, window_size=3, attn_types=["local", "global", "local"]),
        OURS_RMS | dict(norm_position="sandwich", attn_scores_soft_cap=5.0, output_logits_soft_cap=3.0, qk_norm="head",
                        window_size=3, attn_types=("local", "global", "local"), norm_weight_offset=1.0, embed_scale=24**0.5),
    ),
    "olmo2": (
        RMS | dict(original_architecture="Olmo2ForCausalLM"), OURS_RMS | dict(norm_position="output", qk_norm="all"),
    ),
}  # fmt: skip
ENCODER = dict(
    act_fn="gelu", norm_position="post", final_norm=False, attention_dir="bidirectional", embed_norm=True, n_token_types=2,
    mlm_head=True, unembed_bias=True,
)  # fmt: skip


def fill(model: Any, seed: int, kind: str = "") -> None:
    """Random numbers in every parameter, the same in GPT-J's two norms; no zeros that a config could do without."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = rng.normal(size=tuple(parameter.shape))
            last = name.rsplit(".", 1)[-1]
            spread = {"W_E": 1.0, "W_pos": 1.0, "W_Q": 0.5, "W_K": 0.5, "_W_K": 0.5}.get(last, 0.25)
            value = 1 + 0.3 * noise if last == "w" else spread * noise
            if kind == "gptj" and ".ln2." in name:
                value = model.state_dict()[name.replace("ln2", "ln1")].numpy()
            parameter.copy_(torch.tensor(value))


@functools.cache
def pair(kind: str) -> tuple[Any, ji.Model]:
    theirs, ours = SHAPES[kind]
    config = transformer_lens.HookedTransformerConfig(**BASE | theirs, device="cpu", dtype=torch.float32, seed=0)
    model = transformer_lens.HookedTransformer(config).eval()
    fill(model, 1, kind)
    return model, ji.Model(config=ji.TransformerConfig(**BASE | ours))


def arrays(state_dict: Any) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in state_dict.items()}


def tokens(batch: int = 2, length: int = 9) -> np.ndarray:
    return np.random.default_rng(5).integers(0, BASE["d_vocab"], (batch, length)).astype(np.int32)


def their_logits(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(tokens()).long()).numpy()


@pytest.mark.parametrize("kind", SHAPES)
def test_the_same_logits_from_a_state_dict_and_back(kind):
    oracle, model = pair(kind)
    state = arrays(oracle.state_dict())
    params = ji.weights.from_transformer_lens(oracle.state_dict() if kind == "gpt2" else state, model.config)
    logits = jax.jit(model.forward)(params, jnp.asarray(tokens()))
    check_close(logits, their_logits(oracle))
    back = ji.weights.to_transformer_lens(params, model.config)
    learned = {name for name, _ in oracle.named_parameters()}
    assert set(back) == learned
    for name in learned - ({n for n in learned if ".mlp.b_" in n} if model.config.gated_mlp else set()):
        check_close(back[name], state[name], 1e-6)
    with torch.no_grad():
        oracle.load_state_dict({name: torch.tensor(value) for name, value in back.items()}, strict=False)
    check_close(logits, their_logits(oracle))


@functools.cache
def encoder() -> tuple[Any, ji.Model]:
    config = transformer_lens.HookedTransformerConfig(
        **BASE, act_fn="gelu", attention_dir="bidirectional", normalization_type="LN", device="cpu", seed=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        oracle = transformer_lens.HookedEncoder(config).eval()
    fill(oracle, 2)
    return oracle, ji.Model(config=ji.TransformerConfig(**BASE | ENCODER))


def test_an_encoder_with_padding():
    oracle, model = encoder()
    state = arrays(oracle.state_dict())
    params = ji.weights.from_transformer_lens(state, model.config)
    mask = np.arange(9)[None] < np.array([[9], [5]])
    kinds = (tokens() % 2).astype(np.int32)
    with torch.inference_mode():
        given = dict(token_type_ids=torch.tensor(kinds).long(), one_zero_attention_mask=torch.tensor(mask.astype(int)))
        logits = oracle(torch.tensor(tokens()).long(), **given).numpy()
    ours = jax.jit(model.forward)(params, tokens(), mask=jnp.asarray(mask), token_types=jnp.asarray(kinds))
    check_close(np.asarray(ours)[mask], logits[mask])
    back = ji.weights.to_transformer_lens(params, model.config)
    assert set(state) - set(back) == {
        n for n in state if n.startswith(("pooler", "nsp_head")) or n.endswith(("mask", "IGNORE"))
    }
    assert all(np.array_equal(back[name], state[name]) for name in back)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gptj", "neox", "attention only"])
def test_processing_is_theirs(kind):
    """All four steps, tensor by tensor, with their norms that have no weights read as ours that have unit ones."""
    oracle, model = pair(kind)
    if model.config.gated_mlp:  # their b_in, which fold_ln leaves behind the product, is no part of Llama
        state = {n: torch.zeros_like(v) if n.endswith(("b_in", "b_out")) else v for n, v in oracle.state_dict().items()}
    else:
        state = dict(oracle.state_dict())
    theirs, _ = SHAPES[kind]
    fresh = transformer_lens.HookedTransformerConfig(**BASE | theirs, device="cpu", dtype=torch.float32, seed=0)
    other = transformer_lens.HookedTransformer(fresh).eval()
    params = ji.weights.from_transformer_lens(arrays(state), model.config)
    other.load_and_process_state_dict({name: value.clone() for name, value in state.items()})
    new, config = ji.weights.process(params, model.config)
    want = arrays(other.state_dict())
    assert not any(name.endswith(("ln1.w", "ln_final.w")) for name in want)
    got = ji.weights.to_transformer_lens(new, config)
    compared = [name for name, _ in other.named_parameters()]
    for name in compared:
        check_close(got[name], want[name], 1e-5)
    assert len(compared) > 8 * BASE["n_layers"]
    logits = jax.jit(ji.Model(config=config).forward)(new, jnp.asarray(tokens()))
    check_close(logits, their_logits(other))
    again = ji.weights.from_transformer_lens(want, config)  # a processed state dict, whose norms have no weights
    check_close(jax.jit(ji.Model(config=config).forward)(again, jnp.asarray(tokens())), their_logits(other))


@pytest.mark.parametrize(
    "flag, step",
    [("fold_ln", "fold_norms"), ("center_writing_weights",) * 2, ("center_unembed", "center_unembedding"),
     ("fold_value_biases",) * 2],
)  # fmt: skip
def test_each_step_is_theirs(flag, step):
    oracle, model = pair("gpt2")
    flags = dict.fromkeys(["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"], False) | {
        flag: True
    }
    fresh = transformer_lens.HookedTransformerConfig(**BASE | GPT2[0], device="cpu", dtype=torch.float32, seed=0)
    other = transformer_lens.HookedTransformer(fresh).eval()
    other.load_and_process_state_dict({n: v.clone() for n, v in oracle.state_dict().items()}, **flags)
    params = ji.weights.from_transformer_lens(arrays(oracle.state_dict()), model.config)
    got = ji.weights.to_transformer_lens(*getattr(ji.weights, step)(params, model.config))
    want = arrays(other.state_dict())
    for name in set(got) & set(want):
        check_close(got[name], want[name], 1e-5)


CONVERTERS = {  # its conversion of OLMo 2 knows no grouped queries, and that of BERT wants a next-sentence head
    "gpt2": "gpt2", "neox": "neox", "gptj": "gptj", "llama-grouped": "llama", "llama": "llama", "mistral": "mistral",
    "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma-untied": "gemma", "gemma2": "gemma", "gemma3": "gemma",
    "phi3": "phi3",
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERTERS)
def test_what_it_makes_of_checkpoints(case, tmp_path):
    """Its own conversion of a Hugging Face model, read by us: the parameters that `load` gives."""
    from tests.parity import families

    name = CONVERTERS[case]
    converter = importlib.import_module(f"transformer_lens.pretrained.weight_conversions.{name}")
    model = families.make(case, 0)
    model.save_pretrained(tmp_path)
    lm = ji.load(tmp_path, tokenizer=None)
    c = lm.config
    theirs = types.SimpleNamespace(
        n_layers=c.n_layers, d_model=c.d_model, n_heads=c.n_heads, d_head=c.d_head, d_mlp=c.d_mlp, d_vocab=c.d_vocab,
        n_ctx=c.n_ctx, n_key_value_heads=None if case == "llama" else c.key_value_heads, device="cpu",
        dtype=torch.float32, load_in_4bit=False, use_qk_norm=c.qk_norm == "head",
        use_normalization_before_and_after=c.norm_position == "sandwich",
    )  # fmt: skip
    state = getattr(converter, f"convert_{name}_weights")(model, theirs)
    if case == "phi3":  # it writes biases of RMSNorm, which its model does not have
        state = {n: v for n, v in state.items() if not n.endswith((".ln1.b", ".ln2.b"))}
    got = ji.weights.from_transformer_lens(arrays(state), c)
    jax.tree.map(lambda a, b: check_close(a, b, 1e-6), got, lm.params)


def test_another_rotation_is_noticed():
    oracle, model = pair("llama")
    wrong = dataclasses.replace(model.config, rotary_base=10000.0)
    with pytest.raises(ji.WeightsError, match="rotary_sin has other angles"):
        ji.weights.from_transformer_lens(arrays(oracle.state_dict()), wrong)


def test_who_prepends_bos(shared):
    """TransformerLens puts BOS in front of text by default; we follow the tokenizer, and GPT-2's adds none."""
    from transformers import AutoTokenizer

    folder = shared / "gpt2-tokenizer"
    theirs = transformer_lens.HookedTransformerConfig(**BASE | {"d_vocab": 50257} | GPT2[0], device="cpu", seed=0)
    oracle = transformer_lens.HookedTransformer(theirs, tokenizer=AutoTokenizer.from_pretrained(str(folder)))
    ours = ji.Tokenizer.from_folder(folder)
    text = "Mary gave the book"
    assert oracle.cfg.default_prepend_bos and not ours.prepend_bos
    default = oracle.to_tokens(text)[0].tolist()
    assert default == [ours.bos_id, *ours.encode(text)]
    assert oracle.to_tokens(text, prepend_bos=False)[0].tolist() == ours.encode(text)
    assert default == ours.encode(text, prepend_bos=True)
