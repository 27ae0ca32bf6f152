"""Our sweeps against TransformerLens's `patching` functions, on a tiny model of GPT-2's kind with the same weights.

The weights are so large that attention is far from uniform (asserted). The prompts of a pair first differ in the middle or at
the first token, and the metric does not read the same position in every prompt. TransformerLens computes in float64.
"""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji

pytestmark = pytest.mark.parity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other libraries' own
    torch = pytest.importorskip("torch", reason="the oracle needs torch (make parity)")
    transformer_lens = pytest.importorskip("transformer_lens", reason="the oracle is transformer-lens (make parity)")
    from transformer_lens import patching

N, T, VOCABULARY = 3, 9, 41
SHAPE = {"n_layers": 3, "d_model": 32, "n_ctx": 16, "n_heads": 4, "d_head": 8, "d_mlp": 48, "d_vocab": VOCABULARY}
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # TransformerLens's function, our site, our axes in the order of its result
    "residual": ("resid_pre", "resid_pre", ("layer", "position")),
    "attention output": ("attn_out", "attn.out", ("layer", "position")),
    "MLP output": ("mlp_out", "mlp.out", ("layer", "position")),
    "head output by position": ("attn_head_out_by_pos", "attn.z", ("layer", "position", "head")),
    "head output": ("attn_head_out_all_pos", "attn.z", ("layer", "head")),
    "queries": ("attn_head_q_all_pos", "attn.q", ("layer", "head")),
    "keys": ("attn_head_k_all_pos", "attn.k", ("layer", "head")),
    "keys by position": ("attn_head_k_by_pos", "attn.k", ("layer", "position", "head")),
    "values": ("attn_head_v_all_pos", "attn.v", ("layer", "head")),
    "patterns": ("attn_head_pattern_all_pos", "attn.pattern", ("layer", "head")),
    "patterns by query": ("attn_head_pattern_by_pos", "attn.pattern", ("layer", "head", "position")),
}
EVERY_POSITION = ("residual", "head output by position")  # the others at two of them, which compile in half the time
FROM_THE_START = ("head output by position", "keys", "patterns")  # also with prompts that differ everywhere


class Work(NamedTuple):
    """A model in both libraries, prompts [N, T], answers [N], and the positions that are read [N]."""

    model: ji.Model
    params: Any
    oracle: Any
    base: np.ndarray
    source: np.ndarray
    answers: tuple[np.ndarray, np.ndarray]
    read: np.ndarray


def make_params(model: ji.Model, rng: np.random.Generator) -> Any:
    """Random numbers everywhere, large in queries and keys."""

    def leaf(path: Any, spec: Any) -> Any:
        name = path[-1].key
        noise = rng.normal(size=spec.shape)
        if name == "w":
            return jnp.asarray(1 + 0.3 * noise, jnp.float32)
        spread = {"W_E": 1.0, "W_pos": 1.0, "W_Q": 0.5, "W_K": 0.5}.get(name, 0.2)
        return jnp.asarray(spread * noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, model.param_shapes())


def hooked(params: Any) -> Any:
    """TransformerLens's model with our parameters, as they are: nothing folded, nothing centered."""
    config = transformer_lens.HookedTransformerConfig(
        **SHAPE, act_fn="gelu_new", normalization_type="LN", device="cpu", dtype=torch.float64, seed=0
    )
    model = transformer_lens.HookedTransformer(config).eval()
    (blocks,) = params["blocks"]
    ours = {"embed.W_E": params["embed"]["W_E"], "pos_embed.W_pos": params["embed"]["W_pos"]}
    ours |= {f"ln_final.{name}": value for name, value in params["ln_final"].items()}
    ours |= {"unembed.W_U": params["embed"]["W_E"].T, "unembed.b_U": np.zeros(VOCABULARY)}
    for part, tensors in blocks.items():
        for name, value in tensors.items():
            ours |= {f"blocks.{i}.{part}.{name}": value[i] for i in range(SHAPE["n_layers"])}
    state = {name: torch.tensor(np.asarray(value, np.float64)) for name, value in ours.items()}
    report = model.load_state_dict(state, strict=False)
    assert not report.unexpected_keys, report
    assert all(name.endswith(("mask", "IGNORE")) for name in report.missing_keys), report
    return model


