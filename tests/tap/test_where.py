"""Selections: layer, head, position and feature, static and traced, in and out of range."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from tests.tiny import check_close, check_same, make_tokens

L, B, T, H, E = 3, 2, 6, 4, 4
SIZES = {"layer": L, "head": H, "position": T, "feature": E}


@pytest.fixture(scope="module")
def zeroed(tiny):
    """attn.z after zeroing some of it, [L, B, T, H, E]; 1 where the run left it as it was, 0 where it was zeroed."""

    @functools.partial(jax.jit, static_argnames="fixed")
    def run(where, mask=None, fixed=()):
        where = where | {k: np.array(v) for k, v in fixed}
        one = ji.edit("attn.z", jnp.ones_like)
        return ji.run(tiny.forward, one, ji.zero("attn.z", **where), ji.capture("attn.z"))(
            tiny.params, tiny.tokens, mask=mask
        )[1]["attn.z"]

    return run


def expected(where, positions=None):
    """By a loop over every element."""
    out = np.ones((L, B, T, H, E))
    rows = np.tile(np.arange(T), (B, 1)) if positions is None else positions
    for index in np.ndindex(out.shape):
        layer, b, t, head, feature = index
        here = dict(layer=layer, head=head, feature=feature, position=rows[b, t])
        out[index] = not all(
            here[key] in np.ravel(np.asarray(value)[b] if np.ndim(value) == 2 else value)
            for key, value in where.items()
        )
    return out


WHERE = {
    "one layer": dict(layer=1),
    "layers": dict(layer=[0, 2]),
    "heads at a layer": dict(layer=2, head=[1, 3]),
    "position": dict(position=5),
    "positions and feature": dict(position=[0, 4], feature=2),
    "positions by example": dict(position=[[0], [3]], layer=1),
    "several positions by example": dict(position=[[0, 1], [3, 5]], head=0),
    "all four": dict(layer=[1, 2], head=[0], position=[2, 3], feature=[0, 3]),
}


@pytest.mark.parametrize("name", WHERE)
def test_a_selection_is_what_a_loop_selects(zeroed, name):
    where = WHERE[name]
    traced = zeroed({k: np.asarray(v) for k, v in where.items()})
    check_same(traced, expected(where))
    static = zeroed({}, fixed=tuple((k, _hashable(v)) for k, v in where.items()))
    check_same(static, traced)


def _hashable(v):
    return tuple(map(_hashable, v)) if isinstance(v, list) else v


@pytest.mark.parametrize("axis", SIZES)
@pytest.mark.parametrize("off", [-1, 0])
def test_a_traced_index_out_of_range_is_nan(zeroed, axis, off):
    index = -1 if off else SIZES[axis]
    assert np.isnan(zeroed({axis: np.array(index)})).all()
    assert np.isnan(zeroed({axis: np.array([0, index])})).all()
    assert np.isfinite(zeroed({axis: np.array([0, SIZES[axis] - 1])})).all()


def test_a_traced_position_out_of_range_spoils_its_example_only(zeroed):
    out = zeroed({"position": np.array([[1], [T]])})
    assert np.isnan(out[:, 1]).all()
    check_same(out[:, :1], expected({"position": [[1], [1]]})[:, :1])


LEFT = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)


@pytest.mark.parametrize("mask", [LEFT, LEFT[:, ::-1]], ids=["left", "right"])
def test_positions_count_from_the_first_real_token(zeroed, mask):
    positions = np.where(mask, np.cumsum(mask, 1) - 1, -1)
    for where in (dict(position=0), dict(position=[1, 3]), dict(position=[[3], [5]], layer=1)):
        check_same(zeroed({k: np.asarray(v) for k, v in where.items()}, mask=mask), expected(where, positions))
    beyond = zeroed({"position": np.array(4)}, mask=mask)  # the first example has 4 tokens
    assert np.isnan(beyond[:, 0]).all() and np.isfinite(beyond[:, 1]).all()
    assert np.isnan(zeroed({"position": np.array(-1)}, mask=mask)).all()  # -1 is no way to name the padding


def test_a_known_position_that_an_example_lacks_is_an_error(tiny):
    with pytest.raises(ji.SiteIndexError, match=r"position=\[\[4\]\].*\[4, 6\]"):
        ji.run(tiny.forward, ji.zero("attn.z", position=4))(tiny.params, tiny.tokens, mask=jnp.asarray(LEFT))


@pytest.mark.parametrize("axis", SIZES)
def test_a_known_index_out_of_range_is_an_error(tiny, axis):
    size = SIZES[axis]
    f = lambda where: ji.run(tiny.forward, ji.zero("attn.z", **where))(tiny.params, tiny.tokens)
    with pytest.raises(ji.SiteIndexError, match=str(size)):
        f({axis: size})
    with pytest.raises(ji.SiteIndexError, match=str(size)):
        jax.jit(lambda: f({axis: [0, size]}))()
    with pytest.raises(ji.SiteIndexError, match="negative"):
        f({axis: -1})


def test_a_jax_array_whose_value_is_known_is_checked(tiny):
    with pytest.raises(ji.SiteIndexError, match="negative"):
        ji.zero("attn.z", layer=jnp.array([0, -2]))


@pytest.mark.parametrize("bad", [1.5, [0.0, 1.0], True, "0"])
def test_an_index_is_an_integer(bad):
    with pytest.raises(ji.SiteTypeError, match="integer"):
        ji.zero("attn.z", layer=bad)


def test_an_empty_selection_is_an_error():
    with pytest.raises(ji.SiteIndexError, match="selects nothing"):
        ji.zero("attn.z", head=[])


def test_too_many_axes_are_an_error():
    with pytest.raises(ji.SiteTypeError, match="legal"):
        ji.zero("attn.z", layer=[[1]])
    with pytest.raises(ji.SiteTypeError, match="legal"):
        ji.zero("attn.z", position=[[[1]]])


def test_a_list_may_hold_traced_indices(tiny):
    f = jax.jit(
        lambda i: ji.run(tiny.forward, ji.zero("attn.z", head=[0, i]), ji.capture("attn.z"))(tiny.params, tiny.tokens)[
            1
        ]["attn.z"]
    )
    out = f(2)
    assert not out[:, :, :, [0, 2]].any() and out[:, :, :, [1, 3]].all()


@pytest.mark.parametrize(
    ("site", "where", "message"),
    [
        ("resid_pre", dict(head=0), "no head.*position, feature, layer"),
        ("embed", dict(layer=0), "not in a layer"),
        ("attn.pattern", dict(feature=0), "no feature"),
        ("resid_pre", dict(position=[[0], [1], [2]]), "3 examples"),
    ],
)
def test_an_axis_that_the_site_lacks_is_an_error(tiny, site, where, message):
    with pytest.raises(ji.SiteTypeError, match=message):
        ji.run(tiny.forward, ji.zero(site, **where))(tiny.params, tiny.tokens)


def test_keys_and_values_have_key_value_heads(tiny):
    out = ji.run(tiny.forward, ji.zero("attn.v", head=1), ji.capture("attn.v"))(tiny.params, tiny.tokens)[1]["attn.v"]
    assert out.shape == (L, B, T, 2, E) and not out[:, :, :, 1].any() and out[:, :, :, 0].all()
    with pytest.raises(ji.SiteIndexError, match="2 heads"):
        ji.run(tiny.forward, ji.zero("attn.v", head=2))(tiny.params, tiny.tokens)


def test_patterns_are_selected_by_query_position(tiny):
    out = ji.run(tiny.forward, ji.zero("attn.pattern", position=[[2], [4]], head=1), ji.capture("attn.pattern"))(
        tiny.params, tiny.tokens
    )
    pattern = np.array(out[1]["attn.pattern"])
    assert not pattern[:, 0, 1, 2].any() and not pattern[:, 1, 1, 4].any()
    pattern[:, 0, 1, 2, 0] = pattern[:, 1, 1, 4, 0] = 1
    check_close(pattern.sum(-1), np.ones((L, B, H, T)))


def test_an_integer_site_takes_known_indices_only():
    fn = lambda x, *, tap: tap("ids", x, "BT")
    x = make_tokens()
    assert not ji.run(fn, ji.zero("ids", position=1))(x)[0][:, 1].any()
    with pytest.raises(ji.SiteTypeError, match="no NaN"):
        jax.jit(lambda i: ji.run(fn, ji.zero("ids", position=i))(x)[0])(1)


def test_a_selection_leaves_the_rest_bitwise(tiny):
    plain = ji.run(tiny.forward, ji.capture("resid_mid"))(tiny.params, tiny.tokens)[1]["resid_mid"]
    edited = ji.run(tiny.forward, ji.scale("resid_mid", 3.0, layer=1, position=2), ji.capture("resid_mid"))(
        tiny.params, tiny.tokens
    )[1]
    check_same(edited["resid_mid"][0], plain[0])
    check_same(edited["resid_mid"][1, :, [0, 1, 3, 4, 5]], plain[1, :, [0, 1, 3, 4, 5]])
    check_close(edited["resid_mid"][1, :, 2], 3 * plain[1, :, 2])
