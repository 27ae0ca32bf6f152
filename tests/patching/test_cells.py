"""Cells: blocks, lists, joint edits, several sites; sources of other lengths; null distributions and intervals."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji


@pytest.fixture
def call(small, difference):
    model, params, base, source = small
    return functools.partial(
        ji.patching.sweep,
        model,
        params,
        base=base,
        source=source,
        site="attn.z",
        metric=difference,
        keep=("prompts",),
        progress=False,
    )


@pytest.fixture
def effect(small, measured):
    """The effect [B] of handlers, by a whole forward pass."""
    model, params, base, _ = small
    forward = jax.jit(lambda handlers: ji.run(model.forward, *handlers)(params, base)[0])  # places are traced
    return lambda *handlers: measured(forward(handlers)) - measured(forward(()))


@pytest.fixture
def acts(small):
    model, params, _, source = small
    return ji.run(model.forward, ji.capture("attn.z", "mlp.out"))(params, source)[1]


def test_blocks_are_edited_as_one(call, effect, acts, check_same):
    got = call(over={"layer": [0, (1, 2)], "head": [(0, 3), 1], "position": [(2, 3, 4), (0, 5)]})
    assert got.layer.values.tolist() == ["0", "1,2"] and got.position.values.tolist() == ["2-4", "0,5"]
    for (i, layer), (j, head), (k, position) in itertools.product(
        enumerate([[0], [1, 2]]), enumerate([[0, 3], [1]]), enumerate([[2, 3, 4], [0, 5]])
    ):
        want = effect(ji.patch("attn.z", per_layer=acts["attn.z"], layer=layer, head=head, position=position))
        check_same(got.effect_by_prompt.values[i, j, k] + 1, want + 1)


def test_listed_cells_of_several_sites_and_parts(call, effect, acts, check_same):
    z = lambda **where: ji.patch("attn.z", per_layer=acts["attn.z"], **where)
    m = lambda **where: ji.patch("mlp.out", per_layer=acts["mlp.out"], **where)
    cells = [
        {"layer": 1, "head": 2},
        [{"layer": 0, "head": 1}, {"layer": 2, "head": 3, "position": 5}],
        {"site": "mlp.out", "layer": 0},
        [{"layer": 1, "head": [0, 1]}, {"site": "mlp.out", "layer": 2, "position": [4, 5]}],
        {"layer": 0, "head": 3, "position": 1},
    ]
    handlers = [
        [z(layer=1, head=2)], [z(layer=0, head=1), z(layer=2, head=3, position=5)], [m(layer=0)],
        [z(layer=1, head=[0, 1]), m(layer=2, position=[4, 5])], [z(layer=0, head=3, position=1)],
    ]  # fmt: skip
    got = call(over=cells)
    assert got.effect.dims == ("cell",)
    assert got.layer.values.tolist() == ["1", "0+2", "0", "1+2", "0"]
    assert got.site.values.tolist() == ["attn.z", "attn.z+attn.z", "mlp.out", "attn.z+mlp.out", "attn.z"]
    check_same(got.effect_by_prompt.values, np.stack([effect(*h) for h in handlers]))


def test_several_sites_share_an_axis(call):
    both = call(site=["attn.out", "mlp.out"], over="layer")
    assert both.effect.dims == ("site", "layer")
    for name in ("attn.out", "mlp.out"):
        alone = call(site=name, over="layer")
        np.testing.assert_array_equal(both.effect.sel(site=name).values, alone.effect.values)
        np.testing.assert_array_equal(both.effect_by_prompt.sel(site=name).values, alone.effect_by_prompt.values)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([{"layer": 0, "heads": 1}], "not understood"),
        ([{"site": "attn.z"}], "at least one of"),
        ([[]], "empty"),
        ([{"layer": 0, "head": 9}], "legal are 0 to 3"),
        ([{"layer": 0, "role": "name"}], "no roles were given"),
    ],
)
def test_lists_that_are_not_legal(call, cells, message):
    with pytest.raises(ji.JaxinterpError, match=message):
        call(over=cells)


def test_a_source_of_another_length_is_mapped(small, difference, effect, check_same):
    """Source prompts have one more token; positions from 2 on are shifted by one, and position 1 has no counterpart."""
    model, params, base, _ = small
    extra = jax.random.randint(jax.random.key(5), (3, 7), 0, 11)
    source = jnp.concatenate([base[:, :1], extra[:, 1:3], base[:, 2:]], 1)
    positions = np.array([[0, -1, 3, 4, 5, 6]] * 3)
    acts = ji.run(model.forward, ji.capture("resid_post"))(params, source)[1]["resid_post"]
    args = dict(base=base, source=source, metric=difference, keep=("prompts",), progress=False)
    got = ji.patching.sweep(model, params, site="resid_post", over="layer,position", positions=positions, **args)
    for layer, position in itertools.product(range(3), range(6)):
        if position == 1:
            assert (got.effect_by_prompt.values[layer, 1] == 0).all()
            continue
        value = acts[layer][:, positions[0, position]][:, None]
        want = effect(ji.patch("resid_post", value, layer=layer, position=position))
        check_same(got.effect_by_prompt.values[layer, position] + 1, want + 1)
    with pytest.raises(ji.InputError, match=r"positions=, a map"):
        ji.patching.sweep(model, params, site="resid_post", over="layer", **args)
    with pytest.raises(ji.InputError, match="legal are -1 to 6"):
        ji.patching.sweep(model, params, site="resid_post", over="layer", positions=positions + 1, **args)


def test_means_by_template(small, effect, call, check_same):
    model, params, base, _ = small
    groups = np.array([0, 1, 0])
    own = np.asarray(ji.run(model.forward, ji.capture("attn.z"))(params, base)[1]["attn.z"])
    means = own.copy()
    means[:, [0, 2]] = own[:, [0, 2]].mean(1, keepdims=True)
    got = call(over="layer,head", op=functools.partial(ji.mean, over="B", groups=groups), source=None)
    for layer, head in itertools.product(range(3), range(4)):
        want = effect(ji.patch("attn.z", per_layer=means, layer=layer, head=head))
        check_same(got.effect_by_prompt.values[layer, head] + 1, want + 1)
    assert (got.effect_by_prompt.values[:, :, 1] == 0).all() or np.abs(
        got.effect_by_prompt.values[:, :, 1]
    ).max() < 1e-5


def test_null_values_of_other_prompts(small, call, effect, check_same):
    model, params, base, _ = small
    own = ji.run(model.forward, ji.capture("attn.z"))(params, base)[1]["attn.z"]
    got = call(over="layer,head", null="prompts", draws=3, seed=4)
    assert got.null.dims == ("draw", "layer", "head") and got.sizes["draw"] == 3
    orders = [p for p in itertools.permutations(range(3)) if all(i != j for i, j in enumerate(p))]
    for draw in got.null.values:
        candidates = [
            np.array(
                [
                    [effect(ji.patch("attn.z", per_layer=own[:, list(p)], layer=i, head=j)).mean() for j in range(4)]
                    for i in range(3)
                ]
            )
            for p in orders
        ]
        assert min(np.abs(draw - c).max() for c in candidates) < 1e-5
    np.testing.assert_array_equal(got.effect.values, call(over="layer,head").effect.values)


def test_null_directions_have_the_length_of_the_change(small, acts):
    from jaxinterp.patching._null import _turned

    model, params, base, _ = small
    own = ji.run(model.forward, ji.capture("attn.z"))(params, base)[1]["attn.z"]
    turned = np.asarray(_turned(own, acts["attn.z"], jax.random.key(0)))
    real, random = np.asarray(acts["attn.z"] - own), turned - np.asarray(own)
    length = lambda x: np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(length(random), length(real), rtol=1e-4, atol=1e-6)
    cosine = (real * random).sum(-1) / np.maximum(length(real) * length(random), 1e-9)
    assert abs(cosine.mean()) < 0.2 and cosine.std() > 0.3


def test_null_directions_of_sites_whose_names_are_anagrams_differ():
    def guest(weights, tokens, *, tap):
        x = jax.nn.one_hot(tokens, 5) @ weights
        return jnp.tanh(tap("in_out", tap("out_in", x)))

    how = dict(base=jnp.array([[0, 1]]), source=jnp.array([[2, 3]]), metric=ji.patching.logit_difference([0], [1], [1]))
    weights = jax.random.normal(jax.random.key(0), (5, 5))
    call = functools.partial(ji.patching.sweep, guest, weights, over={"position": [1]}, **how, progress=False)
    one, other = (call(site=site, null="directions", draws=2).null.values for site in ("in_out", "out_in"))
    assert (one != other).all()


def test_null_draws_are_deterministic_and_refused_where_undefined(call):
    a, b = (call(over="layer", null="directions", draws=2, seed=s).null.values for s in (1, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, call(over="layer", null="directions", draws=2, seed=2).null.values)
    with pytest.raises(ji.InputError, match="'prompts' .* and 'directions'"):
        call(over="layer", null="noise")
    lengths = jnp.arange(6)[None] < jnp.array([6, 6, 5])[:, None]
    with pytest.raises(ji.InputError, match="some prompt has no other"):
        call(over="layer", null="prompts", mask=lengths, metric=ji.patching.logit_difference([1] * 3, [2] * 3, [4] * 3))


def test_intervals_are_those_of_a_plain_bootstrap(call):
    got = call(over="layer,head", keep=("prompts", "interval"))
    effects = got.effect_by_prompt.values.reshape(12, 3)
    rng = np.random.default_rng(9)
    means = effects[:, rng.integers(0, 3, (20000, 3))].mean(-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    spread = np.ptp(effects, axis=1)
    assert (np.abs(got.low.values.ravel() - low) <= 0.1 * spread + 1e-6).all()
    assert (np.abs(got.high.values.ravel() - high) <= 0.1 * spread + 1e-6).all()
    assert (got.low <= got.effect + 1e-6).all() and (got.effect <= got.high + 1e-6).all()


@pytest.mark.parametrize(
    ("site", "layer"), [("resid_pre", None), ("attn.v", [(0, 1)]), ("attn.in", [(0, 1, 2)]), ("resid_pre", [(0, 1)])]
)
def test_patches_of_several_layers_at_once(small, difference, effect, check_same, site, layer):
    """Where tokens agree, layer 0 has nothing to bring, but the layers above have."""
    model, params, base, _ = small
    source = base.at[:, 2].set((base[:, 2] + 3) % 11)
    acts = ji.run(model.forward, ji.capture(site))(params, source)[1][site]
    over = {"position": None} | ({} if layer is None else {"layer": layer})
    got = ji.patching.sweep(
        model,
        params,
        base=base,
        source=source,
        site=site,
        over=over,
        metric=difference,
        keep=("prompts",),
        progress=False,
    ).effect_by_prompt.values.reshape(6, 3)
    where = {} if layer is None else {"layer": list(layer[0])}
    want = np.stack([effect(ji.patch(site, per_layer=acts, position=i, **where)) for i in range(6)])
    check_same(got, want)
    assert np.abs(want[3:5]).max() > 1e-3


@pytest.mark.parametrize(
    "op",
    [
        functools.partial(ji.scale, factor=0.5),
        functools.partial(ji.add, value=1.0),
        ji.mean,
        lambda s: ji.edit(s, jnp.tanh),
    ],
)
@pytest.mark.parametrize("over", ["head", {"layer": [(0, 1)], "head": None}])
def test_ops_at_several_layers_see_what_the_lower_ones_left(call, effect, check_same, op, over):
    got = call(over=over, op=op, source=None).effect_by_prompt.values.reshape(4, 3)
    where = {} if over == "head" else {"layer": [0, 1]}
    check_same(got, np.stack([effect(ji.tap.place(op("attn.z"), head=head, **where)) for head in range(4)]))


def test_listed_cells_with_and_without_a_position_keep_short_prompts(small, check_same):
    model, params, base, source = small
    mask = jnp.arange(6)[None] < jnp.array([6, 4, 5])[:, None]
    metric = ji.patching.logit_difference([1, 2, 3], [4, 5, 6], [5, 3, 4])
    args = dict(base=base, source=source, mask=mask, site="attn.z", metric=metric, keep=("prompts",), progress=False)
    mixed = ji.patching.sweep(
        model, params, over=[{"layer": 0, "head": 1}, {"layer": 0, "head": 1, "position": 5}], **args
    )
    alone = ji.patching.sweep(model, params, over={"layer": [0], "head": [1]}, **args)
    check_same(mixed.effect_by_prompt.values[0], alone.effect_by_prompt.values[0, 0])
    assert np.isnan(mixed.effect_by_prompt.values[1]).tolist() == [False, True, True]


def test_rows_without_a_counterpart_are_left_alone(small, difference, effect, acts, check_same):
    """At layer 1, position 3 keeps what the patch at layer 0 made of it."""
    model, params, base, source = small
    positions = np.array([[0, 1, 2, -1, 4, 5]] * 3)
    got = ji.patching.sweep(
        model, params, base=base, source=source, site="resid_pre", over={"layer": [(0, 1)], "position": [(2, 3)]},
        metric=difference, positions=positions, keep=("prompts",), progress=False,
    )  # fmt: skip
    stream = ji.run(model.forward, ji.capture("resid_pre"))(params, source)[1]["resid_pre"]
    want = effect(ji.patch("resid_pre", per_layer=stream, layer=[0, 1], position=2))
    check_same(got.effect_by_prompt.values[0, 0], want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(positions=np.array([[0, 1, 2, 3, 4, -1]] * 3)), "maps to nothing"),
        (dict(op=functools.partial(ji.scale, factor=0.0, position=0), source=None), "Leave it out of op"),
        (dict(site="attn.pattern", null="directions"), "null='directions' turns"),
        (dict(over="layer,role", roles={"name": np.array([1.5, 2.0, 3.0])}), "role 'name' is float64"),
        (dict(over="layer,role", roles={"name": np.array([1, 2])}), r"in each prompt, integers from 0, \[3\]"),
    ],
)
def test_arguments_that_cannot_be_meant(call, change, message):
    with pytest.raises(ji.InputError, match=message):
        call(**{"over": "layer", **change})


def test_a_plan_is_not_given_with_a_budget_nor_for_another_mesh(call):
    how = {k: v for k, v in call.keywords.items() if k not in ("keep", "progress")}
    plan = ji.patching.plan(*call.args, **how, over={"layer": None, "head": [0, 1, 2]})
    with pytest.raises(ji.InputError, match="plan and memory"):
        call(over="layer,head", plan=plan, memory=1 << 30)
    with pytest.raises(ji.InputError, match="Make the plan with the same mesh"):
        call(over={"layer": None, "head": [0, 1, 2]}, plan=plan, mesh=ji.mesh.make_mesh(cells=2, prompts=1))
