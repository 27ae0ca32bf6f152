"""Our forward pass against Hugging Face's, on tiny random models whose attention is far from uniform.

That the attention is peaked is asserted, and breaking a part of a family on purpose must fail its comparison.
"""

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

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
    from tests.parity.families import (
        CASES,
        CAUSAL,
        LENGTH,
        ONE_OF_EACH,
        Reference,
        difference,
        folder_of,
        make,
        reference,
    )  # fmt: skip

NEW = 12


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


def huggingface_from(folder: Path, dtype: Any = torch.float32) -> Any:
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()


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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", [*ONE_OF_EACH, "llama3-scaling"])
def test_padding(case, side, root):
    model, folder = folder_of(case, 0, root)
    lm = ji.load(folder, tokenizer=None)
    tokens, mask = some_tokens(lm, 5), np.ones((2, LENGTH), bool)
    mask[1, slice(0, 7) if side == "left" else slice(-7, None)] = False
    expected, got = reference(model, tokens, mask), ours(lm, tokens, mask)
    for b in range(2):
        rows = mask[b]
        assert difference(got.logits[b, rows], expected.logits[b, rows]) < 1e-4
        assert (
            difference(got.pattern[:, b][:, :, rows][..., rows], expected.pattern[:, b][:, :, rows][..., rows]) < 1e-4
        )
    alone = ours(lm, tokens[1:, mask[1]])  # what is at padding changes nothing
    assert difference(got.logits[1:, mask[1]], alone.logits) < 1e-5
    assert difference(got.residual[:, 1:][:, :, mask[1]], alone.residual) < 1e-5


@pytest.mark.parametrize("seed", [0, 1])
def test_token_types(seed, root):
    model, folder = folder_of("bert", seed, root)
    lm = ji.load(folder, tokenizer=None)
    tokens, types = some_tokens(lm, seed), np.random.default_rng(seed).integers(0, 3, (2, LENGTH)).astype(np.int32)
    expected = reference(model, tokens, token_type_ids=types).logits
    got = lm.model.forward(lm.params, jnp.asarray(tokens), token_types=jnp.asarray(types))
    assert difference(np.asarray(got), expected) < 1e-4
    assert difference(ours(lm, tokens).logits, expected) > 1e-2


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CAUSAL)
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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if case in CAUSAL])
def test_generation_of_mixed_lengths_is_repeated_full_forwards(case, side, root):
    _, folder = folder_of(case, 0, root)
    lm = ji.load(folder, tokenizer=None)
    tokens, lengths = some_tokens(lm, 20)[:, :9], (9, 5)
    mask = np.arange(9)[None] < np.array(lengths)[:, None]
    real = [tokens[i, :n] for i, n in enumerate(lengths)]
    padded = np.zeros((2, 9), np.int32)
    mask = mask[:, ::-1] if side == "left" else mask
    for row, m, ids in zip(padded, mask, real, strict=True):
        row[m] = ids
    made = generate(lm.model, lm.params, jnp.asarray(padded), max_new_tokens=NEW, mask=jnp.asarray(mask))
    forward = jax.jit(lm.model.forward)
    for ids, new in zip(real, np.asarray(made)[:, 9:], strict=True):
        whole = np.concatenate([ids, new])[None]
        logits = np.asarray(forward(lm.params, jnp.asarray(whole)))[0]
        assert np.argmax(logits[len(ids) - 1 : -1], -1).tolist() == new.tolist()


def config(**changes: Any) -> Any:
    return lambda c: dataclasses.replace(c, **{k: v(c) if callable(v) else v for k, v in changes.items()})


def shift(path: str, by: float = 0.1) -> Any:
    """Adds to a parameter, of the first layer where it is in the blocks."""

    def change(params: Any) -> Any:
        def one(keys: Any, leaf: Any) -> Any:
            name = ".".join(str(k.key) for k in keys if hasattr(k, "key"))
            return leaf if name != path else leaf.at[0].add(by) if name.startswith("blocks") else leaf + by

        return jax.tree_util.tree_map_with_path(one, params)

    return change


