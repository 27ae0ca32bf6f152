"""Sweeps of models that are known: compiled programs, and a small trained language model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from tests.models.tracr import read_program


def _weighted(logits, weights):
    return jnp.einsum("bpv,pv->b", logits, jnp.asarray(weights), precision="highest")


def brute(model, params, base, handler_of, cells):
    """Whole logits [n, B, T, V] by one forward pass a cell; cells are tuples of traced ints."""
    one = jax.jit(lambda p, t, cell: ji.run(model.forward, handler_of(*cell))(p, t)[0])
    return np.stack([np.asarray(one(params, base, tuple(map(jnp.int32, cell)))) for cell in cells])


def _ablation(site, op, acts):
    """The edit at (layer, head) or (layer)."""

    def made(layer, *head):
        where = {"layer": layer} | ({"head": head[0]} if head else {})
        return ji.patch(site, per_layer=acts, **where) if op == "patch" else ji.zero(site, **where)

    return made


@pytest.mark.filterwarnings("ignore:metric 'weighted values' is the same")
@pytest.mark.parametrize(
    ("name", "op"), [("reverse", "zero"), ("shuffle_dyck1", "zero"), ("frac_prevs", "patch"), ("sort_unique", "patch")]
)
def test_unused_components_of_a_compiled_program_do_nothing(shared, name, op):
    program = read_program(shared / "tracr", name)
    cases = program.about["cases"]
    length = max(len(case["input_ids"]) for case in cases)
    chosen = [c for c in cases if len(c["input_ids"]) == length and len(cases[c["donor"]]["input_ids"]) == length][:4]
    base = jnp.array([c["input_ids"] for c in chosen])
    source = jnp.array([cases[c["donor"]]["input_ids"] for c in chosen])
    model, params = program.model, program.params
    weights = np.random.default_rng(0).normal(size=(length, model.config.outputs)).astype(np.float32)
    metric = ji.patching.Metric(
        name="weighted values",
        unit="logits",
        function=_weighted,
        positions=np.tile(np.arange(length), (len(chosen), 1)),
        data=weights,
    )
    uses, used = {c["node"]: c["used"] for c in program.about["components"]}, 0
    for site, over in (("attn.z", "layer,head"), ("mlp.out", "layer")):
        effects = ji.patching.sweep(
            model, params, base=base, source=source, site=site, over=over, metric=metric, keep=("prompts",), progress=False,
            op=ji.patch if op == "patch" else ji.zero,
        )  # fmt: skip
        got = effects.effect_by_prompt.values.reshape(-1, len(chosen))
        cells = list(itertools.product(*(range(n) for n in effects.effect.shape)))
        acts = ji.run(model.forward, ji.capture(site))(params, source)[1][site]
        whole = brute(model, params, base, _ablation(site, op, acts), cells)
        plain = np.asarray(model.forward(params, base))
        want = np.einsum("nbpv,pv->nb", whole - plain[None], weights)
        assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())
        for cell, effect in zip(cells, got, strict=True):
            key = f"a{cell[0]}.h{cell[1]}" if len(cell) == 2 else f"m{cell[0]}"
            if not uses[key]:
                assert (effect == 0).all(), (key, effect)
            used += bool(np.abs(effect).max() > 0.01)
    assert used > 0


PAIRS = [
    (
        "Once upon a time, there was a little girl named Lily. One day,",
        "Once upon a time, there was a little boy named Tim. One day,",
    ),
    (
        "Once upon a time, there was a little girl named Lily. Then,",
        "Once upon a time, there was a little boy named Tim. Then,",
    ),
]


@pytest.mark.parametrize(
    ("site", "over"), [("attn.z", "layer,head"), ("resid_pre", "layer,position"), ("mlp.out", "layer,position")]
)
def test_a_trained_model_on_real_prompts(shared, site, over):
    lm = ji.load(shared / "stories260k")
    clean, corrupt = ([lm.encode(pair[i])[0].tolist() for pair in PAIRS] for i in (0, 1))
    lengths = np.array(list(map(len, clean)))
    assert lengths.tolist() == list(map(len, corrupt))
    width = lengths.max()
    pad = lambda rows: jnp.array([row + [0] * (width - len(row)) for row in rows])
    base, source, mask = pad(corrupt), pad(clean), jnp.asarray(np.arange(width)[None] < lengths[:, None])
    she, he = (lm.answer_token(PAIRS[0][0], answer) for answer in (" she", " he"))
    metric = ji.patching.logit_difference([she, she], [he, he], lengths - 1)
    effects = ji.patching.sweep(
        lm.model, lm.params, base=base, source=source, mask=mask, site=site, over=over, metric=metric, keep=("prompts",),
        progress=False,
    )  # fmt: skip
    assert effects.source - effects.base > 4  # the model tells them apart
    forward = lambda p, t, *handlers: ji.run(lm.model.forward, *handlers)(p, t, mask=mask)
    acts = forward(lm.params, source, ji.capture(site))[1][site]
    axis = over.split(",")[1]
    one = jax.jit(lambda p, t, layer, i: forward(p, t, ji.patch(site, per_layer=acts, layer=layer, **{axis: i}))[0])
    read = lambda logits: (logits[:, :, she] - logits[:, :, he])[np.arange(2), lengths - 1]
    plain = read(np.asarray(forward(lm.params, base)[0]))
    got = effects.effect_by_prompt.values
    for layer, i in itertools.product(*(range(n) for n in effects.effect.shape)):
        there = lengths > i if axis == "position" else np.ones(2, bool)
        want = read(
            np.asarray(
                one(lm.params, base, jnp.int32(layer), jnp.int32(min(i, lengths.min() - 1) if not there.all() else i))
            )
        )
        want = np.where(there, want - plain, np.nan)
        if there.all():
            assert np.abs(got[layer, i] - want).max() <= 1e-5 * np.abs(plain).max()
        else:
            np.testing.assert_array_equal(np.isnan(got[layer, i]), ~there)
    assert np.nanmax(effects.normalized) > 0.2
