"""Sweeps against a loop of full forwards, identities, and what is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji

sweep = functools.partial(ji.patching.sweep, progress=False)


POSITIONS = np.array([5, 5, 4])
RAMP = np.arange(4, dtype=np.float32)


def at_position(x, s, p):
    return x.at[:, p].set(s[:, p])


def at_position_and_head(x, s, p, h):
    return x.at[:, p, h].set(s[:, p, h])


def at_prompts_position(x, s, rows):
    return x.at[jnp.arange(3), rows].set(s[jnp.arange(3), rows])


def test_heads_by_position_equal_the_loop(small, difference, brute, measured, check_same):
    model, params, base, source = small
    got = sweep(
        model, params, base=base, source=source, site="attn.z", over={"layer": None, "head": [0, 3], "position": [1, 4, 5]},
        metric=difference, keep=("prompts",),
    )  # fmt: skip
    forward = jax.jit(lambda t: model.forward(params, t))
    plain = measured(forward(base))
    want = np.stack(
        [
            measured(brute("attn.z", layer, at_position_and_head, p, h)) - plain
            for layer, h, p in itertools.product(range(3), [0, 3], [1, 4, 5])
        ]
    ).reshape(3, 2, 3, 3)
    assert np.abs(want).max() > 0.1
    check_same(got.effect_by_prompt.values, want)
    check_same(got.effect.values, want.mean(-1))
    gap = (measured(forward(source)) - plain).mean()
    check_same(got.normalized.values, want.mean(-1) / gap)
    check_same(got.base.values, plain.mean())
    check_same(got.source.values, measured(forward(source)).mean())
    assert got.effect.dims == ("layer", "head", "position")
    assert got["head"].values.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("site", "over", "change"),
    [
        ("resid_pre", "layer,position", lambda x, s, p: x.at[:, p].set(s[:, p])),
        ("mlp.post", "layer,feature", lambda x, s, f: x.at[:, :, f].set(s[:, :, f])),
        ("attn.k", "layer,head", lambda x, s, k: x.at[:, :, k].set(s[:, :, k])),
        ("attn.pattern", "layer,head", lambda x, s, h: x.at[:, h].set(s[:, h])),
    ],
)
def test_every_kind_of_site_equals_the_loop(small, difference, brute, measured, check_same, site, over, change):
    model, params, base, source = small
    got = sweep(model, params, base=base, source=source, site=site, over=over, metric=difference)
    n = got.effect.shape[1]
    want = [[measured(brute(site, layer, change, i)).mean() for i in range(n)] for layer in range(3)]
    check_same(got.effect.values + got.base.values, np.array(want))


def test_sites_outside_layers(small, difference, brute, measured, check_same):
    model, params, base, source = small
    for site in ("embed", "final.in", "logits"):
        got = sweep(model, params, base=base, source=source, site=site, over="position", metric=difference)
        want = [measured(brute(site, None, at_position, p)).mean() for p in range(6)]
        check_same(got.effect.values + got.base.values, np.array(want))


def test_roles_are_positions_by_prompt(small, difference, brute, measured, check_same):
    model, params, base, source = small
    roles = {"name": np.array([1, 2, 0]), "end": np.array([5, 5, 4])}
    got = sweep(
        model, params, base=base, source=source, site="resid_mid", over="role,layer", metric=difference, roles=roles
    )
    want = [
        [measured(brute("resid_mid", layer, at_prompts_position, r)).mean() for layer in range(3)]
        for r in roles.values()
    ]
    check_same(got.effect.values + got.base.values, np.array(want))
    assert got["role"].values.tolist() == ["name", "end"]


@pytest.mark.parametrize(
    ("op", "change"),
    [
        (ji.zero, lambda x: jnp.zeros_like(x)),
        (ji.mean, lambda x: jnp.broadcast_to(x.mean((0, 1), keepdims=True), x.shape)),
        (functools.partial(ji.scale, factor=2.0), lambda x: 2 * x),
        (functools.partial(ji.add, value=RAMP, coefficient=0.5), lambda x: x + 0.5 * RAMP.reshape(1, 1, 1, 4)),
    ],
    ids=["zero", "mean", "scale", "add"],
)  # fmt: skip
def test_operations_need_no_source(small, difference, brute, measured, check_same, op, change):
    model, params, base, _ = small
    of_head = lambda x, s, h: x.at[:, :, h].set(change(x)[:, :, h])
    got = sweep(model, params, base=base, site="attn.z", over="layer,head", metric=difference, op=op)
    want = [[measured(brute("attn.z", layer, of_head, h)).mean() for h in range(4)] for layer in range(3)]
    check_same(got.effect.values + got.base.values, np.array(want))
    assert "normalized" not in got
    assert "source" not in got


def test_identities(small, difference):
    model, params, base, source = small
    same_value = functools.partial(ji.scale, factor=1.0)
    own = sweep(
        model, params, base=base, site="attn.z", over="layer,head", metric=difference, op=same_value, keep=("prompts",)
    )
    scale = np.abs(own.base_by_prompt.values).max()
    assert np.abs(own.effect_by_prompt.values).max() <= 1e-5 * scale
    everything = sweep(
        model, params, base=base, source=source, site="resid_pre", over={"layer": [0]}, metric=difference
    )
    assert abs(everything.normalized.values[0] - 1.0) < 1e-5
    before = ji.patching.logit_difference([1] * 3, [4] * 3, [4] * 3)
    later = sweep(
        model,
        params,
        base=base,
        source=source,
        site="resid_post",
        over={"layer": None, "position": [4, 5]},
        metric=before,
    )
    assert np.abs(later.effect.values[:, 0]).max() > 0.1
    assert np.abs(later.effect.values[:, 1]).max() <= 1e-5 * scale  # nothing reaches back in time


def test_padding_changes_no_effect(small, check_same):
    model, params, base, source = small
    metric = ji.patching.logit_difference([1] * 3, [4] * 3, [5] * 3)
    want = sweep(model, params, base=base, source=source, site="attn.z", over="layer,position", metric=metric)
    for left in (0, 2):
        pad = lambda t, left=left: jnp.pad(t, ((0, 0), (left, 2 - left)))
        mask = pad(jnp.ones((3, 6), bool))
        got = sweep(
            model, params, base=pad(base), source=pad(source), mask=mask, site="attn.z", metric=metric,
            over={"layer": None, "position": list(range(6))},
        )  # fmt: skip
        check_same(got.effect.values, want.effect.values)


def test_a_position_that_no_prompt_has_is_not_a_number_and_shorter_prompts_do_not_count(small, check_same):
    model, params, base, source = small
    metric = ji.patching.logit_difference([1] * 3, [4] * 3, [5, 3, 5])
    mask = jnp.ones((3, 6), bool).at[1, 4:].set(False)
    got = sweep(
        model, params, base=base, source=source, mask=mask, site="resid_pre", over="layer,position", metric=metric,
        keep=("prompts",),
    )  # fmt: skip
    assert np.isnan(got.effect_by_prompt.values[:, 4:, 1]).all()
    assert np.isfinite(got.effect.values).all()
    check_same(got.effect.values[:, 4], got.effect_by_prompt.values[:, 4, [0, 2]].mean(-1))
    alone = sweep(
        model, params, base=base[1:2, :4], source=source[1:2, :4], site="resid_pre", over="layer,position",
        metric=ji.patching.logit_difference([1], [4], [3]),
    )  # fmt: skip
    check_same(got.effect_by_prompt.values[:, :4, 1], alone.effect.values)


def test_several_metrics_and_kept_logits_need_no_rerun(small, difference, check_same):
    model, params, base, source = small
    reference = model.forward(params, source)[np.arange(3), POSITIONS]
    got = sweep(
        model, params, base=base, source=source, site="attn.z", over="layer,head", keep=("logits", "prompts"),
        metric={"difference": difference, "kl": ji.patching.kl_divergence(reference, POSITIONS)},
    )  # fmt: skip
    alone = sweep(
        model, params, base=base, source=source, site="attn.z", over="layer,head", metric=difference, keep=("logits",)
    )
    check_same(got.effect.sel(metric="difference").values, alone.effect.values)
    from_logits = alone.logits.values[..., 0] - alone.logits.values[..., 1]
    check_same(from_logits.mean(-1), alone.effect.values + alone.base.values)
    assert alone.answer_token.values.tolist() == [[1, 4], [2, 5], [3, 6]]
    logp = np.asarray(jax.nn.log_softmax(got.logits_kl.values, axis=-1))
    want = np.asarray(jax.nn.log_softmax(reference, axis=-1))
    kl = (np.exp(want) * (want[None, None] - logp)).sum(-1).mean(-1)
    check_same(got.effect.sel(metric="kl").values + got.base.values[1], kl, 1e-4)


class Tokens:
    """Enough of a tokenizer to label positions."""

    bos_id = 0

    def str_tokens(self, ids):
        return [f"t{i}" for i in ids]


def test_positions_are_labelled_by_the_longest_prompt_and_bos_is_read_off_the_prompts(small):
    model, params, _, _ = small
    base = jnp.array([[7, 7, 0, 1, 2, 3], [0, 4, 5, 6, 8, 9]])
    mask = jnp.array([[False, False, True, True, True, True], [True] * 6])
    metric = ji.patching.logit_difference([1, 1], [2, 2], [3, 5])
    call = functools.partial(
        sweep, model, params, site="embed", over="position", metric=metric, op=ji.zero, tokenizer=Tokens()
    )
    got = call(base=base, mask=mask)
    assert got.token.values.tolist() == ["t0", "t4", "t5", "t6", "t8", "t9"]
    assert got.attrs["prepend_bos"] == 1
    alone = call(base=base[:1], mask=mask[:1], metric=ji.patching.logit_difference([1], [2], [3]))
    assert alone.token.values.tolist() == ["t0", "t1", "t2", "t3", "", ""]
    assert call(base=base.at[0, 2].set(1), mask=mask).attrs["prepend_bos"] == 0


def test_a_position_that_is_not_there_is_refused(small):
    model, params, base, _ = small
    metric = ji.patching.logit_difference([1] * 3, [2] * 3, [5, 50, 5])
    with pytest.raises(ji.InputError, match=r"reads positions outside prompts \[1\]"):
        sweep(model, params, base=base, site="attn.z", over="layer", metric=metric, op=ji.zero)


def test_kept_logits_of_several_positions_and_a_cell_without_prompts(small, check_same):
    model, params, base, source = small
    rows = np.array([[1, 3], [0, 2], [1, 2]])
    metric = ji.patching.cross_entropy(np.array([[1, 2], [3, 4], [5, 6]]), rows)
    mask = jnp.ones((3, 6), bool).at[:, 4:].set(False)
    got = sweep(
        model, params, base=base, source=source, mask=mask, site="embed", over={"position": [1, 5]},
        metric=metric, keep=("logits",),
    )  # fmt: skip
    assert got.logits.dims == ("position", "prompt", "read", "answer")
    logp = np.asarray(jax.nn.log_softmax(got.logits.values[0], axis=-1))
    want = -np.mean([[logp[b, i, t] for i, t in enumerate(ts)] for b, ts in enumerate([[1, 2], [3, 4], [5, 6]])])
    check_same(got.effect.values[:1] + got.base.values, [want])
    assert np.isnan(got.effect.values[1])  # no prompt has a position 5


def test_one_compile_for_any_chunks_and_none_for_other_values(small, difference, count_compiles, check_same):
    model, params, base, source = small
    call = functools.partial(sweep, model, params, site="attn.out", over="layer,head", metric=difference)
    call = functools.partial(call, site="attn.z")
    args = dict(base=base, source=source.at[:, 0].set((base[:, 0] + 1) % 11))
    whole = call(**args)
    full = ji.patching.plan(model, params, site="attn.z", over="layer,head", metric=difference, **args)
    tight = full.bytes_base + full.bytes_fixed + full.bytes_chunk // 2
    with count_compiles() as few:
        chunked = call(**args, memory=tight)
    assert few.count("run_chunk") == 1  # 12 cells in six chunks of one shape
    check_same(chunked.effect.values, whole.effect.values)
    with count_compiles() as none:
        call(base=args["source"], source=base)
        call(**args, over={"layer": [2, 1], "head": [3, 2, 1, 0]})
        call(**args, op=ji.zero)
        call(**args, op=functools.partial(ji.scale, factor=0.5))
    assert none.count("run_chunk") == none.count("measure_run") == none.count("base_run") == 0


def test_result_writes_and_reads_as_netcdf(small, difference, tmp_path):
    import xarray as xr

    model, params, base, source = small
    got = sweep(
        model, params, base=base, source=source, site="attn.z", over="layer,head", metric=difference,
        provenance={"model": "small", "prepend_bos": False, "revision": None},
    )  # fmt: skip
    got.to_netcdf(tmp_path / "effects.nc", engine="h5netcdf")
    back = xr.load_dataset(tmp_path / "effects.nc", engine="h5netcdf")
    assert back.attrs["model"] == "small"
    assert back.attrs["site"] == "attn.z"
    assert back.attrs["prepend_bos"] == 0
    np.testing.assert_array_equal(back.effect.values, got.effect.values)


def test_a_plain_function_is_swept(check_same):
    weights = jax.random.normal(jax.random.key(0), (2, 5, 5))

    def guest(weights, tokens, *, tap):
        x = jax.nn.one_hot(tokens, 5)
        for i in range(2):
            x = tap.at(layer=i, n_layers=2)("hidden", jnp.tanh(jnp.cumsum(x, 1) @ weights[i]))
        return x

    base, source = jnp.array([[0, 1, 2]]), jnp.array([[3, 1, 4]])
    metric = ji.patching.logit_difference([0], [1], [2])
    got = sweep(guest, weights, base=base, source=source, site="hidden", over="layer,position", metric=metric)
    acts = ji.run(guest, ji.capture("hidden"))(weights, source)[1]["hidden"]
    for layer, position in itertools.product(range(2), range(3)):
        edit = ji.edit("hidden", lambda x, layer=layer, p=position: x.at[:, p].set(acts[layer][:, p]), layer=layer)
        out = ji.run(guest, edit)(weights, base)[0][0, 2]
        assert abs(float(out[0] - out[1]) - float(got.effect[layer, position] + got.base)) < 1e-6
    how = dict(base=base, source=source, site="hidden", over="layer", metric=metric, mask=jnp.ones((1, 3), bool))
    with pytest.raises(ji.InputError, match="plain function"):
        sweep(guest, weights, **how)
    with pytest.raises(ji.InputError, match="which position a row of hidden has"):  # its edits would miss the place
        sweep(lambda weights, tokens, *, tap, mask=None: guest(weights, tokens, tap=tap), weights, **how)


def test_a_metric_that_cannot_tell_base_from_source_says_so(small, difference):
    model, params, base, _ = small
    with (
        pytest.warns(UserWarning, match="same for base and source"),
        pytest.warns(UserWarning, match="by construction"),
    ):
        got = sweep(model, params, base=base, source=base, site="attn.z", over="layer", metric=difference)
    assert np.isnan(got.normalized.values).all()
    assert (got.effect.values == 0).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"site": "attn.zz"}, ji.UnvisitedSiteError, "Did you mean 'attn.z'"),
        ({"over": "layer,heads"}, ji.InputError, "unknown axis 'heads'"),
        ({"over": {"layer": [3]}}, ji.SiteIndexError, "legal are 0 to 2"),
        ({"over": {"head": [4]}}, ji.SiteIndexError, "legal are 0 to 3"),
        ({"over": {"position": [6]}}, ji.SiteIndexError, "legal are 0 to 5"),
        ({"over": "role"}, ji.InputError, "no roles were given"),
        ({"over": {"role": ["ned"]}, "roles": {"end": POSITIONS}}, ji.InputError, "Did you mean 'end'"),
        ({"over": "position,role"}, ji.InputError, "both position and role"),
        ({"site": "embed", "over": "layer"}, ji.InputError, "is in no layer"),
        ({"site": "mlp.out", "over": "head"}, ji.InputError, "no head"),
        ({"base": "One day"}, ji.InputError, "not an array of token ids"),
        ({"base": [[1, 2], [3]]}, ji.InputError, "need padding and a mask"),
        ({"metric": ji.patching.log_probability([99] * 3, [5] * 3)}, ji.InputError, "token ids outside the vocabulary"),
        ({"source": jnp.zeros((3, 5), jnp.int32)}, ji.InputError, "source \\[3, 5\\]"),
        ({"base": jnp.full((3, 6), 11), "source": None, "op": ji.zero}, ji.TokenError, "outside the vocabulary"),
        ({"source": None}, ji.InputError, "op=patch needs source"),
        ({"keep": ("prompt",)}, ji.InputError, "legal are 'prompts', 'interval' and 'logits'"),
        ({"metric": None}, ji.InputError, "give a metric"),
        ({"metric": ji.patching.logit_difference([1] * 3, [4] * 3, [6] * 3)}, ji.InputError, "outside prompts"),
        ({"metric": ji.patching.logit_difference([11] * 3, [4] * 3, [5] * 3)}, ji.InputError, "11 outputs"),
        ({"metric": ji.patching.logit_difference([1] * 2, [4] * 2, [5] * 2)}, ji.InputError, "for 2 prompts"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(small, difference, change, error, message):
    model, params, base, source = small
    good = dict(base=base, source=source, site="attn.z", over="layer,head", metric=difference)
    with pytest.raises(error, match=message):
        sweep(model, params, **{**good, **change})


def test_nan_in_the_weights_is_told(small, difference):
    model, params, base, source = small
    broken = jax.tree.map(lambda a: a, params)
    broken["embed"]["W_E"] = params["embed"]["W_E"].at[:, 0].set(jnp.nan)
    with pytest.raises(ji.InputError, match="NaN|not finite"):
        sweep(model, broken, base=base, source=source, site="attn.z", over="layer,head", metric=difference)