MUTATIONS: dict[str, tuple[str, Any, Any]] = {
    "RoPE base": ("llama-grouped", config(rotary_base=lambda c: 1.1 * c.rotary_base), None),
    "RoPE left out": ("llama-grouped", config(positional_embedding_type="none"), None),
    "RoPE scaling left out": ("llama3-scaling", config(rotary_scaling=None), None),
    "RoPE scaling of another kind": (
        "llama3-scaling", config(rotary_scaling=lambda c: dataclasses.replace(c.rotary_scaling, kind="linear")), None,
    ),
    "mask of Llama": ("llama-grouped", config(attention_dir="bidirectional"), None),
    "mask of GPT-2": ("gpt2", config(attention_dir="bidirectional"), None),
    "eps of RMSNorm": ("llama-gelu", config(eps=lambda c: 1.2 * c.eps), None),
    "eps of LayerNorm": ("gpt2-inner-gelu-unscaled", config(eps=lambda c: 3 * c.eps), None),
    "weight of RMSNorm": ("llama-grouped", None, shift("blocks.ln1.w")),
    "weight of LayerNorm": ("gpt2", None, shift("blocks.ln2.w")),
    "LayerNorm for RMSNorm": ("llama-grouped", config(normalization_type="LN"), "biases"),
    "activation": ("gpt2", config(act_fn="relu"), None),
    "attention scale": ("gpt2", config(attn_scale=lambda c: 1.1 / c.score_scale), None),
    "positions of GPT-2": (
        "gpt2", None, lambda p: {**p, "embed": {**p["embed"], "W_pos": jnp.roll(p["embed"]["W_pos"], 1, axis=0)}},
    ),
    "NeoX: RoPE of all features": ("neox", config(rotary_dim=None), None),
    "NeoX: RoPE base": ("neox", config(rotary_base=200.0), None),
    "NeoX: in turn": ("neox", config(parallel_attn_mlp=False), None),
    "NeoX: side by side": ("neox-in-turn", config(parallel_attn_mlp=True), None),
    "NeoX: bias of values": ("neox", None, shift("blocks.attn.b_V")),
    "NeoX: norm of the MLP": ("neox", None, shift("blocks.ln2.b")),
    "GPT-J: pairs": ("gptj", config(rotary_adjacent_pairs=False), None),
    "GPT-J: RoPE of fewer features": ("gptj", config(rotary_dim=4), None),
    "GPT-J: norm": ("gptj", None, shift("blocks.ln1.w")),
    "GPT-J: bias of the logits": ("gptj", None, shift("unembed.b_U")),
    "Mistral: window left out": ("mistral", config(window_size=None), None),
    "Mistral: window of one more": ("mistral", config(window_size=8), None),
    "Mistral: RoPE": ("mistral", config(rotary_base=20000.0), None),
    "Mistral: norm": ("mistral", None, shift("ln_final.w")),
    "Qwen 2: bias of queries": ("qwen2", None, shift("blocks.attn.b_Q", 1.0)),
    "Qwen 2: windows everywhere": ("qwen2-windows", config(attn_types=None), None),
    "Qwen 2: RoPE": ("qwen2", config(rotary_base=20000.0), None),
    "Qwen 2: norm": ("qwen2", None, shift("blocks.ln2.w")),
    "Qwen 3: norm of queries": ("qwen3", None, shift("blocks.attn.q_norm.w")),
    "Qwen 3: norm of keys left out": ("qwen3", None, shift("blocks.attn.k_norm.w", 1.0)),
    "Qwen 3: one window": ("qwen3-windows-biases", config(attn_types=("local", "global", "local")), None),
    "Qwen 3: RoPE": ("qwen3", config(rotary_base=20000.0), None),
    "Gemma: weights without the one": ("gemma", config(norm_weight_offset=0.0), None),
    "Gemma: embeddings not scaled": ("gemma", config(embed_scale=1.0), None),
    "Gemma: activation": ("gemma", config(act_fn="silu"), None),
    "Gemma: RoPE": ("gemma", config(rotary_base=20000.0), None),
    "Gemma 2: cap of scores left out": ("gemma2", config(attn_scores_soft_cap=None), None),
    "Gemma 2: cap of logits left out": ("gemma2", config(output_logits_soft_cap=None), None),
    "Gemma 2: windows exchanged": ("gemma2", config(attn_types=("global", "local", "global")), None),
    "Gemma 2: window of one less": ("gemma2", config(window_size=4), None),
    "Gemma 2: norm behind attention": ("gemma2", None, shift("blocks.ln1_post.w")),
    "Gemma 2: norm behind the MLP": ("gemma2", None, shift("blocks.ln2_post.w")),
    "Gemma 2: scale by the head's width": ("gemma2", config(attn_scale=None), None),
    "Gemma 3: local base": ("gemma3", config(rotary_base_local=None), None),
    "Gemma 3: global stretch": ("gemma3", config(rotary_scaling=None), None),
    "Gemma 3: windows exchanged": ("gemma3", config(attn_types=("global", "local") * 2), None),
    "Gemma 3: norm of queries": ("gemma3", None, shift("blocks.attn.q_norm.w")),
    "Gemma 3: cap of logits": ("gemma3-cap-no-windows", config(output_logits_soft_cap=5.0), None),
    "Phi-3: RoPE of all features": ("phi3-partial", config(rotary_dim=None), None),
    "Phi-3: window": ("phi3", config(window_size=8), None),
    "Phi-3: norm": ("phi3", None, shift("blocks.ln1.w")),
    "OLMo 2: norms before": ("olmo2", config(norm_position="pre"), "before"),
    "OLMo 2: norm of keys": ("olmo2", None, shift("blocks.attn.k_norm.w")),
    "OLMo 2: norm of queries by head": ("olmo2", config(qk_norm="head"), "by head"),
    "OLMo 2: RoPE": ("olmo2", config(rotary_base=20000.0), None),
    "BERT: causal": ("bert", config(attention_dir="causal"), None),
    "BERT: norms before": ("bert", config(norm_position="pre"), None),
    "BERT: norm of the embeddings": ("bert", None, shift("embed.ln.b")),
    "BERT: positions": (
        "bert", None, lambda p: {**p, "embed": {**p["embed"], "W_pos": jnp.roll(p["embed"]["W_pos"], 1, axis=0)}},
    ),
    "BERT: bias of the head": ("bert", None, shift("mlm_head.b")),
    "BERT: no head": ("bert", config(mlm_head=False), None),
    "BERT: eps": ("bert", config(eps=lambda c: 3 * c.eps), None),
}  # fmt: skip


