"""Path patching against loops in float64 numpy, the identity with direct logit attribution, and what is refused."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.special import erf

import jaxinterp as ji
from tests.tiny import check_close, check_same, make_model, make_params

path_patch = functools.partial(ji.patching.path_patch, progress=False)
GPT2 = make_model()
LLAMA = make_model(
    normalization_type="RMS", positional_embedding_type="rotary", n_key_value_heads=2, act_fn="silu", gated_mlp=True,
    attention_bias=False, attention_output_bias=False, mlp_bias=False,
)  # fmt: skip
LENGTHS = (6, 4, 5)
CORRECT, WRONG, POSITION = np.array([1, 2, 3]), np.array([4, 5, 6]), np.array([5, 3, 3])
MASK = np.arange(6) < np.array(LENGTHS)[:, None]
BASE = np.random.default_rng(1).integers(0, 11, (3, 6)).astype(np.int32)
SOURCE = BASE.copy()
SOURCE[:, 1] = (BASE[:, 1] + 3) % 11
SOURCE[:, 3] = (BASE[:, 3] + 5) % 11


@functools.cache
def make_world(model):
    params = make_params(model)
    weights = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    runs = [tuple(loops(model.config, weights, tokens[b, : LENGTHS[b]]) for tokens in (BASE, SOURCE)) for b in range(3)]
    metric = ji.patching.logit_difference(CORRECT, WRONG, POSITION)
    call = functools.partial(
        path_patch, model, params, base=BASE, source=SOURCE, mask=MASK, metric=metric, keep=("prompts",)
    )
    return SimpleNamespace(model=model, params=params, weights=weights, runs=runs, call=call)


def loops(config, weights, tokens, *, z=None, mlp=None, embed=None, inputs=None, scale=None):
    """One prompt's forward pass, head by head. What is given replaces what would be computed.

    z: [L][H] of [T, E]; mlp: [L] of [T, D] or None; inputs: streams by ("q", layer, head), ..., ("mlp", layer), "logits".
    """
    inputs, T = inputs or {}, len(tokens)
    W = weights["blocks"][0]
    x = weights["embed"]["W_E"][tokens] + (weights["embed"]["W_pos"][:T] if "W_pos" in weights["embed"] else 0)
    x = x if embed is None else embed
    out = SimpleNamespace(z=[], mlp=[], streams={}, embed=x)
    group = config.n_heads // config.key_value_heads

    def norm(name, layer, x, scale=None):
        if config.normalization_type is None:
            return x, None
        p = {k: v if layer is None else v[layer] for k, v in (weights if layer is None else W)[name].items()}
        x = x - x.mean(-1, keepdims=True) if config.normalization_type == "LN" else x
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + config.eps) if scale is None else scale
        return x / scale * p["w"] + p.get("b", 0), scale

    def project(letter, layer, head, x):
        y = norm("ln1", layer, x)[0] @ W["attn"][f"W_{letter}"][layer, head]
        return y + (W["attn"][f"b_{letter}"][layer, head] if f"b_{letter}" in W["attn"] else 0)

    def turn(x):
        if config.positional_embedding_type != "rotary":
            return x
        half = config.d_head // 2
        angle = np.arange(T)[:, None] * config.rotary_base ** (-np.arange(half) / half)
        a, b = x[:, :half], x[:, half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)

    for layer in range(config.n_layers):
        out.z.append([])
        write = W["attn"]["b_O"][layer] if "b_O" in W["attn"] else 0
        for head in range(config.n_heads):
            kv = head // group
            out.streams |= {("q", layer, head): x, ("k", layer, kv): x, ("v", layer, kv): x}
            q = turn(project("Q", layer, head, inputs.get(("q", layer, head), x)))
            k = turn(project("K", layer, kv, inputs.get(("k", layer, kv), x)))
            v = project("V", layer, kv, inputs.get(("v", layer, kv), x))
            seen = np.tril(np.ones((T, T), bool)) | (config.attention_dir == "bidirectional")
            s = np.where(seen, q @ k.T / np.sqrt(config.d_head), -np.inf)
            p = np.exp(s - s.max(-1, keepdims=True))
            out.z[-1].append(p / p.sum(-1, keepdims=True) @ v if z is None else z[layer][head])
            write = write + out.z[-1][-1] @ W["attn"]["W_O"][layer, head]
        x = x + write
        out.mlp.append(0.0)
        if config.attn_only:
            continue
        out.streams["mlp", layer] = x
        h = norm("ln2", layer, inputs.get(("mlp", layer), x))[0]
        bias = lambda name, layer=layer: W["mlp"][name][layer] if name in W["mlp"] else 0
        pre = h @ W["mlp"]["W_in"][layer] + bias("b_in")
        gate = h @ W["mlp"]["W_gate"][layer] if config.gated_mlp else None
        post = 0.5 * pre * (1 + erf(pre / np.sqrt(2))) if gate is None else gate / (1 + np.exp(-gate)) * pre
        write = post @ W["mlp"]["W_out"][layer] + bias("b_out")
        out.mlp[-1] = write if mlp is None or mlp[layer] is None else mlp[layer]
        x = x + out.mlp[-1]
    out.streams["logits"] = x
    normal, out.scale = norm("ln_final", None, inputs.get("logits", x), scale)
    out.logits = normal @ weights["unembed"]["W_U"]
    return out


def measured(logits, b):
    return logits[POSITION[b], CORRECT[b]] - logits[POSITION[b], WRONG[b]]


def one_path(world, b, form, receivers, *senders):
    """The effect by the definition, for the senders of one cell and a prompt; a sender is (site, layer, head, position)."""
    base, source = world.runs[b]
    run = functools.partial(loops, world.model.config, world.weights, BASE[b, : LENGTHS[b]])
    z, embed = [[a.copy() for a in heads] for heads in base.z], base.embed.copy()
    mlp = [a.copy() for a in base.mlp] if form == "frozen" else [None] * len(base.mlp)
    for site, layer, head, position in senders:
        rows = slice(None) if position is None else position
        if site == "attn.z":
            z[layer][head][rows] = source.z[layer][head][rows]
        elif site == "mlp.out":  # its other positions are the base run's, since no head carries anything there
            mlp[layer] = base.mlp[layer].copy()
            mlp[layer][rows] = source.mlp[layer][rows]
        else:
            embed[rows] = source.embed[rows]
    first = run(z=z, mlp=mlp, embed=embed)
    if "logits" in receivers:
        last = run(inputs={"logits": first.streams["logits"]}, scale=base.scale if form == "frozen" else None)
    else:
        last = run(inputs={r: first.streams[r] for r in receivers})
    return measured(last.logits, b) - measured(base.logits, b)


def every_path(world, form, receivers, site, axes):
    """[*axes, prompt]; NaN where a prompt does not have the position."""
    sizes = {"layer": 3, "head": 4, "position": 6}
    grid = itertools.product(*(range(sizes[a]) for a in axes), range(3))
    out = []
    for *index, b in grid:
        place = dict(zip(axes, index, strict=True))
        gone = place.get("position", 0) >= LENGTHS[b]
        sender = (site, *(place.get(axis) for axis in sizes))
        out.append(np.nan if gone else one_path(world, b, form, receivers, sender))
    return np.array(out).reshape([sizes[a] for a in axes] + [3])


def check_effects(world, got, want, tolerance=1e-5):
    """Effects by prompt within `tolerance` of the largest metric, and exactly 0 where no path leads."""
    largest = max(abs(measured(run.logits, b)) for b, pair in enumerate(world.runs) for run in pair)
    effects = got.effect_by_prompt.values
    assert np.nanmax(np.abs(want)) > 300 * tolerance * largest  # a wrong implementation would be seen
    np.testing.assert_array_equal(np.isnan(effects), np.isnan(want))
    assert np.nanmax(np.abs(effects - want)) <= tolerance * largest
    assert (effects[np.abs(want) < 1e-12] == 0).all()
    assert np.abs(got.effect.values - np.nanmean(want, -1)).max() <= tolerance * largest


MIXED = [("q", 1, 3), ("q", 2, 0), ("k", 2, 1), ("v", 1, 0), ("v", 2, 1), ("mlp", 0), ("mlp", 2)]
SETS = {
    "q": [("q", 1, None), ("q", 2, None)],
    "kv": [("k", 1, 1), ("v", 2, 0)],
    "mlp": ("mlp", 1),
    "logits": ["logits"],
    "mixed": MIXED,
}


@pytest.mark.parametrize(
    ("model", "form", "kinds"),
    [
        (GPT2, "recomputed", "q"),
        (GPT2, "recomputed", "mlp"),
        (GPT2, "frozen", "mixed"),
        (LLAMA, "recomputed", "kv"),
        (LLAMA, "recomputed", "logits"),
        (LLAMA, "recomputed", "mixed"),
    ],
    ids=lambda value: {GPT2: "gpt2", LLAMA: "llama"}[value] if isinstance(value, ji.Model) else value,
)
def test_heads_equal_the_loop(model, form, kinds):
    world, receivers = make_world(model), SETS[kinds]
    got = world.call(over="layer,head", receivers=receivers, form=form)
    listed = [receivers] if kinds == "mlp" else receivers
    listed = [(kind, layer, h) for kind, layer, _ in listed for h in range(4)] if kinds == "q" else listed
    check_effects(world, got, every_path(world, form, listed, "attn.z", ("layer", "head")))
    assert got.attrs["form"] == form and got.attrs["site"] == "attn.z"


@pytest.mark.parametrize(
    ("model", "form", "site", "axes"),
    [(GPT2, "recomputed", "mlp.out", ("layer", "position")), (LLAMA, "frozen", "embed", ("position",))],
    ids=["mlps", "embedding"],
)
def test_other_senders_by_position_equal_the_loop(model, form, site, axes):
    world = make_world(model)
    receivers = [("mlp", 2), ("k", 2, 1)]
    got = world.call(senders=site, over=axes, receivers=receivers, form=form)
    check_effects(world, got, every_path(world, form, receivers, site, axes))


def test_heads_at_positions_and_roles_with_padding_on_the_left():
    world = make_world(LLAMA)
    shift = lambda a: np.stack([np.roll(row, 6 - n) for row, n in zip(a, LENGTHS, strict=True)])
    receivers = [("q", 2, None), ("mlp", 2)]
    here = dict(base=shift(BASE), source=shift(SOURCE), mask=shift(MASK), receivers=receivers)
    got = world.call(over="layer,head,position", **here)
    want = every_path(world, "recomputed", [("q", 2, h) for h in range(4)] + [("mlp", 2)], "attn.z", got.effect.dims)
    check_effects(world, got, want)
    rows = np.array([3, 1, 3])
    by_role = world.call(over="layer,head,role", roles={"name": rows}, **here)
    check_close(by_role.effect_by_prompt.values[:, :, 0], want[:, :, rows, np.arange(3)], 1e-3)


def test_listed_senders_of_several_kinds_and_several_at_once():
    world = make_world(LLAMA)
    listed = [[{"layer": 0, "head": 3}, {"layer": 1, "head": 1, "position": 3}], {"site": "mlp.out", "layer": 1}]
    got = world.call(over=listed, receivers=("mlp", 2))
    senders = [[("attn.z", 0, 3, None), ("attn.z", 1, 1, 3)], [("mlp.out", 1, None, None)]]
    want = np.array([[one_path(world, b, "recomputed", [("mlp", 2)], *cell) for b in range(3)] for cell in senders])
    check_effects(world, got, want)
    assert got["layer"].values.tolist() == ["0+1", "1"] and got["site"].values.tolist() == ["attn.z+attn.z", "mlp.out"]


def test_without_a_causal_mask_later_positions_reach_back():
    world = make_world(make_model(attention_dir="bidirectional", n_layers=2))
    got = world.call(senders="embed", over="position", receivers=[("k", 1, 2), ("v", 1, 2)])
    want = every_path(world, "recomputed", [("k", 1, 2), ("v", 1, 2)], "embed", ("position",))
    check_effects(world, got, want)
    assert (
        abs(want[4, 2]) == 0 and abs(want[3, 1]) > 0
    )  # prompt 2 is read at position 3, and its position 4 is as in the base


def test_frozen_path_to_the_logits_is_the_difference_of_direct_logit_attributions():
    """DLA: center the head's write (LayerNorm), divide by the base run's scale, unembed."""
    world = make_world(GPT2)
    got = world.call(over="layer,head", receivers="logits", form="frozen").effect_by_prompt.values
    W = world.weights
    want = np.empty((3, 4, 3))
    for (layer, head), b in itertools.product(itertools.product(range(3), range(4)), range(3)):
        base, source = world.runs[b]
        row, W_U = POSITION[b], W["unembed"]["W_U"]

        def attribution(run, layer=layer, head=head, row=row, W_U=W_U, b=b, base=base):
            write = run.z[layer][head][row] @ W["blocks"][0]["attn"]["W_O"][layer, head]
            write = write - write.mean()
            return write / base.scale[row, 0] * W["ln_final"]["w"] @ (W_U[:, CORRECT[b]] - W_U[:, WRONG[b]])

        want[layer, head, b] = attribution(source) - attribution(base)
    check_close(got, want, 3e-5)
    check_close([one_path(world, 1, "frozen", ["logits"], ("attn.z", 1, 2, None))], [want[1, 2, 1]])


@pytest.mark.usefixtures("bfloat16_products")
def test_bfloat16_activations_of_float32_parameters():
    model = ji.Model(config=dataclasses.replace(LLAMA.config, compute_dtype="bfloat16"))
    of = lambda dtype: jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype(dtype), make_world(LLAMA).params)
    how = dict(over="layer,head", receivers=SETS["mixed"], keep=("prompts",), mask=MASK)
    how |= dict(base=BASE, source=SOURCE, metric=ji.patching.logit_difference(CORRECT, WRONG, POSITION))
    got, want = path_patch(model, of("float32"), **how), path_patch(LLAMA, of("bfloat16"), **how)
    check_close(got.effect_by_prompt.values, want.effect_by_prompt.values)


def test_a_model_without_norm_or_mlps():
    world = make_world(make_model(attn_only=True, d_mlp=None, normalization_type=None, n_layers=2))
    got = world.call(over="layer,head", receivers="logits", form="frozen").effect_by_prompt.values
    W = world.weights
    write = lambda run, row: run.z[1][2][row] @ W["blocks"][0]["attn"]["W_O"][1, 2] @ W["unembed"]["W_U"]
    want = [write(world.runs[b][1], POSITION[b]) - write(world.runs[b][0], POSITION[b]) for b in range(3)]
    want = [w[CORRECT[b]] - w[WRONG[b]] for b, w in enumerate(want)]
    check_close(got[1, 2], want, 3e-5)


def test_one_compile_for_all_senders_and_none_for_other_receivers_or_prompts(count_compiles):
    world = make_world(LLAMA)
    call = functools.partial(
        world.call, over="layer,head,position", receivers=[("q", 2, 0), ("v", 1, 1)], form="frozen"
    )
    with count_compiles() as first:
        call()
    assert first.count("_chunk_of_paths") == 1  # 72 senders in several chunks
    with count_compiles() as none:
        call(receivers=[("q", 1, 3), ("q", 2, 2), ("v", 2, 0)])
        call(base=SOURCE, source=BASE)
        call(metric=ji.patching.logit_difference(WRONG, CORRECT, POSITION))
    assert not [name for name in none.names if name.startswith("_")]


def test_several_metrics_and_kept_logits():
    world = make_world(GPT2)
    metric = {
        "difference": ji.patching.logit_difference(CORRECT, WRONG, POSITION),
        "nats": ji.patching.log_probability(CORRECT, POSITION),
    }
    got = world.call(over="layer,head", receivers=("mlp", 1), metric=metric, keep=("prompts", "logits"))
    alone = world.call(over="layer,head", receivers=("mlp", 1))
    check_close(got.effect_by_prompt.sel(metric="difference").values, alone.effect_by_prompt.values, 1e-4)
    logits = got.logits_nats.values
    check_same(logits[2, 0], logits[2, 1])  # heads of layer 2 come after the MLP of layer 1: the base run's logits
    logp = np.asarray(jax.nn.log_softmax(logits, axis=-1))[..., np.arange(3), CORRECT]
    check_close(logp, got.effect_by_prompt.sel(metric="nats").values + got.base_by_prompt.sel(metric="nats").values)


def test_what_changes_nothing_is_said(recwarn):
    world = make_world(GPT2)
    with pytest.warns(UserWarning, match="the other receivers change nothing"):
        mixed = world.call(over="layer", receivers=["logits", ("q", 2, 1)])
    check_same(mixed.effect.values, world.call(over="layer", receivers="logits").effect.values)
    with pytest.warns(UserWarning, match="zero by construction"), pytest.warns(UserWarning, match="normalized effect"):
        same = world.call(over="layer", receivers="logits", source=BASE)
    check_same(same.effect.values, np.zeros(3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"senders": "attn.q"}, ji.InputError, "legal are 'attn.z'"),
        ({"form": "linear"}, ji.InputError, "'recomputed' and 'frozen'"),
        ({"source": None}, ji.InputError, "needs source"),
        ({"model": lambda params, tokens, *, tap: None}, ji.InputError, "needs a jaxinterp Model"),
        ({"over": {"layer": [3], "head": None}}, ji.SiteIndexError, "legal are 0 to 2"),
        ({"over": "layer,feature,heads"}, ji.InputError, "unknown axis 'heads'"),
        ({"senders": "mlp.out"}, ji.InputError, "no head"),
        ({"receivers": []}, ji.InputError, "name at least one"),
        ({"receivers": 3}, ji.InputError, "name at least one"),
        ({"receivers": [("q", 1)]}, ji.InputError, "not understood"),
        ({"receivers": [("query", 1, 0), ("mlp", 1, 1)]}, ji.InputError, "query.*not understood.*mlp.*not understood"),
        ({"receivers": [("q", 1.5, 0)]}, ji.InputError, "not understood"),
        ({"receivers": [("q", 0, 4)]}, ji.SiteIndexError, "3 layers and 4 heads"),
        ({"receivers": [("k", 0, 2)]}, ji.SiteIndexError, "2 key/value heads"),
        ({"receivers": ("mlp", -1)}, ji.SiteIndexError, "3 layers"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change, error, message):
    world = make_world(LLAMA)
    good = dict(
        model=world.model, params=world.params, base=BASE, source=SOURCE, mask=MASK, over="layer,head", receivers="logits",
        metric=ji.patching.logit_difference(CORRECT, WRONG, POSITION),
    )  # fmt: skip
    with pytest.raises(error, match=message):
        path_patch(**{**good, **change})


def test_receivers_as_data():
    make = functools.partial(ji.patching.make_receivers, config=LLAMA.config)
    got = make([("q", 1, None), ("k", None, 1), ("mlp", 2), "logits"])
    assert got.chosen["q"].tolist() == [[False] * 4, [True] * 4, [False] * 4]
    assert got.chosen["k"].tolist() == [[False, True]] * 3
    assert got.chosen["mlp"].tolist() == [False, False, True]
    assert got.logits and set(got.chosen) == {"q", "k", "mlp"}
    assert jax.tree.structure(make(("q", 0, 1))) == jax.tree.structure(make([("q", 2, 0), ("q", 1, 1)]))
    with pytest.raises(ji.InputError, match="the model has no MLPs"):
        ji.patching.make_receivers(("mlp", 0), config=make_model(attn_only=True, d_mlp=None).config)
