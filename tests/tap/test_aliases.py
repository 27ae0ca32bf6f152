"""TransformerLens's names wherever a user names a site: as ours, in one layer or in all. (Their values: tests/parity.)"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.patching._names import in_own_names
from jaxinterp.tap._aliases import ALIASES, resolve
from tests.tiny import check_close, check_same, make_model, make_params, make_tokens

Z1 = "blocks.1.attn.hook_z"
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4)), jnp.float32)


def toy(x, weights=WEIGHTS, *, gated=False, tap):
    """Three layers with the sites that the tests name: cheaper to compile than a transformer."""

    def layer(x, weight, *, tap):
        x = tap("resid_pre", x)
        z = tap("attn.z", jnp.tanh(x @ weight).reshape(2, 6, 2, 2))
        x = x + tap("attn.out", z.reshape(2, 6, 4))
        pre = tap("mlp.pre", x @ weight.T)
        if gated:
            gate = jnp.sin(pre)
            gate = tap("mlp.gate", gate) if tap.wants("mlp.gate") else gate
            pre = gate * pre
        return x + tap("mlp.out", pre), None

    x = tap("final.in", tap.scan(layer, x, weights)[0])
    scale = jnp.abs(x).sum(-1, keepdims=True)
    return x / (tap("final.norm_scale", scale) if tap.wants("final.norm_scale") else scale)


def run(*handlers, **how):
    return jax.jit(ji.run(functools.partial(toy, **how), *handlers))(X)


def test_a_capture_is_named_as_written_and_has_layers_if_it_names_all():
    names = (
        Z1,
        "blocks.*.attn.hook_z",
        "blocks.2.attn.hook_z",
        "ln_final.hook_scale",
        "attn.z",
        "blocks.0.hook_resid_pre",
    )
    acts = run(ji.capture(*names))[1]
    assert set(acts) == set(names)
    check_same(acts[Z1], acts["attn.z"][1])
    check_same(acts["blocks.2.attn.hook_z"], acts["attn.z"][2])
    check_same(acts["blocks.*.attn.hook_z"], acts["attn.z"])
    assert acts["ln_final.hook_scale"].shape == (2, 6, 1)


def test_captures_take_a_reduction_positions_and_a_prefix():
    acts = run(ji.capture(Z1, of=lambda x: {"sum": x.sum()}, prefix="a/"), ji.capture(Z1, position=2))[1]
    whole = run(ji.capture("attn.z"))[1]["attn.z"][1]
    check_close(acts["a/" + Z1]["sum"], whole.sum())
    check_same(acts[Z1], whole[:, 2:3])


EDITS = {
    "zero": lambda site, **where: ji.zero(site, **where),
    "patch": lambda site, **where: ji.patch(site, jnp.full(2, 0.5), **where),
    "add": lambda site, **where: ji.add(site, jnp.full(2, 0.5), coefficient=2.0, **where),
    "scale": lambda site, **where: ji.scale(site, 3.0, **where),
    "mean": lambda site, **where: ji.mean(site, **where),
    "edit": lambda site, **where: ji.edit(site, jnp.negative, **where),
    "project_out": lambda site, **where: ji.project_out(site, np.ones(2), **where),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_in_one_layer(kind):
    make = EDITS[kind]
    check_close(run(make(Z1, head=1, position=[1, 4]))[0], run(make("attn.z", layer=1, head=1, position=[1, 4]))[0])


def test_edits_in_all_layers_and_at_chosen_ones():
    check_close(run(ji.zero("blocks.*.attn.hook_z", layer=[0, 2]))[0], run(ji.zero("attn.z", layer=[0, 2]))[0])
    stacked = jnp.asarray(np.random.default_rng(3).normal(size=(3, 2, 6, 2, 2)), jnp.float32)
    check_close(
        run(ji.patch("blocks.*.attn.hook_z", per_layer=stacked))[0], run(ji.patch("attn.z", per_layer=stacked))[0]
    )


def test_perturb_and_statistics():
    delta = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 2, 2)), jnp.float32)
    stacked = jnp.zeros((3, *delta.shape)).at[1].set(delta)
    want = run(ji.perturb({"attn.z": stacked}))[0]
    check_close(run(ji.perturb({Z1: delta}))[0], want)
    check_close(run(ji.perturb({"blocks.*.attn.hook_z": stacked}))[0], want)
    names = (Z1, "blocks.*.hook_mlp_out")
    once = run(ji.statistics(*names))[2][0]
    twice = run(ji.statistics(*names, state=once))[2][0]
    want = run(ji.statistics("attn.z", "mlp.out"))[2][0]
    assert set(twice) == set(names)
    check_close(once[Z1].mean, want["attn.z"].mean[1])
    check_close(once["blocks.*.hook_mlp_out"].variance, want["mlp.out"].variance)
    assert (once[Z1].count, twice[Z1].count) == (12, 24)


def test_gradients_pass():
    loss = lambda delta, name: ji.run(toy, ji.perturb({name: delta}))(X)[0].sum()
    grad = jax.jit(jax.grad(loss), static_argnums=1)
    check_close(grad(jnp.zeros((2, 6, 2, 2)), Z1), grad(jnp.zeros((3, 2, 6, 2, 2)), "attn.z")[1])


def test_what_a_name_means_depends_on_the_function():
    names = ("mlp.pre", "mlp.gate", "blocks.*.mlp.hook_pre", "blocks.*.mlp.hook_pre_linear")
    acts = run(ji.capture(*names), gated=True)[1]
    check_same(acts["blocks.*.mlp.hook_pre"], acts["mlp.gate"])
    check_same(acts["blocks.*.mlp.hook_pre_linear"], acts["mlp.pre"])
    acts = run(ji.capture("mlp.pre", "blocks.*.mlp.hook_pre"))[1]
    check_same(acts["blocks.*.mlp.hook_pre"], acts["mlp.pre"])
    with pytest.raises(ji.UnvisitedSiteError, match="this MLP has no gate: mlp.hook_pre is mlp.pre"):
        run(ji.capture("blocks.0.mlp.hook_pre_linear"))


def test_a_sum_that_is_normalized_at_once_is_not_taken_for_the_sum():
    bert = make_model(norm_position="post", final_norm=False, attention_dir="bidirectional")
    known = [site.name for site in ji.sites(bert.forward, bert.param_shapes(), make_tokens())]
    assert resolve("blocks.0.hook_resid_mid", known) is None
    assert resolve("blocks.0.hook_normalized_resid_post", known) == ("resid_post", 0)
    assert resolve("blocks.0.ln1.hook_scale", known) == ("attn.post_norm_scale", 0)
    with pytest.raises(ji.UnvisitedSiteError, match="a site for the normalized one only"):
        jax.eval_shape(
            ji.run(bert.forward, ji.capture("blocks.0.hook_resid_mid")),
            bert.param_shapes(),
            jnp.zeros((1, 2), jnp.int32),
        )
    olmo = make_model(norm_position="output", normalization_type="RMS")
    known = [site.name for site in ji.sites(olmo.forward, olmo.param_shapes(), make_tokens())]
    assert resolve("blocks.0.hook_resid_mid", known) == ("resid_mid", 0)
    both = ["attn.norm_scale", "attn.post_norm_scale", "mlp.norm_scale", "mlp.post_norm_scale"]  # of sandwich norms
    assert [resolve(f"blocks.0.{name}.hook_scale", both) for name in ("ln1", "ln1_post", "ln2", "ln2_post")] == [
        (site, 0) for site in both
    ]


@pytest.mark.parametrize(
    "handler, error, message",
    [
        (ji.zero(Z1, layer=2), ji.InputError, r"'blocks.1.attn.hook_z' names layer 1, and layer=2 .*'blocks.\*.attn.hook_z'"),
        (ji.capture(Z1, layers=[0]), ji.InputError, "names layer 1, and layers=.0. was given"),
        (ji.zero("blocks.3.attn.hook_z"), ji.SiteIndexError, "names layer 3, but there are 3: legal are 0 to 2"),
        (ji.capture("blocks.3.attn.hook_z"), ji.SiteIndexError, "legal are 0 to 2"),
        (ji.zero("blocks.1.attn.hook_zz"), ji.UnvisitedSiteError, "Did you mean 'blocks.1.attn.hook_z'"),
        (ji.zero("blocks.1.attn.z"), ji.UnvisitedSiteError, "Did you mean 'blocks.1.attn.hook_z'"),
        (ji.capture("attn.hook_z"), ji.UnvisitedSiteError, r"blocks.\*.attn.hook_z"),
        (ji.capture("blocks.*.ln_final.hook_scale"), ji.UnvisitedSiteError, "never|matches"),
        (ji.capture("unembed.hook_in"), ji.UnvisitedSiteError, "no counterpart here: what the unembedding reads"),
        (ji.capture("blocks.0.hook_result"), ji.UnvisitedSiteError, "never visits"),
        (ji.patch(Z1, per_layer=jnp.zeros((3, 2, 6, 2, 2))), ji.SiteTypeError, "in no layer: give value="),
        (ji.capture("blocks.0.hook_mlp_outt", "atn.z"), ji.UnvisitedSiteError, "(?s)hook_mlp_outt.*'atn.z'"),
    ],
)  # fmt: skip
def test_mistakes(handler, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(ji.run(toy, handler), X)


def test_a_functions_own_names_come_first():
    def guest(x, *, tap):
        for i in range(2):
            x = tap(f"blocks.{i}.hook_resid_pre", x) + 1
        return tap("hook_embed", tap("embed.token", x) + 1)

    acts = ji.run(guest, ji.capture("blocks.*.hook_resid_pre", "hook_embed"))(jnp.zeros((1, 2)))[1]
    assert set(acts) == {"blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "hook_embed"}
    check_same(acts["hook_embed"], [[3.0, 3.0]])  # not embed.token, which the name means elsewhere


def test_python_loops_over_layers():
    def guest(x, *, tap):
        for i in range(3):
            x = tap.at(layer=i, n_layers=3)("resid_pre", x) * 2
        return x

    handlers = (
        ji.add("blocks.1.hook_resid_pre", 5.0),
        ji.capture("blocks.2.hook_resid_pre", "blocks.*.hook_resid_pre"),
    )
    acts = jax.jit(ji.run(guest, *handlers))(jnp.ones((1, 2)))[1]
    check_same(acts["blocks.2.hook_resid_pre"], [[14.0, 14.0]])
    assert acts["blocks.*.hook_resid_pre"].shape == (3, 1, 2)


def test_segments_steps_and_transformations():
    """Two loops over layers, of which one has the layer; a loop over steps around them; checkpoint and vmap."""

    def guest(x, *, tap):
        body = lambda x, w, *, tap: (tap("resid_pre", x) * w, None)
        inner = lambda x, *, tap: tap.scan(body, x, jnp.arange(2.0), first=0, total=3)[0] + 1
        x = tap.lift(jax.checkpoint)(inner)(x)
        return tap.scan(body, x, jnp.ones(1), first=2, total=3)[0]

    names = [f"blocks.{i}.hook_resid_pre" for i in range(3)]
    acts = jax.jit(ji.run(guest, ji.capture(*names, "resid_pre")))(jnp.ones((1, 2)))[1]
    for i, name in enumerate(names):
        check_same(acts[name], acts["resid_pre"][i])
    mapped = jax.jit(jax.vmap(lambda x: ji.run(guest, ji.capture(names[0]))(x)[1][names[0]]))(jnp.ones((3, 1, 2)))
    assert mapped.shape == (3, 1, 2)

    def steps(x, *, tap):
        return tap.scan(lambda x, _, *, tap: (guest(x, tap=tap), None), x, None, axis="step", length=4)[0]

    acts = jax.jit(ji.run(steps, ji.capture(*names, "resid_pre")))(jnp.ones((1, 2)))[1]
    for i, name in enumerate(names):
        check_same(acts[name], acts["resid_pre"][:, i])


def test_sweeps_and_tables():
    model, tokens = make_model(), make_tokens()
    params = make_params(model)
    table = ji.sites(model.forward, model.param_shapes(), tokens)
    assert (table[Z1].stacked_shape, table["blocks.*.attn.hook_z"].stacked_shape) == ((2, 6, 4, 4), (3, 2, 6, 4, 4))
    with pytest.raises(ji.SiteIndexError, match="legal are 0 to 2"):
        table["blocks.7.attn.hook_z"]
    assert in_own_names("layer,head", "blocks.*.attn.hook_z", table) == ("layer,head", "attn.z")
    assert in_own_names("head", Z1, table) == ({"layer": [1], "head": None}, "attn.z")
    cells = [{"site": "blocks.2.attn.hook_z", "head": 3}, [{"layer": 2}, {"site": "attn.z", "head": 3}]]
    assert in_own_names(cells, "mlp.out", table)[0] == [
        [{"layer": [2], "site": "attn.z", "head": 3}],
        [{"layer": 2, "site": "mlp.out"}, {"site": "attn.z", "head": 3}],
    ]
    with pytest.raises(ji.InputError, match="names layer 1, and layer=None is an axis of over too"):
        in_own_names("layer,head", Z1, table)
    metric = ji.patching.logit_difference([1, 2], [3, 4], [5, 5])
    how = dict(base=tokens, source=(tokens + 1) % 11, metric=metric, progress=False)
    listed = ji.patching.sweep(model, params, over=[cells[0], {"site": "attn.z", "layer": 2, "head": 3}], **how)
    assert float(listed.effect[0]) == float(listed.effect[1]) != 0
    one = ji.patching.sweep(model, params, site="blocks.2.attn.hook_z", over={"head": [3]}, **how).effect
    assert one.dims == ("layer", "head") and one.item() == pytest.approx(float(listed.effect[0]), rel=1e-5)
    with pytest.raises(ji.InputError, match="one backward pass gives the scores of all layers"):
        ji.attribution.attribution_patching(model, params, sites=Z1, **how)


def test_the_table_names_each_hook_once_and_says_why_there_is_none():
    keys = [(alias.hook, alias.layered) for alias in ALIASES]
    assert len(set(keys)) == len(keys)
    assert all(alias.sites or alias.note for alias in ALIASES)
