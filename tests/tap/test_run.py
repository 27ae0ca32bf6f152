"""Errors of names and scopes, duplicates, and the table of sites."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinterp as ji
from tests.tiny import check_same


def test_a_site_that_is_never_visited_is_an_error(tiny):
    for handler in (
        ji.capture("resid_prex"),
        ji.zero("resid_prex"),
        ji.perturb({"resid_prex": jnp.zeros(1)}),
        ji.statistics("resid_prex"),
    ):
        with pytest.raises(ji.UnvisitedSiteError, match="'resid_prex'.*Did you mean 'resid_pre'"):
            jax.eval_shape(ji.run(tiny.forward, handler), tiny.params, tiny.tokens)
    with pytest.raises(LookupError):
        jax.jit(ji.run(tiny.forward, ji.zero("attn.pattrn")))(tiny.params, tiny.tokens)


def test_all_unvisited_sites_are_told_together(tiny):
    with pytest.raises(ji.UnvisitedSiteError) as error:
        ji.run(tiny.forward, ji.capture("attn.zz", "embed"), ji.zero("mlp.pots"), ji.capture("nothing.*"))(
            tiny.params, tiny.tokens
        )
    for part in ("'attn.zz'", "'attn.z'", "'mlp.pots'", "'mlp.post'", "glob 'nothing.*'"):
        assert part in str(error.value)


def test_an_on_demand_site_is_suggested(tiny):
    with pytest.raises(ji.UnvisitedSiteError, match=r"'attn\.pattern'"):
        ji.run(tiny.forward, ji.capture("attn.patterns"))(tiny.params, tiny.tokens)


def test_a_glob_finds_no_on_demand_site(tiny):
    with pytest.raises(ji.UnvisitedSiteError, match="in full"):
        ji.run(tiny.forward, ji.capture("attn.patt*"))(tiny.params, tiny.tokens)


def raw_scan(x, *, tap):
    return lax.scan(lambda c, _: (tap("x", c), None), x, None, length=2)[0]


def raw_while(x, *, tap):
    return lax.fori_loop(0, 2, lambda i, c: tap("x", c), x)


def inner(transform):
    return lambda x, *, tap: transform(lambda v: tap("x", v))(x)


SCOPES = {
    "scan": raw_scan,
    "fori_loop": raw_while,
    "cond": lambda x, *, tap: lax.cond(x[0, 0] > 0, lambda v: tap("x", v), lambda v: v, x),
    "jit": inner(jax.jit),
    "vmap": inner(jax.vmap),
    "checkpoint": inner(jax.checkpoint),
    "grad": inner(lambda f: jax.grad(lambda v: f(v).sum())),
    "scan of taps": lambda x, *, tap: jax.jit(
        lambda v: tap.scan(lambda c, _, *, tap: (tap("x", c), None), v, None, length=2)[0]
    )(x),
    "lift": lambda x, *, tap: jax.jit(lambda v: tap.lift(jax.jit)(lambda u, *, tap: tap("x", u))(v))(x),
}


@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_tap_in_a_transformation_that_it_did_not_enter_is_an_error(name, outer):
    x = jnp.ones((2, 3))
    with pytest.raises(ji.TapScopeError, match="did not enter"):
        outer(ji.run(SCOPES[name], ji.capture("x")))(x)
    assert SCOPES[name](x, tap=ji.IDENTITY).shape == x.shape  # without handlers nothing is lost


def test_a_tap_of_an_outer_loop_is_an_error():
    def body(carry, _, *, tap, outer):
        return outer("x", carry), None

    def fn(x, *, tap):
        return tap.scan(functools.partial(body, outer=tap), x, None, length=2)[0]

    with pytest.raises(ji.TapScopeError, match="'x'"):
        ji.run(fn, ji.capture("x"))(jnp.ones((2, 3)))


def test_contexts_that_are_no_transformation_are_fine():
    def fn(x, *, tap):
        with jax.named_scope("inside"), jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
            return tap("x", x)

    check_same(ji.run(fn, ji.zero("x"))(jnp.ones((1, 2)))[0], np.zeros((1, 2)))


def twice(x, *, tap):
    return tap("x", tap("x", x) + 1)


def test_one_site_emitted_twice_is_an_error():
    x = jnp.ones((2, 3))
    with pytest.raises(ji.DuplicateSiteError, match="'x' is tapped twice"):
        ji.run(twice, ji.capture("x"))(x)
    layered = lambda x, *, tap: tap.scan(lambda c, _, *, tap: (twice(c, tap=tap), None), x, None, length=2)[0]
    with pytest.raises(ji.DuplicateSiteError):
        ji.run(layered, ji.capture("x"))(x)
    with pytest.raises(ji.DuplicateSiteError):
        ji.run(layered, ji.capture("x", layers=[0]))(x)
    looped = lambda x, *, tap: tap.at(layer=0, n_layers=2)("x", tap.at(layer=0, n_layers=2)("x", x))
    with pytest.raises(ji.DuplicateSiteError):
        ji.run(looped, ji.capture("x"))(x)


def test_two_captures_of_one_site_need_a_prefix(tiny):
    with pytest.raises(ji.DuplicateSiteError, match="prefix"):
        ji.run(tiny.forward, ji.capture("resid_*"), ji.capture("resid_pre"))(tiny.params, tiny.tokens)
    acts = ji.run(tiny.forward, ji.capture("resid_pre"), ji.capture("resid_pre", prefix="b/"))(
        tiny.params, tiny.tokens
    )[1]
    check_same(acts["resid_pre"], acts["b/resid_pre"])


def test_what_is_no_handler_is_an_error(tiny):
    with pytest.raises(ji.InputError, match="in place of a handler"):
        inspect.unwrap(ji.run)(tiny.forward, "resid_pre")  # without the type checker of this session


def test_axes_that_do_not_fit_are_an_error():
    with pytest.raises(ji.SiteTypeError, match="2 letters.*3 axes"):
        ji.run(lambda x, *, tap: tap("x", x, "BT"), ji.capture("x"))(jnp.ones((1, 2, 3)))


def test_the_place_of_a_layer_is_checked():
    fn = lambda x, *, tap, place: tap.at(**place)("x", x)
    with pytest.raises(ji.InputError, match="together"):
        ji.run(functools.partial(fn, place=dict(layer=1)), ji.capture("x"))(jnp.ones((1, 2)))
    with pytest.raises(ji.SiteIndexError, match="0 to 1"):
        ji.run(functools.partial(fn, place=dict(layer=2, n_layers=2)), ji.capture("x"))(jnp.ones((1, 2)))


def test_scan_counts_layers_or_steps():
    with pytest.raises(ji.InputError, match="'layer', 'step'"):
        ji.run(
            lambda x, *, tap: tap.scan(lambda c, _, *, tap: (tap("x", c), None), x, None, length=2, axis="head")[0],
            ji.capture("x"),
        )(jnp.ones((1, 2)))


def test_the_table_of_sites(tiny, count_compiles):
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (tiny.params, tiny.tokens))
    with count_compiles() as compiles:
        table = ji.sites(tiny.forward, *shapes)
    assert compiles.names == []
    assert len(table) == len(list(table)) == 29
    z = table["attn.z"]
    assert (z.axes, z.stacked_shape, z.bytes, z.on_demand) == ("BTHE", (3, 2, 6, 4, 4), 3 * 2 * 6 * 16 * 4, False)
    assert table["attn.pattern"].on_demand
    lines = str(table).splitlines()
    assert lines[0].split() == ["site", "axes", "shape", "dtype", "bytes", "computed"] and len(lines) == 31
    assert any(line.split() == ["attn.k", "LBTKE", "(3,2,6,2,4)", "float32", "1,152", "always"] for line in lines)
    with pytest.raises(ji.UnvisitedSiteError, match=r"attn\.z"):
        table["attn.zz"]


def test_run_gives_states_in_the_order_of_handlers(tiny):
    _, _, states = ji.run(tiny.forward, ji.capture("embed"), ji.statistics("embed"), ji.zero("embed"))(
        tiny.params, tiny.tokens
    )
    assert states[0] == () and set(states[1]) == {"embed"} and states[2] == ()


def test_run_takes_any_arguments(tiny):
    out, acts, _ = ji.run(tiny.forward, ji.capture("final.in"), ji.statistics("final.in"))(
        tiny.params, tiny.tokens, mask=None, read=jnp.array([[5]])
    )
    assert out.shape == (2, 1, 11) and acts["final.in"].shape == (2, 1, 8)