def with_norm_biases(params: Any) -> Any:
    zero = lambda norm: {**norm, "b": jnp.zeros_like(norm["w"])}
    block = {**params["blocks"][0], "ln1": zero(params["blocks"][0]["ln1"]), "ln2": zero(params["blocks"][0]["ln2"])}
    return {**params, "blocks": (block,), "ln_final": zero(params["ln_final"])}


def with_norms_before(params: Any) -> Any:
    block = params["blocks"][0]
    return {**params, "blocks": ({**block, "ln1": block["ln1_post"], "ln2": block["ln2_post"]},)}


def with_head_norms(params: Any) -> Any:
    attn = dict(params["blocks"][0]["attn"])
    attn |= {name: {"w": attn[name]["w"][:, 0]} for name in ("q_norm", "k_norm")}
    return {**params, "blocks": ({**params["blocks"][0], "attn": attn},)}


REBUILT = {"biases": with_norm_biases, "before": with_norms_before, "by head": with_head_norms}


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
    if change_params is not None:
        lm = dataclasses.replace(lm, params=REBUILT.get(change_params, change_params)(lm.params))
    assert difference(ours(lm, tokens).logits, expected.logits) > 1e-3


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_bfloat16_is_no_further_from_float32_than_the_reference(case, tmp_path):
    """One rounding more or less moves sharp attention, so that both are held against float32 with the same rounded weights."""
    folder = tmp_path / "m"
    make(case, 4).to(torch.bfloat16).save_pretrained(folder)
    full, half = ji.load(folder, tokenizer=None), ji.load(folder, tokenizer=None, dtype="bfloat16")
    tokens = some_tokens(full, 4)
    exact = reference(huggingface_from(folder), tokens).logits
    theirs = relative(reference(huggingface_from(folder, torch.bfloat16), tokens).logits, exact)
    computed = Model(config=dataclasses.replace(full.config, compute_dtype="bfloat16"))
    for model, params in ((half.model, half.params), (computed, full.params)):
        logits, acts = ji.run(model.forward, ji.capture("resid_post"))(params, jnp.asarray(tokens))[:2]
        assert logits.dtype == jnp.float32 and acts["resid_post"].dtype == jnp.bfloat16
        assert 1e-4 < relative(np.asarray(logits), exact) < 1.2 * theirs + 2e-3


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of the reference."""
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("case", ["gpt2-untied", "llama-biases"])
def test_bfloat16_shards(case, tmp_path):
    make(case, 3).to(torch.bfloat16).save_pretrained(tmp_path / "m", max_shard_size="10KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    lm = ji.load(tmp_path / "m", tokenizer=None)
    model = huggingface_from(tmp_path / "m")
    tokens = some_tokens(lm, 3)
    assert difference(ours(lm, tokens).logits, reference(model, tokens).logits) < 1e-4


@pytest.mark.parametrize("case", ["llama-biases", *ONE_OF_EACH])
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
