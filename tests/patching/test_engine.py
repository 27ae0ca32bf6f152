"""The engine against a loop over whole forward passes, on random models, prompts, cells and ops."""

import dataclasses
import functools
import itertools
import os
import warnings

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import jaxinterp as ji
from tests.tiny import FAMILIES, make_model, make_params

EXAMPLES = int(os.environ.get("JAXINTERP_EXAMPLES", "15"))

CONFIGS = [
    dict(),
    dict(
        normalization_type="RMS", positional_embedding_type="rotary", n_key_value_heads=2, gated_mlp=True, act_fn="silu"
    ),
    dict(attn_only=True, d_mlp=None, n_key_value_heads=1),
    dict(attention_dir="bidirectional", unembed_bias=True),
    dict(normalization_type=None, attention_bias=False, mlp_bias=False, act_fn="relu"),
    dict(n_layers=1, tie_word_embeddings=True),
    dict(n_layers=4, positional_embedding_type="none", final_norm=False, attn_scale=1.5),
    *FAMILIES.values(),
]
SITES = {
    "layer,head": [
        "attn.z",
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.pattern",
        "attn.k_rot",
        "attn.q_in",
        "attn.v_in",
        "attn.result",
    ],
    "layer,position": [
        "resid_pre",
        "attn.in",
        "attn.out",
        "resid_mid",
        "mlp.in",
        "mlp.out",
        "resid_post",
        "attn.norm_scale",
        "attn.post_norm_scale",
        "mlp.post_norm_scale",
    ],
    "layer,head,position": ["attn.z", "attn.k", "attn.q_rot", "attn.k_in", "attn.q_norm_scale", "attn.k_norm_scale"],
    "position": [
        "embed",
        "final.in",
        "logits",
        "resid_pre",
        "embed.norm_scale",
        "final.head_norm_scale",
        "embed.token",
        "embed.position",
    ],
    "layer,feature": ["mlp.post", "resid_post"],
    "layer": ["attn.out", "mlp.pre"],
    "head": ["attn.z"],
}
OPS = {
    "patch": ji.patch,
    "zero": ji.zero,
    "mean": ji.mean,
    "mean by position": functools.partial(ji.mean, over="B"),
    "mean by template": functools.partial(ji.mean, over="B", groups=np.array([0, 1, 0])),
    "scale": functools.partial(ji.scale, factor=-1.5),
    "add": functools.partial(ji.add, value=0.7),
    "own": lambda site: ji.edit(site, lambda x: jnp.flip(x, 1)),
}


PROBLEMS = st.fixed_dictionaries(
    dict(
        seed=st.integers(0, 10**6),
        changes=st.sampled_from(CONFIGS),
        begin=st.integers(0, 4),
        later=st.tuples(*[st.integers(0, 1)] * 3),
        padding=st.sampled_from(["none", "none", "left", "right"]),
        back=st.integers(0, 2),
        which=st.integers(0, 1),
        entropy=st.booleans(),
    )
)


def make_problem(seed, changes, begin, later, padding, back, which, entropy):
    """(model, params, base, source, mask, metric); the prompts first differ at different rows."""
    rng = np.random.default_rng(seed)
    model = make_model(**changes)
    params = make_params(model, 3)
    b, t = 3, 6
    base = rng.integers(0, 11, (b, t))
    source = base.copy()
    for i in range(b):
        at = begin + later[i]
        source[i, at] = (source[i, at] + 1 + rng.integers(0, 9)) % 11
    mask, lengths = None, np.full(b, t)
    if padding != "none":
        lengths = np.array([t, 4, 5])
        real = np.arange(t)[None] < lengths[:, None]
        mask = jnp.asarray(real[:, ::-1] if padding == "left" else real)
    reads = np.stack([lengths - 1, np.maximum(lengths - 1 - back, 0)], 1)
    targets = rng.integers(0, 11, (b, 2))
    if entropy:
        metric = ji.patching.cross_entropy(targets, reads)
    else:
        metric = ji.patching.logit_difference(targets[:, 0], (targets[:, 0] + 3) % 11, reads[:, which])
    return model, params, jnp.asarray(base), jnp.asarray(source), mask, metric


