"""Capture, perturb and statistics against plain recomputation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from tests.tiny import check_close, check_same, make_tokens


@pytest.fixture(scope="module")
def everything(tiny):
    return jax.jit(ji.run(tiny.forward, ji.capture("*")))(tiny.params, tiny.tokens)


def test_captures_have_layers_in_front(tiny, everything):
    out, acts, states = everything
    assert acts["resid_pre"].shape == (3, 2, 6, 8) and acts["attn.v"].shape == (3, 2, 6, 2, 4)
    assert acts["embed"].shape == (2, 6, 8) and acts["logits"].shape == (2, 6, 11)
    assert states == ((),)
    check_same(acts["logits"], out)
    check_same(acts["resid_pre"][0], acts["embed"])
    check_same(acts["resid_pre"][1:], acts["resid_post"][:-1])
    check_same(acts["final.in"], acts["resid_post"][-1])
    check_close(acts["resid_mid"] - acts["resid_pre"], acts["attn.out"], 1e-5)


def test_the_table_of_sites_is_what_is_captured(tiny):
    table = ji.sites(tiny.forward, tiny.params, tiny.tokens)
    acts = jax.jit(ji.run(tiny.forward, ji.capture(*(s.name for s in table))))(tiny.params, tiny.tokens)[1]
    assert [s.name for s in table] and {s.name: (s.stacked_shape, s.dtype, s.bytes) for s in table} == {
        k: (a.shape, a.dtype, a.nbytes) for k, a in acts.items()
    }


@pytest.mark.parametrize("layers", [1, [2], [2, 0], [0, 1, 2]])
def test_capture_of_some_layers(tiny, everything, layers):
    acts = jax.jit(ji.run(tiny.forward, ji.capture("resid_pre", "attn.z", layers=layers)))(tiny.params, tiny.tokens)[1]
    for name in ("resid_pre", "attn.z"):
        check_close(acts[name], everything[1][name][np.sort(np.atleast_1d(layers))], 1e-6)


def test_capture_of_some_layers_keeps_no_more(tiny):
    f = lambda p, t: ji.run(tiny.forward, ji.capture("mlp.post", layers=[1]))(p, t)[1]
    jaxpr = str(jax.make_jaxpr(f)(tiny.params, tiny.tokens))
    assert "f32[2,2,6,12]" in jaxpr and "f32[3,2,6,12]" not in jaxpr  # one row and a spare one, never three


@pytest.mark.parametrize("position", [0, [5, 2], [[1], [4]], [[1, 0], [4, 3]]])
def test_capture_of_some_positions(tiny, everything, position):
    acts = jax.jit(
        lambda p: ji.run(tiny.forward, ji.capture("resid_pre", "attn.pattern", position=p))(tiny.params, tiny.tokens)[1]
    )
    index = np.broadcast_to(np.atleast_2d(position), (2, np.atleast_2d(position).shape[1]))
    want = np.stack([np.asarray(everything[1]["resid_pre"])[:, b, index[b]] for b in range(2)], 1)
    got = acts(np.asarray(position))
    check_close(got["resid_pre"], want, 1e-6)
    assert got["attn.pattern"].shape == (3, 2, 4, index.shape[1], 6)


def test_capture_of_a_position_that_is_not_there(tiny):
    f = lambda p, mask=None: ji.run(tiny.forward, ji.capture("resid_pre", position=p))(
        tiny.params, tiny.tokens, mask=mask
    )[1]["resid_pre"]
    for bad in (6, -1):
        assert np.isnan(jax.jit(f)(np.array([bad]))).all()
    with pytest.raises(ji.SiteIndexError, match="6"):
        f(6)
    with pytest.raises(ji.SiteIndexError, match="negative"):
        f(-1)
    mask = jnp.array([[False, True, True, True, True, True], [True] * 6])
    got = jax.jit(f)(np.array([0, 5]), mask)
    assert np.isnan(got[:, 0, 1]).all() and np.isfinite(got[:, 0, 0]).all() and np.isfinite(got[:, 1]).all()


def test_capture_of_a_function(tiny, everything):
    of = lambda v: {"mean": v.mean((0, 1)), "top": jnp.max(v)}
    acts = jax.jit(ji.run(tiny.forward, ji.capture("resid_pre", of=of)))(tiny.params, tiny.tokens)[1]["resid_pre"]
    check_close(acts["mean"], np.asarray(everything[1]["resid_pre"]).mean((1, 2)))
    assert acts["top"].shape == (3,)


def test_capture_of_layers_out_of_range(tiny):
    for layers, message in (([3], "0 to 2"), ([], "at least one"), ([-1], "from 0")):
        with pytest.raises(ji.SiteIndexError, match=message):
            ji.run(tiny.forward, ji.capture("resid_pre", layers=layers))(tiny.params, tiny.tokens)
    with pytest.raises(ji.SiteTypeError, match="in no layer"):
        ji.run(tiny.forward, ji.capture("embed", layers=0))(tiny.params, tiny.tokens)
    with pytest.raises(ji.InputError, match="no site"):
        ji.capture()


def metric(logits):
    return jnp.sum(logits[:, -1, 3] - logits[:, -1, 5])


def test_the_gradient_of_a_perturbation_is_a_central_difference(tiny):
    names = ("attn.z", "resid_mid", "embed")
    table = ji.sites(tiny.forward, tiny.params, tiny.tokens)
    zeros = {n: jnp.zeros(table[n].stacked_shape) for n in names}
    f = jax.jit(lambda d: metric(ji.run(tiny.forward, ji.perturb(d))(tiny.params, tiny.tokens)[0]))
    gradients = jax.jit(jax.grad(f))(zeros)
    check_close(f(zeros), metric(tiny.forward(tiny.params, tiny.tokens)))
    rng, step = np.random.default_rng(0), 1e-2
    for name in names:
        for _ in range(3):
            direction = rng.normal(size=zeros[name].shape).astype(np.float32)
            up, down = (f(zeros | {name: jnp.asarray(s * step * direction)}) for s in (1, -1))
            want = (up - down) / (2 * step)
            got = jnp.vdot(gradients[name], direction)
            assert abs(got - want) < 1e-2 * (abs(want) + np.linalg.norm(gradients[name]))


def test_attribution_patching_is_the_linear_part_of_patching(tiny):
    """gradient . (source - base), against the effect of patching a hundredth of the way, at each (layer, head)."""
    capture = jax.jit(ji.run(tiny.forward, ji.capture("attn.z")))
    source, base = (capture(tiny.params, t)[1]["attn.z"] for t in (make_tokens(seed=5), tiny.tokens))
    f = lambda d: metric(ji.run(tiny.forward, ji.perturb({"attn.z": d}))(tiny.params, tiny.tokens)[0])
    linear = jnp.sum(jax.jit(jax.grad(f))(jnp.zeros_like(base)) * (source - base), (1, 2, 4))

    def patched(layer, head, amount):
        mixed = base + amount * (source - base)
        handler = ji.patch("attn.z", per_layer=mixed, layer=layer, head=head)
        return metric(ji.run(tiny.forward, handler)(tiny.params, tiny.tokens)[0])

    step = 1e-2
    cells = np.array([(i, h) for i in range(3) for h in range(4)], np.int32)
    swept = jax.jit(jax.vmap(lambda c: (patched(c[0], c[1], step) - patched(c[0], c[1], -step)) / (2 * step)))(cells)
    assert np.abs(np.ravel(linear) - swept).max() < 2e-2 * np.abs(swept).max()


def test_perturb_refuses_another_shape(tiny):
    with pytest.raises(ji.SiteTypeError, match=r"\[3, 2, 6, 8\]"):
        ji.run(tiny.forward, ji.perturb({"resid_pre": jnp.zeros((2, 6, 8))}))(tiny.params, tiny.tokens)
    with pytest.raises(ji.SiteTypeError, match="float32"):
        ji.run(tiny.forward, ji.perturb({"embed": jnp.zeros((2, 6, 8), jnp.bfloat16)}))(tiny.params, tiny.tokens)
    with pytest.raises(ji.InputError, match="no site"):
        ji.perturb({})


def test_statistics_are_the_moments(tiny):
    names = ("resid_pre", "attn.z", "final.in")
    batches = [make_tokens(seed=i) for i in range(2)]
    masks = [jnp.asarray(np.random.default_rng(9 + i).random((2, 6)) > 0.3).at[:, -1].set(True) for i in range(2)]

    @jax.jit
    def f(tokens, mask, state):
        _, acts, (new, _) = ji.run(tiny.forward, ji.statistics(*names, state=state), ji.capture(*names))(
            tiny.params, tokens, mask=mask
        )
        return acts, new

    state, rows = None, {n: [] for n in names}
    for tokens, mask in zip(batches, masks, strict=True):
        acts, state = f(tokens, mask, state)
        for n in names:
            axis = 0 if n == "final.in" else 1
            rows[n].append(
                np.compress(
                    np.ravel(mask),
                    np.asarray(acts[n]).reshape(*acts[n].shape[:axis], 12, *acts[n].shape[axis + 2 :]),
                    axis,
                )
            )
    for n in names:
        axis = 0 if n == "final.in" else 1
        all_rows = np.concatenate(rows[n], axis).astype(np.float64)
        check_close(state[n].count, np.full((3,) if axis else (), all_rows.shape[axis]))
        check_close(state[n].mean, all_rows.mean(axis))
        check_close(state[n].variance, all_rows.var(axis), 1e-4)


def test_statistics_without_a_mask_and_far_from_zero():
    x = (1000 + np.random.default_rng(0).normal(size=(4, 5, 3))).astype(np.float32)
    fn = lambda x, *, tap: tap("x", x)
    (state,) = ji.run(fn, ji.statistics("x"))(jnp.asarray(x[:2]))[2]
    (state,) = ji.run(fn, ji.statistics("x", state=state))(jnp.asarray(x[2:]))[2]
    check_close(state["x"].mean, x.mean((0, 1), dtype=np.float64))
    check_close(state["x"].variance, x.var((0, 1), dtype=np.float64), 1e-3)


def test_statistics_of_a_site_that_a_handler_opens():
    """A splice: `visit` opens a site of its own in the chain to its right."""

    def visit(site, value, state, data, layer_slice, tap):
        latents = tap("latents", jnp.maximum(value, 0.0))
        return value - latents, state, None

    splice = ji.Handler(sites=("x",), visit=visit)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    fn = lambda x, *, tap: tap("x", x)
    out, acts, states = ji.run(fn, splice, ji.scale("latents", 2.0), ji.capture("latents"), ji.statistics("latents"))(x)
    relu = np.maximum(x, 0)
    check_close(out, x - 2 * relu)
    check_close(acts["latents"], 2 * relu)
    check_close(states[3]["latents"].mean, 2 * relu.mean(0))
    with pytest.raises(ji.UnvisitedSiteError, match="latents"):
        ji.run(fn, ji.capture("latents"), splice, ji.zero("latents"))(x)  # to the left of what opens it


def test_a_state_rides_through_the_scan(tiny):
    def visit(site, value, state, data, layer_slice, tap):
        return value, state * 2 + site.layer, None

    count = ji.Handler(sites=("resid_pre",), visit=visit, init=lambda specs, data: jnp.int32(len(specs)))
    states = jax.jit(ji.run(tiny.forward, count))(tiny.params, tiny.tokens)[2]
    assert int(states[0]) == ((1 * 2 + 0) * 2 + 1) * 2 + 2


def test_statistics_names_no_site():
    with pytest.raises(ji.InputError, match="no site"):
        ji.statistics()


def test_capture_is_pure(tiny):
    f = ji.run(tiny.forward, ji.capture("resid_pre"))
    check_same(f(tiny.params, tiny.tokens)[1]["resid_pre"], f(tiny.params, tiny.tokens)[1]["resid_pre"])
