"""Every hook of TransformerLens's models of GPT-2's and Llama's kind, through its alias: the same value, and the same effect."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.tap._aliases import ALIASES, explain, resolve
from tests.parity import test_transformer_lens_weights as other
from tests.tiny import check_close

pytestmark = pytest.mark.parity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other libraries' own
    torch = pytest.importorskip("torch", reason="the oracle needs torch (make parity)")
    transformer_lens = pytest.importorskip("transformer_lens", reason="the oracle is transformer-lens (make parity)")

BASE = dict(n_layers=2, d_model=24, n_ctx=16, n_heads=4, d_head=6, d_mlp=20, d_vocab=41)
ROTARY = dict(positional_embedding_type="rotary", rotary_dim=6)
SHAPES = {
    "gpt2": (dict(act_fn="gelu_new", normalization_type="LN"), dict(act_fn="gelu_new", unembed_bias=True)),
    "llama": (
        dict(act_fn="silu", normalization_type="RMS", gated_mlp=True, n_key_value_heads=2, **ROTARY),
        dict(act_fn="silu", normalization_type="RMS", gated_mlp=True, n_key_value_heads=2, mlp_bias=False, **ROTARY),
    ),
}
WITHOUT = {
    "hook_attn_in", "ln1.hook_normalized", "ln2.hook_normalized", "ln_final.hook_normalized",
    "unembed.hook_in", "unembed.hook_out",
}  # fmt: skip
TOKENS = np.random.default_rng(5).integers(0, BASE["d_vocab"], (2, 9)).astype(np.int32)


@functools.cache
def work(kind: str) -> tuple[Any, ji.Model, Any, set[str]]:
    """A model in both libraries, our parameters, and our sites."""
    theirs, ours = SHAPES[kind]
    config = transformer_lens.HookedTransformerConfig(
        **BASE | theirs,
        device="cpu",
        dtype=torch.float32,
        seed=0,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
    )
    oracle = transformer_lens.HookedTransformer(config).eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            noise = rng.normal(size=tuple(parameter.shape))
            if kind == "llama" and (".b_" in name or "._b_" in name):
                noise = 0 * noise
            peaked = name.rsplit(".", 1)[-1] in ("W_Q", "W_K", "_W_K")
            parameter.copy_(torch.tensor(1 + 0.3 * noise if name.endswith(".w") else (0.5 if peaked else 0.25) * noise))
    model = ji.Model(config=ji.TransformerConfig(**BASE | ours))
    if kind == "llama":
        model = ji.Model(
            config=ji.TransformerConfig(**BASE | ours | dict(attention_bias=False, attention_output_bias=False))
        )
    state = {name: value.numpy() for name, value in oracle.state_dict().items()}
    params = ji.weights.from_transformer_lens(state, model.config)
    return oracle, model, params, {site.name for site in ji.sites(model.forward, params, jnp.asarray(TOKENS))}


def hook_of(name: str) -> str:
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


@pytest.mark.parametrize("kind", SHAPES)
def test_every_hook_maps_or_is_listed(kind):
    oracle, _, _, known = work(kind)
    assert len(oracle.hook_dict) > 40
    notes = {alias.hook: alias.note for alias in ALIASES}
    lost = [name for name in oracle.hook_dict if resolve(name, known) is None]
    assert set(map(hook_of, lost)) == WITHOUT & set(map(hook_of, oracle.hook_dict))
    assert all(notes[hook_of(name)] and notes[hook_of(name)] in explain(name, known) for name in lost)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_same_values(kind):
    oracle, model, params, known = work(kind)
    names = [name for name in oracle.hook_dict if resolve(name, known)]
    stars = sorted({"blocks.*." + hook_of(name) for name in names if name.startswith("blocks.")})
    with torch.inference_mode():
        logits, cache = oracle.run_with_cache(torch.tensor(TOKENS).long())
    run = jax.jit(ji.run(model.forward, ji.capture(*names, *stars)))
    ours, acts, _ = run(params, jnp.asarray(TOKENS))
    check_close(ours, logits.numpy())
    assert len(names) > 30
    split = {
        name: value[:, :, 0] if name.endswith("ln1.hook_scale") else value for name, value in cache.items()
    }  # by head there
    check_cache(split, {name: acts[name] for name in names})
    for name in names:
        if name.startswith("blocks."):
            np.testing.assert_array_equal(acts["blocks.*." + hook_of(name)][int(name.split(".")[1])], acts[name])


def check_cache(cache: Any, acts: Any) -> None:
    for name, got in acts.items():
        want, got = cache[name].numpy(), np.asarray(got)
        if "hook_attn_scores" in name:  # -inf there, the lowest number here
            assert (np.isneginf(want) == (got == np.finfo(np.float32).min)).all()
            want, got = np.where(np.isneginf(want), 0, want), np.where(np.isneginf(want), 0, got)
        check_close(got, want)


@pytest.mark.parametrize("kind", ["attention only", "gptj", "neox", "gemma2", "olmo2"])
def test_values_in_other_kinds_of_models(kind):
    """What an alias means there is what it means in TransformerLens, or it means nothing."""
    oracle, model = other.pair(kind)
    state = {name: value.numpy() for name, value in oracle.state_dict().items()}
    params = ji.weights.from_transformer_lens(state, model.config)
    with torch.inference_mode():
        cache = oracle.run_with_cache(torch.tensor(TOKENS).long())[1]
    known = {site.name for site in ji.sites(model.forward, params, jnp.asarray(TOKENS))}
    names = [name for name in cache if resolve(name, known)]
    assert len(names) > 30
    if model.config.gated_mlp:  # with biases in these models, which stand elsewhere in its gated MLPs
        names = [name for name in names if not name.endswith("mlp.hook_post")]
    check_cache(cache, jax.jit(ji.run(model.forward, ji.capture(*names)))(params, jnp.asarray(TOKENS))[1])


def test_values_in_an_encoder():
    oracle, model = other.encoder()
    params = ji.weights.from_transformer_lens({n: v.numpy() for n, v in oracle.state_dict().items()}, model.config)
    with torch.inference_mode():
        cache = oracle.run_with_cache(torch.tensor(TOKENS).long())[1]
    known = {site.name for site in ji.sites(model.forward, params, jnp.asarray(TOKENS))}
    names = [name for name in cache if resolve(name, known)]
    assert len(names) > 30 and "blocks.0.hook_resid_mid" in cache and "blocks.0.hook_resid_mid" not in names
    check_cache(cache, jax.jit(ji.run(model.forward, ji.capture(*names)))(params, jnp.asarray(TOKENS))[1])


def weights(size: int) -> np.ndarray:
    return (1.5 + np.cos(np.arange(size))).astype(np.float32)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_same_effects(kind):
    """Each hook's value in layer 1, features weighed unequally (norms take an equal factor away): the same logits."""
    oracle, model, params, known = work(kind)
    tokens = torch.tensor(TOKENS).long()
    plain = None
    for name in oracle.hook_dict:
        if resolve(name, known) is None or name.startswith("blocks.0."):
            continue
        with torch.inference_mode():
            plain = oracle(tokens).numpy() if plain is None else plain
            hook = lambda value, hook: value * torch.tensor(weights(value.shape[-1]))
            want = oracle.run_with_hooks(tokens, fwd_hooks=[(name, hook)]).numpy()
        edit = ji.edit(name, lambda value: value * weights(value.shape[-1]).reshape([1] * (value.ndim - 1) + [-1]))
        got = jax.jit(ji.run(model.forward, edit))(params, jnp.asarray(TOKENS))[0]
        check_close(got, want)
        assert np.abs(want - plain).max() > 1e-3, name
