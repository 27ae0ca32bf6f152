"""A function made by `run` under JAX's transformations and meshes, and transformations inside a function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxinterp as ji
from tests.tiny import check_close, check_same, make_tokens

SUM = lambda logits: jnp.sum(logits[:, -1, 3] - logits[:, -1, 5])


@pytest.fixture(scope="module")
def zero_head(tiny):
    """Logits with one head of one layer zeroed."""
    return jax.jit(lambda where: ji.run(tiny.forward, ji.zero("attn.z", **where))(tiny.params, tiny.tokens)[0])


def test_jit_and_vmap_over_layers_and_heads(tiny, zero_head):
    grid = np.array([(i, h) for i in range(3) for h in range(4)], np.int32)
    swept = jax.jit(jax.vmap(lambda c: zero_head(dict(layer=c[0], head=c[1]))))(grid)
    brute = [zero_head(dict(layer=i, head=h)) for i, h in grid[[0, 5, 11]]]
    check_close(swept[np.array([0, 5, 11])], jnp.stack(brute))


def test_vmap_over_handlers_themselves(tiny, zero_head):
    handlers = jax.vmap(lambda i: ji.zero("attn.z", layer=i))(jnp.arange(3))
    f = lambda h: ji.run(tiny.forward, h, ji.capture("resid_post"))(tiny.params, tiny.tokens)[:2]
    out, acts = jax.jit(jax.vmap(f))(handlers)
    assert acts["resid_post"].shape == (3, 3, 2, 6, 8)
    check_close(out[1], zero_head(dict(layer=np.int32(1))))


def test_vmap_over_examples_is_the_batch(tiny):
    f = lambda t: ji.run(tiny.forward, ji.capture("attn.z"))(tiny.params, t[None])[:2]
    out, acts = jax.jit(jax.vmap(f))(tiny.tokens)
    whole, whole_acts, _ = jax.jit(ji.run(tiny.forward, ji.capture("attn.z")))(tiny.params, tiny.tokens)
    check_close(out[:, 0], whole)
    check_close(acts["attn.z"][:, :, 0].swapaxes(0, 1), whole_acts["attn.z"])


def steer(tiny):
    def f(vector):
        return SUM(
            ji.run(tiny.forward, ji.add("resid_mid", vector, layer=1), ji.capture("*"))(tiny.params, tiny.tokens)[0]
        )

    return f


def test_grad_jvp_and_central_differences_agree(tiny):
    f = jax.jit(steer(tiny))
    at, direction = jnp.full(8, 0.1), jnp.asarray(np.random.default_rng(0).normal(size=8), jnp.float32)
    gradient = jax.jit(jax.grad(f))(at)
    _, tangent = jax.jit(lambda a, d: jax.jvp(f, (a,), (d,)))(at, direction)
    step = 1e-2
    numeric = (f(at + step * direction) - f(at - step * direction)) / (2 * step)
    check_close(jnp.vdot(gradient, direction), tangent, 1e-4)
    check_close(numeric, tangent, 1e-2)


def test_gradients_with_respect_to_params(tiny):
    handlers = (ji.zero("attn.z", layer=0, head=1), ji.capture("*"))
    gradient = jax.jit(jax.grad(lambda p: SUM(ji.run(tiny.forward, *handlers)(p, tiny.tokens)[0])))(tiny.params)
    written = np.abs(gradient["blocks"][0]["attn"]["W_O"]).max((2, 3))
    assert written[0, 1] == 0 and np.count_nonzero(written) == 11


def test_checkpoint_around_the_whole_run(tiny):
    f, at = steer(tiny), jnp.ones(8)
    policy = jax.checkpoint_policies.save_only_these_names("resid_mid")
    want = jax.jit(jax.grad(f))(at)
    check_close(jax.jit(jax.grad(jax.checkpoint(f)))(at), want)
    check_close(jax.jit(jax.grad(jax.checkpoint(f, policy=policy)))(at), want)


def test_scan_around_the_whole_run(tiny):
    def body(total, tokens):
        out, acts, (state,) = ji.run(tiny.forward, ji.statistics("final.in", state=total))(tiny.params, tokens)
        return state, out

    batches = jnp.stack([make_tokens(seed=i) for i in range(3)])
    empty = ji.tap.Statistics(count=jnp.zeros(()), mean=jnp.zeros(8), m2=jnp.zeros(8))
    state, out = jax.lax.scan(body, {"final.in": empty}, batches)
    whole = jax.jit(ji.run(tiny.forward, ji.capture("final.in")))(tiny.params, batches.reshape(6, 6))
    check_close(out.reshape(6, 6, 11), whole[0])
    check_close(state["final.in"].mean, whole[1]["final.in"].mean((0, 1)))


# ------------------------------------------------------------------------------------------- lift


def stack(transform, block):
    """Layers as a scan over `block`, which runs under `transform`, lifted."""

    def fn(x, weights, *, tap):
        def body(x, w, *, tap):
            return tap.lift(transform)(block)(x, w), None

        return tap.scan(body, x, weights)[0]

    return fn


def block(x, w, *, tap):
    return tap("out", jnp.tanh(tap("in", x) @ w))


X = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32)
HANDLERS = (
    ji.add("in", np.ones(4, np.float32), layer=1),
    ji.capture("in", "out"),
    ji.capture("out", layers=[2], prefix="last/"),
    ji.statistics("out"),
)


@pytest.mark.parametrize(
    "transform", [jax.jit, jax.checkpoint, jax.named_call], ids=["jit", "checkpoint", "named_call"]
)
def test_lift_is_the_plain_stack(transform):
    want = ji.run(stack(lambda f: f, block), *HANDLERS)(X, WEIGHTS)
    got = jax.jit(lambda: ji.run(stack(transform, block), *HANDLERS)(X, WEIGHTS))()
    assert got[1].keys() == want[1].keys() == {"in", "out", "last/out"}
    assert got[1]["last/out"].shape == (1, 2, 5, 4)
    jax.tree.map(check_close, got, want)
    plain = stack(transform, block)(X, WEIGHTS, tap=ji.IDENTITY)
    check_close(plain, ji.run(stack(transform, block))(X, WEIGHTS)[0])


def test_lift_through_checkpoint_has_the_same_gradient():
    def loss(w, transform):
        return ji.run(stack(transform, block), *HANDLERS)(X, w)[0].sum()

    check_close(jax.grad(loss)(WEIGHTS, jax.checkpoint), jax.grad(loss)(WEIGHTS, lambda f: f))


def test_lift_through_vmap_has_the_mapped_axis_behind_layers():
    by_example = functools.partial(jax.vmap, in_axes=(0, None))
    flat = lambda x, w, *, tap: tap("out", jnp.tanh(tap("in", x, "TD") @ w), "TD")
    handlers = (ji.scale("in", 2.0, layer=1, position=3), ji.capture("in", "out"))
    want = ji.run(stack(lambda f: f, block), *handlers)(X, WEIGHTS)
    scanned = ji.run(stack(by_example, flat), *handlers)(X, WEIGHTS)

    def looped(x, weights, *, tap):
        for i, w in enumerate(weights):
            x = tap.at(layer=i, n_layers=3).lift(by_example)(flat)(x, w)
        return x

    def whole(x, weights, *, tap):
        inner = lambda x, w, *, tap: tap.scan(lambda x, w, *, tap: (flat(x, w, tap=tap), None), x, w)[0]
        return tap.lift(by_example)(inner)(x, weights)

    for got in (scanned, ji.run(looped, *handlers)(X, WEIGHTS), ji.run(whole, *handlers)(X, WEIGHTS)):
        jax.tree.map(check_close, got, want)


def test_a_state_is_not_lifted_through_vmap():
    flat = lambda x, *, tap: tap("x", x, "TD")
    fn = lambda x, *, tap: tap.lift(jax.vmap)(flat)(x)
    with pytest.raises(ji.TapScopeError, match="adds an axis"):
        ji.run(fn, ji.statistics("x"))(X)


# ------------------------------------------------------------------------------------------ meshes

BATCH = make_tokens(batch=8)


def looked_at(tiny, params, tokens, mask=None):
    """Edits of every kind that a mesh could disturb, captures and statistics."""
    handlers = (
        ji.add("resid_pre", np.ones(8, np.float32), layer=1, position=2),
        ji.zero("attn.z", head=jnp.array([1]), layer=0),
        ji.patch("resid_mid", np.ones((6, 8), np.float32), layer=2, position=[0, 1]),
        ji.project_out("mlp.out", np.arange(1.0, 9.0, dtype=np.float32)),
        ji.capture("resid_post"),
        ji.capture("attn.z", layers=[1, 2], prefix="some/"),
        ji.capture("mlp.out", position=4),
        ji.statistics("resid_pre"),
    )
    out, acts, states = ji.run(tiny.forward, *handlers)(params, tokens, mask=mask)
    return out, acts, states[-1]["resid_pre"]


@pytest.fixture(scope="module")
def alone(tiny):
    return jax.jit(functools.partial(looked_at, tiny))(tiny.params, BATCH)


def combined(shards):
    """Statistics of all shards, by the pooled moments."""
    shards = jax.tree.map(lambda a: np.asarray(a, np.float64), shards)
    count = shards.count[..., None]
    total = count.sum(0)
    mean = (count * shards.mean).sum(0) / total
    m2 = shards.m2.sum(0) + (count * (shards.mean - mean) ** 2).sum(0)
    return mean, m2 / total


def test_shard_map_over_the_batch(tiny, alone):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    acts = {"resid_post": P(None, "data"), "some/attn.z": P(None, "data"), "mlp.out": P(None, "data")}

    def local(params, tokens):
        out, acts, state = looked_at(tiny, params, tokens)
        return out, acts, jax.tree.map(lambda a: a[None], state)

    f = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P("data"), acts, P("data"))))
    out, acts, shards = f(tiny.params, BATCH)
    check_close(out, alone[0])
    jax.tree.map(check_close, acts, alone[1])
    mean, variance = combined(shards)
    check_close(mean, alone[2].mean)
    check_close(variance, alone[2].variance, 1e-4)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_jit_on_a_mesh_with_a_sharded_batch(tiny, alone, kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    params = jax.device_put(tiny.params, NamedSharding(mesh, P()))
    tokens = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        got = jax.jit(functools.partial(looked_at, tiny))(params, tokens)
        gradient = (
            None if kind is AxisType.Auto else jax.jit(jax.grad(lambda p: tiny.forward(p, tokens).mean()))(params)
        )
    assert got[0].sharding.spec[0] == "data"
    jax.tree.map(check_close, got, alone)
    if gradient is not None:
        flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        alone_gradient = jax.jit(jax.grad(lambda p: tiny.forward(p, BATCH).mean()))(tiny.params)
        check_close(flat(gradient), flat(alone_gradient), 1e-4)


def test_padding_and_means_on_an_explicit_mesh(tiny):
    mask = np.random.default_rng(0).random((8, 6)) > 0.3
    mask[:, 5] = True
    handlers = (ji.mean("attn.z", layer=1), ji.zero("resid_mid", position=np.arange(8).reshape(8, 1) % 2))
    f = lambda p, t, m: ji.run(tiny.forward, *handlers)(p, t, mask=m)[0]
    mesh = jax.make_mesh((8,), ("data",))  # Explicit, as by default
    with jax.set_mesh(mesh):
        rows = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (BATCH, mask)]
        got = jax.jit(f)(jax.device_put(tiny.params, NamedSharding(mesh, P())), *rows)
    check_close(got, jax.jit(f)(tiny.params, BATCH, mask))


def test_pmap(tiny, alone):
    out, acts, shards = jax.pmap(functools.partial(looked_at, tiny), in_axes=(None, 0))(tiny.params, BATCH[:, None])
    check_close(out[:, 0], alone[0])
    check_close(acts["resid_post"][:, :, 0].swapaxes(0, 1), alone[1]["resid_post"])
    mean, variance = combined(shards)
    check_close(mean, alone[2].mean)
    check_close(variance, alone[2].variance, 1e-4)


def test_a_handler_is_a_pytree_that_can_be_saved(tiny):
    handler = ji.patch("attn.z", np.ones(4, np.float32), layer=1, head=[0, 2])
    leaves, tree = jax.tree.flatten(handler)
    again = jax.tree.unflatten(tree, [np.asarray(leaf).copy() for leaf in leaves])
    f = lambda h: ji.run(tiny.forward, h)(tiny.params, tiny.tokens)[0]
    check_same(f(again), f(handler))
