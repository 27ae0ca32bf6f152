"""TransformerLens's names wherever a user names a site: the same as ours, in one layer or in all. (Their values: tests/parity.)"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.tap._aliases import ALIASES, resolve
from tests.tiny import check_close, check_same, make_model, make_params, make_tokens

MODEL = make_model()
PARAMS, TOKENS = make_params(MODEL), make_tokens()
Z3 = "blocks.1.attn.hook_z"


def run(*handlers, model=MODEL, params=PARAMS):
    return ji.run(model.forward, *handlers)(params, TOKENS)


def test_a_capture_is_named_as_written_and_has_layers_if_it_names_all():
    names = (
        Z3,
        "blocks.*.attn.hook_z",
        "blocks.2.attn.hook_z",
        "ln_final.hook_scale",
        "attn.z",
        "blocks.0.hook_resid_pre",
    )
    acts = run(ji.capture(*names))[1]
    assert set(acts) == set(names)
    check_same(acts[Z3], acts["attn.z"][1])
    check_same(acts["blocks.2.attn.hook_z"], acts["attn.z"][2])
    check_same(acts["blocks.*.attn.hook_z"], acts["attn.z"])
    assert acts["ln_final.hook_scale"].shape == (2, 6, 1)


def test_captures_take_a_reduction_positions_and_a_prefix():
    acts = run(ji.capture(Z3, of=lambda x: {"sum": x.sum()}, prefix="a/"), ji.capture(Z3, position=2))[1]
    whole = run(ji.capture("attn.z"))[1]["attn.z"][1]
    check_close(acts["a/" + Z3]["sum"], whole.sum())
    check_same(acts[Z3], whole[:, 2:3])


EDITS = {
    "zero": lambda site, **where: ji.zero(site, **where),
    "patch": lambda site, **where: ji.patch(site, jnp.full(4, 0.5), **where),
    "add": lambda site, **where: ji.add(site, jnp.full(4, 0.5), coefficient=2.0, **where),
    "scale": lambda site, **where: ji.scale(site, 3.0, **where),
    "mean": lambda site, **where: ji.mean(site, **where),
    "edit": lambda site, **where: ji.edit(site, jnp.negative, **where),
    "project_out": lambda site, **where: ji.project_out(site, np.ones(4), **where),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_in_one_layer_and_in_all(kind):
    make = EDITS[kind]
    check_same(run(make(Z3, head=2, position=[1, 4]))[0], run(make("attn.z", layer=1, head=2, position=[1, 4]))[0])
    check_same(run(make("blocks.*.attn.hook_z", layer=[0, 2]))[0], run(make("attn.z", layer=[0, 2]))[0])


def test_perturb_and_statistics():
    delta = jax.random.normal(jax.random.key(0), (2, 6, 4, 4))
    stacked = jnp.zeros((3, *delta.shape)).at[1].set(delta)
    check_same(run(ji.perturb({Z3: delta}))[0], run(ji.perturb({"attn.z": stacked}))[0])
    names = (Z3, "blocks.*.hook_mlp_out")
    once = run(ji.statistics(*names))[2][0]
    twice = run(ji.statistics(*names, state=once))[2][0]
    want = run(ji.statistics("attn.z", "mlp.out"))[2][0]
    assert set(twice) == set(names)
    check_close(once[Z3].mean, want["attn.z"].mean[1])
    check_close(once["blocks.*.hook_mlp_out"].variance, want["mlp.out"].variance)
    assert (once[Z3].count, twice[Z3].count) == (12, 24)


def test_gradients_pass():
    loss = lambda delta: run(ji.perturb({Z3: delta}))[0][0, -1, 3]
    stacked = lambda delta: run(ji.perturb({"attn.z": delta}))[0][0, -1, 3]
    check_same(jax.grad(loss)(jnp.zeros((2, 6, 4, 4))), jax.grad(stacked)(jnp.zeros((3, 2, 6, 4, 4)))[1])


def test_what_a_name_means_depends_on_the_model():
    gated = make_model(gated_mlp=True)
    params = make_params(gated)
    acts = run(
        ji.capture("mlp.pre", "mlp.gate", "blocks.*.mlp.hook_pre", "blocks.*.mlp.hook_pre_linear"),
        model=gated,
        params=params,
    )[1]
    check_same(acts["blocks.*.mlp.hook_pre"], acts["mlp.gate"])
    check_same(acts["blocks.*.mlp.hook_pre_linear"], acts["mlp.pre"])
    acts = run(ji.capture("mlp.pre", "blocks.*.mlp.hook_pre"))[1]
    check_same(acts["blocks.*.mlp.hook_pre"], acts["mlp.pre"])
    with pytest.raises(ji.UnvisitedSiteError, match="this MLP has no gate: mlp.hook_pre is mlp.pre"):
        run(ji.capture("blocks.0.mlp.hook_pre_linear"))


def test_a_sum_that_is_normalized_at_once_is_not_taken_for_the_sum():
    bert = make_model(norm_position="post", final_norm=False, attention_dir="bidirectional")
    params = make_params(bert)
    with pytest.raises(ji.UnvisitedSiteError, match="a site for the normalized one only"):
        run(ji.capture("blocks.0.hook_resid_mid"), model=bert, params=params)
    acts = run(
        ji.capture("blocks.0.hook_normalized_resid_post", "blocks.0.ln1.hook_scale", "resid_post"),
        model=bert,
        params=params,
    )[1]
    check_same(acts["blocks.0.hook_normalized_resid_post"], acts["resid_post"][0])
    assert resolve("blocks.0.hook_resid_mid", ["resid_mid", "attn.post_norm_scale", "final.norm_scale"]) == (
        "resid_mid",
        0,
    )


@pytest.mark.parametrize(
    "handler, error, message",
    [
        (ji.zero(Z3, layer=2), ji.InputError, r"'blocks.1.attn.hook_z' names layer 1, and layer=2 .*'blocks.\*.attn.hook_z'"),
        (ji.capture(Z3, layers=[0]), ji.InputError, "names layer 1, and layers=.0. was given"),
        (ji.zero("blocks.3.attn.hook_z"), ji.SiteIndexError, "names layer 3, but there are 3: legal are 0 to 2"),
        (ji.capture("blocks.3.attn.hook_z"), ji.SiteIndexError, "legal are 0 to 2"),
        (ji.zero("blocks.1.attn.hook_zz"), ji.UnvisitedSiteError, "Did you mean 'blocks.1.attn.hook_z'"),
        (ji.zero("blocks.1.attn.z"), ji.UnvisitedSiteError, "Did you mean 'blocks.1.attn.hook_z'"),
        (ji.capture("attn.hook_z"), ji.UnvisitedSiteError, r"blocks.\*.attn.hook_z"),
        (ji.capture("blocks.*.ln_final.hook_scale"), ji.UnvisitedSiteError, "never|matches"),
        (ji.capture("hook_embed"), ji.UnvisitedSiteError, "no counterpart here: embed is the sum"),
        (ji.patch(Z3, per_layer=jnp.zeros((3, 2, 6, 4, 4))), ji.SiteTypeError, "in no layer: give value="),
        (ji.capture("blocks.0.hook_mlp_outt", "atn.z"), ji.UnvisitedSiteError, "(?s)hook_mlp_outt.*'atn.z'"),
    ],
)  # fmt: skip
def test_mistakes(handler, error, message):
    with pytest.raises(error, match=message):
        run(handler)


def test_a_functions_own_names_come_first():
    def guest(x, *, tap):
        for i in range(2):
            x = tap(f"blocks.{i}.hook_resid_pre", x) + 1
        return tap("hook_embed", x)

    acts = ji.run(guest, ji.capture("blocks.*.hook_resid_pre", "hook_embed"))(jnp.zeros((1, 2)))[1]
    assert set(acts) == {"blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "hook_embed"}


def test_python_loops_over_layers_and_generation():
    def guest(x, *, tap):
        for i in range(3):
            x = tap.at(layer=i, n_layers=3)("resid_pre", x) * 2
        return x

    out, acts, _ = ji.run(guest, ji.add("blocks.1.hook_resid_pre", 5.0), ji.capture("blocks.2.hook_resid_pre"))(
        jnp.ones((1, 2))
    )
    check_same(acts["blocks.2.hook_resid_pre"], [[14.0, 14.0]])
    generate = functools.partial(ji.generate, MODEL, max_new_tokens=3)
    acts = ji.run(generate, ji.capture(Z3, "attn.z"))(PARAMS, TOKENS)[1]
    check_same(acts["prompt/" + Z3], acts["prompt/attn.z"][1])
    check_same(acts[Z3], acts["attn.z"][:, 1])


def test_lifted_and_vmapped_and_jitted():
    def lifted(params, tokens, *, tap):
        return tap.lift(jax.checkpoint)(lambda p, t, *, tap: MODEL.forward(p, t, tap=tap))(params, tokens)

    acts = jax.jit(ji.run(lifted, ji.capture(Z3)))(PARAMS, TOKENS)[1]
    check_close(acts[Z3], run(ji.capture("attn.z"))[1]["attn.z"][1])
    many = jax.vmap(lambda t: ji.run(MODEL.forward, ji.capture(Z3))(PARAMS, t)[1][Z3])(TOKENS[:, None])
    check_close(many[:, 0], acts[Z3])


def test_sweeps_attribution_and_tables():
    source = (TOKENS + 1) % 11
    how = dict(base=TOKENS, source=source, metric=ji.patching.logit_difference([1, 2], [3, 4], [5, 5]), progress=False)
    want = ji.patching.sweep(MODEL, PARAMS, site="attn.z", over="layer,head", **how).effect
    one = ji.patching.sweep(MODEL, PARAMS, site=Z3, over="head", **how).effect
    assert one.dims == ("layer", "head")
    check_same(one.values[0], want.values[1])
    check_same(ji.patching.sweep(MODEL, PARAMS, site="blocks.*.attn.hook_z", over="layer,head", **how).effect, want)
    cells = [{"site": "blocks.2.attn.hook_z", "head": 3}, {"site": "attn.z", "layer": 2, "head": 3}]
    listed = ji.patching.sweep(MODEL, PARAMS, over=cells, **how).effect.values
    check_close(listed, np.repeat(want.values[2, 3], 2))
    with pytest.raises(ji.InputError, match="names layer 1, and layer=None is an axis of over too"):
        ji.patching.sweep(MODEL, PARAMS, site=Z3, over="layer,head", **how)
    scores = ji.attribution.attribution_patching(MODEL, PARAMS, sites="blocks.*.attn.hook_z", **how)
    assert list(scores.scores) == ["attn.z"]
    with pytest.raises(ji.InputError, match="one backward pass gives the scores of all layers"):
        ji.attribution.attribution_patching(MODEL, PARAMS, sites=Z3, **how)
    table = ji.sites(MODEL.forward, PARAMS, TOKENS)
    assert (table[Z3].stacked_shape, table["blocks.*.attn.hook_z"].stacked_shape) == ((2, 6, 4, 4), (3, 2, 6, 4, 4))
    with pytest.raises(ji.SiteIndexError, match="legal are 0 to 2"):
        table["blocks.7.attn.hook_z"]


def test_run_with_cache(shared):
    lm = ji.load(shared / "stories260k")
    acts = lm.run_with_cache("Once upon a time", "blocks.3.attn.hook_pattern", "blocks.*.hook_resid_post")[1]
    assert {name: a.shape[0] for name, a in acts.items()} == {
        "blocks.3.attn.hook_pattern": 1,
        "blocks.*.hook_resid_post": 5,
    }


def test_the_table_names_each_hook_once_and_says_why_there_is_none():
    keys = [(alias.hook, alias.layered) for alias in ALIASES]
    assert len(set(keys)) == len(keys)
    assert all(alias.sites or alias.note for alias in ALIASES)