def read(logits, mask, metric):
    """The metric of whole logits [B, T, V], by plain indexing."""
    logits = np.asarray(logits, np.float64)
    out = []
    for b in range(len(logits)):
        rows = np.arange(logits.shape[1]) if mask is None else np.flatnonzero(np.asarray(mask)[b])
        at = rows[np.asarray(metric.positions)[b]]
        if metric.tokens is not None:
            right, wrong = np.asarray(metric.tokens)[b]
            out.append(logits[b, at[-1], right] - logits[b, at[-1], wrong])
        else:
            logp = logits[b, at] - np.log(np.exp(logits[b, at]).sum(-1, keepdims=True))
            out.append(-np.mean(logp[np.arange(len(at)), np.asarray(metric.data)[b]]))
    return np.array(out)


class Loop:
    """One whole forward pass a cell; `places` is traced, so that one compile serves the loop."""

    def __init__(self, model, params, base, source, mask, metric, op, sites):
        self.args, self.metric, self.mask = (params, base), metric, mask
        forward = functools.partial(model.forward, mask=mask)
        self.acts = jax.jit(lambda p, t: ji.run(forward, ji.capture(*dict.fromkeys(sites)))(p, t)[1])(params, source)
        layered = {s: ji.sites(model.forward, params, base)[s].n_layers is not None for s in sites}

        def one(params, base, acts, places):
            handlers = []
            for site, place in zip(sites, places, strict=True):
                if op is ji.patch:
                    made = ji.patch(site, per_layer=acts[site]) if layered[site] else ji.patch(site, acts[site])
                else:
                    made = op(site)
                handlers.append(ji.tap.place(made, **place))
            return ji.run(forward, *handlers)(params, base)[0]

        self.one = jax.jit(one)
        self.base = read(jax.jit(forward)(params, base), mask, metric)

    def __call__(self, places):
        places = [{key: jnp.asarray(value, jnp.int32) for key, value in place.items()} for place in places]
        return read(self.one(*self.args, self.acts, places), self.mask, self.metric)


def quiet_sweep(*args, **how):
    """A sweep without the warning that base and source have the same metric, which random prompts may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ji.patching.sweep(*args, **how)


def check(got, want, scale, tolerance=1e-5):
    """Within `tolerance` of the metric's size."""
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * scale, (got, want)


how = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # no shrinking: each try compiles


@how(max_examples=EXAMPLES)
@given(problem=PROBLEMS, data=st.data())
def test_a_sweep_equals_the_loop(problem, data):
    model, params, base, source, mask, metric = make_problem(**problem)
    over = data.draw(st.sampled_from(list(SITES)))
    known = {s.name for s in ji.sites(model.forward, params, base)}
    site = data.draw(st.sampled_from([s for s in SITES[over] if s in known]))
    name = data.draw(st.sampled_from(["patch", *OPS]))
    if site.endswith("norm_scale") or site == "attn.pattern":
        name = "patch"
    op = OPS[name]
    shape = ji.sites(model.forward, params, base)[site]
    axes = {axis: _some(axis, shape, data) for axis in over.split(",")}
    args = dict(
        base=base,
        source=source,
        mask=mask,
        site=site,
        over=axes,
        metric=metric,
        op=op,
        keep=("prompts",),
        progress=False,
    )
    effects = quiet_sweep(model, params, **args)
    loop = Loop(model, params, base, source, mask, metric, op, [site])
    got = effects.effect_by_prompt.values.reshape(-1, 3)
    cells = [[dict(zip(axes, values, strict=True))] for values in itertools.product(*axes.values())]
    lengths = np.full(3, 6) if mask is None else np.asarray(mask).sum(1)
    want = []
    for places in cells:
        there = lengths > max([0, *(p["position"] for p in places if "position" in p)])
        places = [
            {**p, **({"position": np.minimum(p["position"], lengths - 1)[:, None]} if "position" in p else {})}
            for p in places
        ]
        want.append(np.where(there, loop(places) - loop.base, np.nan))
    want = np.array(want)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    check(np.nan_to_num(got), np.nan_to_num(want), np.abs(loop.base).max() + np.nanmax(np.abs(want), initial=0.0))


