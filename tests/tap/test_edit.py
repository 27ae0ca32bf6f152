"""Ready edits against numpy, their order, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from tests.tiny import check_close, check_same, make_model, make_params


def guest(x, *, tap):
    """One site, [B, T, D], in no layer."""
    return tap("x", x)


X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
RNG = np.random.default_rng(1)


def apply(*handlers, x=X, **kwargs):
    return np.asarray(ji.run(guest, *handlers)(jnp.asarray(x))[0])


def test_patch_puts_a_value():
    value = RNG.normal(size=X.shape).astype(np.float32)
    check_same(apply(ji.patch("x", value)), value)
    check_same(apply(ji.patch("x", value[:1, :1])), np.broadcast_to(value[:1, :1], X.shape))
    check_same(apply(ji.patch("x", 2)), np.full_like(X, 2))
    want = X.copy()
    want[:, 1] = value[:, 1]
    check_same(apply(ji.patch("x", value, position=1)), want)


def test_zero_add_scale():
    vector = RNG.normal(size=4).astype(np.float32)
    check_same(apply(ji.zero("x")), np.zeros_like(X))
    check_close(apply(ji.add("x", vector, coefficient=-2.5)), X - 2.5 * vector)
    check_close(apply(ji.add("x", [1, 2, 3, 4])), X + np.arange(1, 5))
    check_close(apply(ji.scale("x", 0.25)), X / 4)
    check_close(apply(ji.scale("x", jnp.float32(0.25), feature=[0, 1])), X * [0.25, 0.25, 1, 1])


def test_edit_takes_any_function():
    check_same(apply(ji.edit("x", jnp.negative, feature=3)), X * [1, 1, 1, -1])
    check_close(apply(ji.edit("x", lambda v, d: v + d["shift"], {"shift": jnp.ones(4).reshape(1, 1, 4)})), X + 1)


@pytest.mark.parametrize("over", ["B", "T", "BT"])
def test_mean_replaces_by_the_mean(over):
    axes = tuple("BTD".index(a) for a in over)
    check_close(apply(ji.mean("x", over=over)), np.broadcast_to(X.mean(axes, keepdims=True), X.shape))
    want = X.copy()
    want[..., 2] = np.broadcast_to(X.mean(axes, keepdims=True), X.shape)[..., 2]
    check_close(apply(ji.mean("x", over=over, feature=2)), want)


def test_mean_leaves_padding_out(tiny):
    mask = np.array([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]], bool)
    padded = functools.partial(tiny.forward, mask=jnp.asarray(mask))
    f = jax.jit(lambda h: ji.run(padded, h, ji.capture("embed"))(tiny.params, tiny.tokens))
    rows = np.asarray(tiny.params["embed"]["W_E"])[np.asarray(tiny.tokens)]
    rows = rows + np.asarray(tiny.params["embed"]["W_pos"])[np.maximum(np.cumsum(mask, 1) - 1, 0)]
    out, acts, _ = f(ji.mean("embed", over="BT"))
    check_close(acts["embed"], np.broadcast_to(rows[mask].mean(0), rows.shape))
    out, acts, _ = f(ji.mean("embed", over="B"))
    assert np.isfinite(out).all()  # the first row is padding in all examples
    check_close(acts["embed"][0, 2:], [rows[mask[:, t], t].mean(0) for t in range(2, 6)])


@pytest.mark.parametrize("n", [1, 3])
def test_projections_are_least_squares(n):
    basis = RNG.normal(size=(n, 4)).astype(np.float32)
    coordinates = np.linalg.lstsq(basis.T.astype(np.float64), X.reshape(-1, 4).T.astype(np.float64), rcond=None)[0]
    onto = (basis.T @ coordinates).T.reshape(X.shape)
    check_close(apply(ji.project_onto("x", basis)), onto)
    check_close(apply(ji.project_out("x", basis)), X - onto)
    if n == 1:
        check_close(apply(ji.project_onto("x", basis[0])), onto)
    want = X.copy()
    want[:, 2] -= onto[:, 2]
    check_close(apply(ji.project_out("x", basis, position=2)), want)


def test_a_projection_needs_a_basis_of_the_width():
    with pytest.raises(ji.SiteTypeError, match="4 wide"):
        apply(ji.project_out("x", np.ones((2, 3), np.float32)))
    with pytest.raises(ji.SiteTypeError, match="legal"):
        ji.project_out("x", np.ones((1, 1, 4), np.float32))


def test_handlers_apply_from_left_to_right():
    a, b = ji.add("x", 1.0), ji.scale("x", 3.0)
    check_close(apply(a, b), (X + 1) * 3)
    check_close(apply(b, a), X * 3 + 1)
    _, acts, _ = ji.run(guest, ji.capture("x", prefix="0/"), a, ji.capture("x", prefix="1/"), b, ji.capture("x"))(
        jnp.asarray(X)
    )
    check_close(acts["0/x"], X)
    check_close(acts["1/x"], X + 1)
    check_close(acts["x"], (X + 1) * 3)


def test_per_layer_gives_each_layer_its_own(tiny):
    captured = ji.run(tiny.forward, ji.capture("resid_mid"))(tiny.params, tiny.tokens[::-1])[1]["resid_mid"]
    run = jax.jit(lambda h: ji.run(tiny.forward, h, ji.capture("resid_mid"))(tiny.params, tiny.tokens)[1]["resid_mid"])
    check_close(run(ji.patch("resid_mid", per_layer=captured)), captured, 0)
    plain = run(ji.scale("resid_mid", 1.0))
    for layer in range(3):
        got = run(ji.patch("resid_mid", per_layer=captured, layer=layer, position=[1]))
        check_close(got[layer, :, 1], captured[layer, :, 1], 0)
        check_same(got[:layer], plain[:layer])
        check_same(got[layer, :, [0, 2, 3, 4, 5]], plain[layer, :, [0, 2, 3, 4, 5]])


def test_patching_the_own_activation_changes_nothing(tiny):
    names = [s.name for s in ji.sites(tiny.forward, tiny.params, tiny.tokens)]
    out, acts, _ = jax.jit(ji.run(tiny.forward, ji.capture(*names)))(tiny.params, tiny.tokens)

    @jax.jit
    def again(acts):
        layered = {s.name for s in ji.sites(tiny.forward, tiny.params, tiny.tokens) if s.n_layers}
        patches = [ji.patch(n, per_layer=a) if n in layered else ji.patch(n, a) for n, a in acts.items()]
        return ji.run(tiny.forward, *patches)(tiny.params, tiny.tokens)[0]

    check_close(again(acts), out)


def test_a_number_takes_the_dtype_of_the_site():
    x = jnp.asarray(X, jnp.bfloat16)
    assert ji.run(guest, ji.add("x", 10.0), ji.scale("x", 2))(x)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (ji.patch("x", np.ones(4, np.float16)), "float16.*float32.*astype"),
        (ji.patch("x", np.ones(4, np.int32)), "int32.*float32"),
        (ji.patch("x", np.ones((2, 3, 5), np.float32)), "do not broadcast"),
        (ji.patch("x", np.ones((7, 2, 3, 4), np.float32)), "per_layer="),
        (ji.patch("x", per_layer=np.ones((7, 2, 3, 4), np.float32)), "no layer"),
        (ji.edit("x", lambda v: v[:1]), "returned float32"),
        (ji.edit("x", lambda v: v.astype(jnp.float16)), "float16"),
        (ji.mean("x", over="H"), "none of them"),
        (ji.Handler(sites=("x",), visit=lambda s, v, state, *_: (v[0], state, None)), "a handler turned site 'x'"),
        (
            ji.Handler(sites=("x",), visit=lambda s, v, state, *_: (v.astype(jnp.bfloat16), state, None)),
            "a handler turned",
        ),
    ],
)
def test_a_wrong_shape_or_dtype_is_an_error(handler, message):
    with pytest.raises(ji.SiteTypeError, match=message):
        apply(handler)
    with pytest.raises(ji.SiteTypeError, match=message):
        jax.jit(lambda x: ji.run(guest, handler)(x)[0])(X)


def test_per_layer_of_another_depth_is_an_error(tiny):
    with pytest.raises(ji.SiteTypeError, match="3 layers"):
        ji.run(tiny.forward, ji.patch("resid_pre", per_layer=np.ones((2, 1, 1, 8), np.float32)))(
            tiny.params, tiny.tokens
        )


def test_nan_in_a_value_is_an_error():
    value = np.ones(4, np.float32)
    value[2] = np.nan
    for make in (lambda v: ji.patch("x", v), lambda v: ji.add("x", v), lambda v: ji.patch("x", per_layer=v)):
        for array in (value, jnp.asarray(value), jnp.asarray(value, jnp.bfloat16), value.tolist()):
            with pytest.raises(ji.InputError, match="NaN"):
                make(array)


def test_a_patch_needs_one_value():
    with pytest.raises(ji.InputError, match="exactly one"):
        ji.patch("x")
    with pytest.raises(ji.InputError, match="exactly one"):
        ji.patch("x", 1.0, per_layer=np.ones(3))


def test_place_moves_an_edit():
    moved = ji.tap.place(ji.add("x", 1.0, feature=0), position=2)
    want = X.copy()
    want[:, 2] += 1
    check_close(apply(moved), want)
    with pytest.raises(ji.InputError, match="no edit"):
        ji.tap.place(ji.capture("x"), position=2)


def test_edits_in_bfloat16(bfloat16_products):
    model = make_model()
    params = make_params(model, dtype=jnp.bfloat16)
    tokens = jnp.zeros((1, 3), jnp.int32)
    basis = np.ones(8, np.float32)
    handlers = (
        ji.mean("attn.z"),
        ji.project_out("resid_mid", basis),
        ji.add("mlp.out", 1.0),
        ji.zero("attn.v", head=0),
    )
    out, acts, _ = ji.run(model.forward, *handlers, ji.capture("resid_post"))(params, tokens)
    assert acts["resid_post"].dtype == jnp.bfloat16 and out.dtype == jnp.float32 and np.isfinite(out).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: ji.scale("x", x),
        lambda x: ji.add("x", 1.0, coefficient=x),
        lambda x: ji.project_out("x", [1.0, x]),
        lambda x: ji.patch("x", x),
    ],
)
def test_nan_is_refused_wherever_an_edit_brings_numbers(make):
    with pytest.raises(ji.InputError, match="for 'x' has NaN in it"):
        make(float("nan"))
    assert make(2.0).sites == ("x",)


def test_factors_and_coefficients_are_single_numbers():
    for make in (lambda x: ji.scale("x", x), lambda x: ji.add("x", 1.0, coefficient=x)):
        with pytest.raises(ji.SiteTypeError, match="scalar"):
            make(jnp.ones(2))
