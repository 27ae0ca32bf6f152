"""Modules of flax.nnx: paths, modes, and what cannot be tapped."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxinterp as ji
from tests.guests.conftest import NNX_PATHS, nnx_modules
from tests.tiny import check_close, check_same

X = jnp.arange(6.0).reshape(1, 2, 3)


class Numbered(nnx.Module):
    """Layers as attributes, of which one has no MLP; a pattern; a count of calls."""

    def __init__(self, rngs):
        self.block_0 = nnx.Dict(attn=nnx.Linear(3, 3, rngs=rngs), mlp=nnx.Linear(3, 3, rngs=rngs))
        self.block_1 = nnx.Dict(attn=nnx.Linear(3, 3, rngs=rngs))
        self.pair = Pair()
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        x = self.block_0["mlp"](self.block_0["attn"](x))
        return self.pair(self.block_1["attn"](x))[0]


class Pair(nnx.Module):
    def __call__(self, x):
        return x, 2


def shapes(forward, params, *args):
    return {s.name: (s.axes, s.stacked_shape) for s in ji.sites(forward, params, *args)}


def test_layers_in_names_and_sites_of_some_layers():
    module = Numbered(nnx.Rngs(0))
    forward, params = ji.guests.from_nnx(
        module, {"block_*.attn": "attn.out", "block_*.mlp": "mlp.out"}, inputs={"block_*.attn": "attn.in"}
    )
    logits, acts, _ = jax.jit(ji.run(forward, ji.capture("*")))(params, X)
    assert {name: a.shape[0] for name, a in acts.items()} == {"attn.in": 2, "attn.out": 2, "mlp.out": 1}
    check_same(acts["attn.in"][0], X)
    check_same(acts["attn.in"][1], acts["mlp.out"][0])
    check_same(acts["attn.out"][1], logits)
    with pytest.raises(ji.UnvisitedSiteError, match=r"layers \[1\] of 'mlp.out'"):
        ji.run(forward, ji.zero("mlp.out", layer=1))(params, X)


def test_what_a_call_changes_is_dropped():
    module = Numbered(nnx.Rngs(0))
    forward, params = ji.guests.from_nnx(module)
    with jax.checking_leaks():
        jax.jit(forward)(params, X)
    forward(params, X)
    assert int(params["calls"][...]) == 0 and int(module.calls[...]) == 0
    assert type(module.block_0["attn"]) is nnx.Linear


def test_unknown_paths_are_reported_together():
    module = nnx_modules()[1](nnx.Rngs(0))
    with pytest.raises(ji.InputError) as caught:
        ji.guests.from_nnx(
            module, {"blocks.*.atn": "a", "embd": "b", "blocks.*.*": "c", "out": ""}, inputs={"blocks": "d"}
        )
    text = str(caught.value)
    assert "'blocks.*.atn'. Did you mean 'blocks.*.attn'" in text and "'embd'. Did you mean 'embed'" in text
    assert "more than one *" in text and "'out' is given ''" in text and "no submodule 'blocks'" in text
    with pytest.raises(ji.InputError, match="no sites of this call"):
        ji.guests.from_nnx(module, NNX_PATHS, axes={"attn": "BTD"})
    with pytest.raises(ji.InputError, match="give a module"):
        ji.guests.from_nnx(lambda x: x)


def test_values_that_are_no_array_or_not_called():
    forward, params = ji.guests.from_nnx(Numbered(nnx.Rngs(0)), {"pair": "pair"})
    with pytest.raises(ji.SiteTypeError, match="'pair' is of type tuple"):
        forward(params, X)
    mlp = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    forward, params = ji.guests.from_nnx(mlp, {"layers.0": "pattern"}, axes={"pattern": "BTS"})
    assert shapes(forward, params, X) == {"pattern": ("BTS", (1, 2, 3))}


class Looped(nnx.Module):
    """Blocks that nnx stacks and scans; `by_hand` scans them by the tap."""

    def __init__(self, by_hand):
        self.by_hand = by_hand
        make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs)))
        self.blocks = make(nnx.Rngs(0))

    def __call__(self, x, *, tap=ji.IDENTITY):
        if not self.by_hand:
            return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
        graph, stacked = nnx.split(self.blocks)
        body = lambda x, block, *, tap: (tap("out", nnx.merge(graph, block)(x)), None)
        return tap.scan(body, x, stacked)[0]


def test_stacked_blocks_are_tapped_by_a_scan_of_the_tap():
    forward, params = ji.guests.from_nnx(Looped(True))
    plain, _ = ji.guests.from_nnx(Looped(False))
    logits, acts, _ = jax.jit(ji.run(forward, ji.capture("out")))(params, X)
    check_close(logits, plain(params, X))
    assert acts["out"].shape == (3, 1, 2, 3)
    check_same(acts["out"][-1], logits)
    inside, params = ji.guests.from_nnx(Looped(False), {"blocks": "out"})
    with pytest.raises(ji.TapScopeError, match="tap.scan"):
        ji.run(inside, ji.capture("out"))(params, X)


def test_training_mode_is_the_modules_own():
    module = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    module.eval()
    forward, params = ji.guests.from_nnx(module, {"layers.1": "dropped"})
    check_same(ji.run(forward, ji.capture("dropped"))(params, X)[1]["dropped"], module(X))