@pytest.mark.parametrize("family", FAMILIES if EXAMPLES > 15 else ["gptj", "gemma3_text", "bert"])  # 6 s each
def test_a_family_equals_the_loop(family):
    problem = make_problem(3, FAMILIES[family], 1, (0, 1, 0), "left", 1, 0, False)
    model, params, base, source, mask, metric = problem
    over = {"layer": [0, 1, 2], "head": [1], "position": [0, 2, 3]}
    args = dict(base=base, source=source, mask=mask, site="attn.z", over=over, metric=metric, keep=("prompts",))
    got = quiet_sweep(model, params, **args, progress=False).effect_by_prompt.values.reshape(-1, 3)
    loop = Loop(model, params, base, source, mask, metric, ji.patch, ["attn.z"])
    cells = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    want = np.array([loop([cell]) - loop.base for cell in cells])
    assert np.abs(want).max() > 1e-3 * np.abs(loop.base).max()
    check(got, want, np.abs(loop.base).max() + np.abs(want).max())


@pytest.mark.parametrize(("site", "moved"), [("embed.token", [1, 2]), ("embed.position", [3, 4])])
def test_parts_of_the_embedding_run_only_where_the_token_or_its_position_differs(site, moved):
    model, params, base, source, mask, metric = make_problem(3, dict(n_layers=1), 1, (0, 1, 0), "none", 1, 0, False)
    shift = np.tile(np.arange(6), (3, 1))
    shift[2, 3:5] = [4, 3]  # with the same token at both
    base, source = base.at[2, 3:5].set(7), source.at[2, 3:5].set(7)
    args = dict(base=base, source=source, site=site, over="position", metric=metric, positions=shift)
    assert (
        ji.patching.plan(model, params, **args).n_run == 4
    )  # 1 and 2, where tokens differ; 3 and 4, which are exchanged
    got = quiet_sweep(model, params, **args, keep=("prompts",), progress=False).effect_by_prompt.values
    loop = Loop(model, params, base, source, mask, metric, ji.patch, [site])
    loop.acts = {site: jnp.take_along_axis(loop.acts[site], jnp.asarray(shift)[:, :, None], axis=1)}
    want = np.array([loop([{"position": p}]) - loop.base for p in range(6)])
    assert np.flatnonzero(np.abs(want).max(1) > 1e-3 * np.abs(loop.base).max()).tolist() == moved
    check(got, want, np.abs(loop.base).max() + np.abs(want).max())


@pytest.mark.usefixtures("bfloat16_products")
def test_bfloat16_activations_of_float32_parameters():
    changes = dict(n_layers=2, compute_dtype="bfloat16")
    model, params, base, source, mask, metric = make_problem(3, changes, 1, (0, 1, 0), "none", 1, 0, False)
    args = dict(base=base, source=source, site="resid_pre", over={"layer": [0, 1], "position": [2]}, metric=metric)
    got = quiet_sweep(model, params, **args, keep=("prompts",), progress=False).effect_by_prompt.values.reshape(-1, 3)
    loop = Loop(model, params, base, source, mask, metric, ji.patch, ["resid_pre"])
    want = np.array([loop([{"layer": layer, "position": 2}]) - loop.base for layer in (0, 1)])
    scale = np.abs(loop.base).max() + np.abs(want).max()
    assert np.abs(want).max() > 0.1 * scale
    check(got, want, scale, 1e-2)


def _some(axis, shape, data):
    size = {"layer": lambda: shape.n_layers, "feature": lambda: shape.shape[-1], "position": lambda: 6}.get(
        axis, lambda: next(n for n, letter in zip(shape.shape, shape.axes, strict=True) if letter in "HK")
    )()
    return sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=2)))


