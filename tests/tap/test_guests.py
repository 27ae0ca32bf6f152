"""Guests: a user's plain function with one tap line for each site."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from tests.tiny import check_close, check_same

RNG = np.random.default_rng(0)
WEIGHTS = {"in": RNG.normal(size=(4, 4, 6)).astype(np.float32), "out": RNG.normal(size=(4, 6, 4)).astype(np.float32)}
X = RNG.normal(size=(3, 5, 4)).astype(np.float32)


def by_loop(weights, x, *, tap=ji.IDENTITY):
    """A Python loop, one line for each site."""
    x = tap("start", x)
    for i in range(4):
        here = tap.at(layer=i, n_layers=4)
        hidden = here("hidden", jax.nn.relu(x @ weights["in"][i]))
        x = here("stream", x + hidden @ weights["out"][i])
    return tap("end", x)


def by_scan(weights, x, *, tap=ji.IDENTITY):
    def body(x, w, *, tap):
        hidden = tap("hidden", jax.nn.relu(x @ w["in"]))
        return tap("stream", x + hidden @ w["out"]), None

    x, _ = tap.scan(body, tap("start", x), weights)
    return tap("end", x)


def by_segments(weights, x, *, tap=ji.IDENTITY):
    """Two loops that count on, as in a stack of mixed blocks."""

    def body(x, w, *, tap):
        hidden = tap("hidden", jax.nn.relu(x @ w["in"]))
        return tap("stream", x + hidden @ w["out"]), None

    x = tap("start", x)
    for first, stop in ((0, 1), (1, 4)):
        part = {k: w[first:stop] for k, w in weights.items()}
        x, _ = tap.scan(body, x, part, first=first, total=4)
    return tap("end", x)


def by_unrolled_scan(weights, x, *, tap=ji.IDENTITY):
    def body(x, w, *, tap):
        hidden = tap("hidden", jax.nn.relu(x @ w["in"]))
        return tap("stream", x + hidden @ w["out"]), hidden.sum()

    x, sums = tap.scan(body, tap("start", x), weights, unroll=True)
    assert sums.shape == (4,)
    return tap("end", x)


GUESTS = [by_loop, by_scan, by_segments, by_unrolled_scan]
DELTA = RNG.normal(size=(4, 3, 5, 6)).astype(np.float32)
HANDLERS = (
    ji.perturb({"hidden": DELTA, "start": np.ones((3, 5, 4), np.float32)}),
    ji.patch(
        "stream", per_layer=RNG.normal(size=(4, 3, 5, 4)).astype(np.float32), layer=[1, 3], position=[0, 2], feature=3
    ),
    ji.scale("hidden", 0.5, layer=2),
    ji.capture("*"),
    ji.capture("hidden", layers=[0, 3], prefix="some/"),
    ji.statistics("hidden", "end"),
)


@pytest.fixture(scope="module")
def reference():
    return ji.run(by_loop, *HANDLERS)(WEIGHTS, X)


@pytest.mark.parametrize("guest", GUESTS, ids=lambda g: g.__name__)
def test_every_way_to_write_a_loop_is_the_same(guest, reference):
    check_same(jax.jit(guest)(WEIGHTS, X), jax.jit(lambda w, x: ji.run(guest)(w, x)[0])(WEIGHTS, X))
    got = jax.jit(lambda: ji.run(guest, *HANDLERS)(WEIGHTS, X))()
    assert got[1].keys() == reference[1].keys()
    assert got[1]["some/hidden"].shape == (2, 3, 5, 6)
    jax.tree.map(check_close, got, reference)


@pytest.mark.parametrize("guest", GUESTS, ids=lambda g: g.__name__)
def test_gradients_of_perturbations_stay_stacked(guest):
    f = lambda g: lambda d: jnp.sum(ji.run(g, ji.perturb({"hidden": d}))(WEIGHTS, X)[0] ** 2)
    check_close(jax.grad(f(guest))(DELTA), jax.grad(f(by_loop))(DELTA), 1e-4)


def numpy_guest(x, zeroed):
    for i in range(4):
        hidden = np.maximum(x @ WEIGHTS["in"][i], 0)
        x = x + (0 if i == zeroed else hidden @ WEIGHTS["out"][i])
    return x


@pytest.mark.parametrize("guest", GUESTS, ids=lambda g: g.__name__)
def test_an_ablation_is_what_numpy_gives(guest):
    swept = jax.jit(jax.vmap(lambda i: ji.run(guest, ji.zero("hidden", layer=i))(WEIGHTS, X)[0]))(jnp.arange(4))
    check_close(swept, np.stack([numpy_guest(X.astype(np.float64), i) for i in range(4)]))


def test_a_traced_layer_outside_a_scan():
    """An engine may run one block alone, at a layer that is data."""

    def fn(i, x, *, tap):
        here = tap.at(layer=i, n_layers=4)
        return here("hidden", jax.nn.relu(x @ jnp.asarray(WEIGHTS["in"])[i]))

    run = jax.jit(lambda i: ji.run(fn, ji.perturb({"hidden": DELTA}), ji.zero("hidden", layer=2))(i, X)[0])
    check_close(run(1), np.maximum(X @ WEIGHTS["in"][1], 0) + DELTA[1])
    assert not run(2).any()


def test_a_misspelt_site_of_a_guest():
    with pytest.raises(ji.UnvisitedSiteError, match="'hidden'"):
        ji.run(by_scan, ji.capture("hiden"))(WEIGHTS, X)


def test_the_sites_of_a_guest():
    table = ji.sites(by_scan, WEIGHTS, X)
    assert [(s.name, s.stacked_shape) for s in table] == [
        ("start", (3, 5, 4)), ("hidden", (4, 3, 5, 6)), ("stream", (4, 3, 5, 4)), ("end", (3, 5, 4)),
    ]  # fmt: skip


def test_steps_stand_before_layers():
    def fn(x, *, tap):
        def step(x, _, *, tap):
            x, _ = tap.scan(lambda c, w, *, tap: (tap("in", c) @ w, None), x, WEIGHTS["in"][:, :, :4])
            return tap("top", x), None

        return tap.scan(step, x, None, axis="step", length=3)[0]

    acts = jax.jit(ji.run(fn, ji.capture("in", "top"), ji.capture("in", layers=[1], prefix="one/")))(X)[1]
    assert (
        acts["in"].shape == (3, 4, 3, 5, 4)
        and acts["top"].shape == (3, 3, 5, 4)
        and acts["one/in"].shape == (3, 1, 3, 5, 4)
    )
    check_same(acts["in"][1:, 0], acts["top"][:-1])
    check_same(acts["one/in"][:, 0], acts["in"][:, 1])


def _two_of_three_layers(x, *, tap):
    for i in (0, 1):
        x = tap.at(layer=i, n_layers=3)("h", x + 1.0)
    return x


@pytest.mark.parametrize(
    "handler",
    [ji.zero("h", layer=2), ji.zero("h", layer=[0, 2]), ji.capture("h", layers=[2]), ji.capture("h", layers=[1, 2])],
)
def test_a_layer_that_is_never_visited_is_an_error(handler):
    with pytest.raises(ji.UnvisitedSiteError, match=r"never visits layers \[2\] of 'h'; it visits 'h' at \[0, 1\]"):
        ji.run(_two_of_three_layers, handler)(jnp.zeros((1, 2)))


def test_layers_of_a_scan_that_covers_some_are_known():
    def part(x, *, tap):
        return tap.scan(lambda x, w, *, tap: (tap("h", x * w), None), x, jnp.ones(2), first=1, total=4)[0]

    x = jnp.ones((1, 2))
    assert ji.run(part, ji.zero("h", layer=2))(x)[0].sum() == 0
    with pytest.raises(ji.UnvisitedSiteError, match=r"layers \[3\]"):
        ji.run(part, ji.zero("h", layer=3))(x)


def test_a_site_tapped_twice_is_an_error_for_an_edit_too():
    def twice(x, *, tap):
        return tap("h", tap("h", x))

    with pytest.raises(ji.DuplicateSiteError, match="tapped twice"):
        ji.run(twice, ji.add("h", 1.0))(jnp.zeros((1, 2)))

    def twice_in_a_layer(x, *, tap):
        body = lambda x, w, *, tap: (tap("h", tap("h", x * w)), None)
        return tap.scan(body, x, jnp.ones(2))[0]

    with pytest.raises(ji.DuplicateSiteError, match="tapped twice"):
        ji.run(twice_in_a_layer, ji.add("h", 1.0))(jnp.zeros((1, 2)))


def test_a_function_without_tap_is_told_to_take_one():
    with pytest.raises(ji.InputError, match="keyword argument tap"):
        ji.run(lambda x: x, ji.capture("h"))(jnp.zeros((1, 2)))