@functools.cache
def work(first: int) -> Work:
    """Prompts that are equal before position `first`."""
    rng = np.random.default_rng(first)
    model = ji.Model(config=ji.TransformerConfig(**SHAPE, act_fn="gelu_new", tie_word_embeddings=True))
    params = make_params(model, rng)
    base, source = rng.integers(0, VOCABULARY, (2, N, T)).astype(np.int32)
    source[:, :first] = base[:, :first]
    source[:, first] = (base[:, first] + 1 + rng.integers(0, VOCABULARY - 1, N)) % VOCABULARY
    correct, wrong = rng.permuted(np.tile(np.arange(VOCABULARY), (N, 1)), axis=1)[:, :2].T.astype(np.int32)
    return Work(model, params, hooked(params), base, source, (correct, wrong), np.array([T - 1, T - 3, T - 1]))


def logit_difference(w: Work, logits: Any) -> Any:
    rows = logits[torch.arange(N), torch.tensor(w.read)]
    correct, wrong = (torch.tensor(ids).long() for ids in w.answers)
    return (rows.gather(1, correct[:, None]) - rows.gather(1, wrong[:, None])).mean()


def expected(w: Work, function: str) -> np.ndarray:
    """TransformerLens's effects: patched minus base."""
    base, source = (torch.tensor(tokens).long() for tokens in (w.base, w.source))
    with torch.inference_mode():
        before = logit_difference(w, w.oracle(base))
        cache = w.oracle.run_with_cache(source)[1]
        metric = lambda logits: logit_difference(w, logits) - before
        return getattr(patching, f"get_act_patch_{function}")(w.oracle, base, cache, metric).numpy()


def got(w: Work, site: str, axes: tuple[str, ...], positions: list[int] | None = None) -> np.ndarray:
    metric = ji.patching.logit_difference(*w.answers, w.read)
    how = {"base": w.base, "source": w.source, "metric": metric, "progress": False}
    over = {axis: positions if axis == "position" else None for axis in axes}
    result = ji.patching.sweep(w.model, w.params, site=site, over=over, **how)
    return result["effect"].transpose(*axes).values


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    """No bars, and one thread: on models so tiny, threads spend ten times as long waiting for each other."""
    monkeypatch.setattr(patching, "tqdm", lambda rows: rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case, first", [*((case, 4) for case in CASES), *((case, 0) for case in FROM_THE_START)])
def test_the_same_effects(case, first):
    function, site, axes = CASES[case]
    w = work(first)
    positions = list(range(T)) if first and case in EVERY_POSITION else [first, T - 3]
    want, effects = expected(w, function), got(w, site, axes, positions)
    if "position" in axes:
        want = np.take(want, positions, axes.index("position"))
    assert effects.shape == want.shape
    assert np.median(np.abs(want[want != 0])) > 1e-3, "the cells hardly matter, so that a fault could hide"
    assert np.abs(effects - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("first", [0, 4])
def test_the_models_are_the_same_and_attention_is_peaked(first):
    w = work(first)
    with torch.inference_mode():
        logits, cache = w.oracle.run_with_cache(torch.tensor(w.base).long())
    ours = np.asarray(jax.jit(w.model.forward)(w.params, jnp.asarray(w.base)))
    assert np.abs(ours - logits.numpy()).max() <= 1e-5 * np.abs(logits.numpy()).max()
    patterns = np.stack([cache["pattern", layer].numpy() for layer in range(SHAPE["n_layers"])])
    assert patterns[..., T // 2 :, :].max(-1).mean() > 0.5
    assert (w.base[:, :first] == w.source[:, :first]).all() and (w.base[:, first] != w.source[:, first]).all()


def test_a_broken_model_is_noticed():
    """The comparison can fail: with other biases in one layer the effects are others."""
    w = work(4)
    block = dict(w.params["blocks"][0])
    block["attn"] = block["attn"] | {
        "b_K": block["attn"]["b_K"].at[1].add(0.1),
        "b_V": block["attn"]["b_V"].at[1].add(0.1),
    }
    broken = w._replace(params=w.params | {"blocks": (block,)})
    want = expected(w, "attn_head_out_all_pos")
    assert np.abs(got(broken, "attn.z", ("layer", "head")) - want).max() > 1e-3 * np.abs(want).max()