@how(max_examples=max(1, EXAMPLES // 2))
@given(problem=PROBLEMS, data=st.data())
def test_joint_edits_equal_the_loop(problem, data):
    model, params, base, source, mask, metric = make_problem(**problem)
    known = {s.name for s in ji.sites(model.forward, params, base)}
    op = OPS[data.draw(st.sampled_from(["patch", "patch", "zero", "mean", "scale", "add", "own"]))]
    sites = data.draw(
        st.lists(
            st.sampled_from(
                [s for s in ("attn.z", "attn.k", "resid_pre", "mlp.out", "embed", "final.in") if s in known]
            ),
            min_size=2,
            max_size=2,
        )
    )
    cells = []
    for _ in range(3):
        places = []
        for site in sites:
            shape = ji.sites(model.forward, params, base)[site]
            place = {} if shape.n_layers is None else {"layer": data.draw(st.integers(0, shape.n_layers - 1))}
            place["position"] = sorted(data.draw(st.sets(st.integers(0, 3), min_size=1, max_size=2)))
            if site == "attn.z":
                place["head"] = data.draw(st.integers(0, 3))
            places.append(place)
        cells.append(places)
    listed = [[{"site": s, **p} for s, p in zip(sites, places, strict=True)] for places in cells]
    effects = quiet_sweep(
        model,
        params,
        base=base,
        source=source,
        mask=mask,
        over=listed,
        metric=metric,
        op=op,
        keep=("prompts",),
        progress=False,
    )
    loop = Loop(model, params, base, source, mask, metric, op, sites)
    want = np.stack([loop(_even(places)) - loop.base for places in cells])
    check(effects.effect_by_prompt.values, want, np.abs(loop.base).max() + np.abs(want).max())


def _even(places):
    """Two positions everywhere, so that the loop compiles once."""
    return [{**p, "position": (p["position"] * 2)[:2]} for p in places]


def test_blocks_in_two_segments_are_swept_as_one():
    """Mixed stacks come later; the engine's loops over segments are there now."""
    model, params, base, source, _, metric = make_problem(1, CONFIGS[1], 1, (0, 0, 0), "none", 0, 0, False)
    cut = lambda tree: (jax.tree.map(lambda a: a[:1], tree), jax.tree.map(lambda a: a[1:], tree))
    split = params | {"blocks": cut(params["blocks"][0])}
    other = dataclasses.replace(model, layer_data_fn=_cut_layer_data)
    args = dict(base=base, source=source, metric=metric, progress=False, keep=("prompts",))
    for over in (
        "layer,head,position",
        [[{"layer": 0, "head": 1}, {"layer": 2, "head": 3}], [{"layer": 1, "head": 0}] * 2],
    ):
        want = quiet_sweep(model, params, site="attn.z", over=over, **args)
        got = quiet_sweep(other, split, site="attn.z", over=over, **args)
        check(got.effect_by_prompt.values, want.effect_by_prompt.values, 1 + np.abs(want.effect_by_prompt.values).max())


def _cut_layer_data(config):
    data = ji.models.layer_data(config)[0]
    return jax.tree.map(lambda a: a[:1], data), jax.tree.map(lambda a: a[1:], data)


def test_an_own_block_is_swept_with_all_savings():
    """A block that keeps the contract (rows mix through keys and values alone) but is not ours."""
    model, params, base, source, _, metric = make_problem(2, CONFIGS[0], 2, (0, 1, 0), "none", 0, 1, False)
    own = dataclasses.replace(model, block_fn=_louder)
    args = dict(
        base=base, source=source, metric=metric, site="attn.z", over="layer,head", progress=False, keep=("prompts",)
    )
    effects = quiet_sweep(own, params, **args)
    loop = Loop(own, params, base, source, None, metric, ji.patch, ["attn.z"])
    want = np.array([[loop([{"layer": [i], "head": [j]}]) - loop.base for j in range(4)] for i in range(3)])
    check(effects.effect_by_prompt.values, want, np.abs(loop.base).max() + np.abs(want).max())


def _louder(config, params, data, x, **how):
    out, key_values = ji.models.block(config, params, data, x, **how)
    return 1.25 * out, key_values
