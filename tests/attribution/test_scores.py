"""Attribution patching against derivatives taken another way, linear models, and sweeps."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from tests.tiny import check_close, make_model, make_params, make_tokens

MODEL = make_model(normalization_type="RMS", positional_embedding_type="rotary", n_key_value_heads=2)
PARAMS = make_params(MODEL)
BASE, SOURCE = make_tokens(3, 6, seed=1), make_tokens(3, 6, seed=2)
CORRECT, WRONG, POSITION = np.array([1, 2, 3]), np.array([4, 5, 6]), np.array([5, 5, 4])
METRIC = ji.patching.logit_difference(CORRECT, WRONG, POSITION)
attribute = functools.partial(ji.attribution.attribution_patching, progress=False)
here = functools.partial(attribute, MODEL, PARAMS, base=BASE, source=SOURCE, metric=METRIC)
SITES = ("resid_pre", "attn.z", "attn.k", "attn.pattern", "mlp.post", "embed")


@pytest.fixture(scope="module")
def several():
    return here(sites=SITES, keep=("prompts",))


@functools.cache
def moved(site, axes):
    """m(t, one, layer, indices): metric [B] with t times (source - base) added at one cell, by plain indexing."""
    acts = jax.jit(lambda t: ji.run(MODEL.forward, ji.capture(site))(PARAMS, t)[1][site])
    difference = acts(SOURCE) - acts(BASE)

    @jax.jit
    def metric(t, layer, indices):
        def change(value, data):
            t, indices = data
            here = difference if layer is None else difference[layer]
            chosen = jnp.ones((1,) * value.ndim, bool)
            for axis, i in zip(axes, indices, strict=True):
                shape = [-1 if k == axis else 1 for k in range(value.ndim)]
                chosen = chosen & (jnp.arange(value.shape[axis]) == i).reshape(shape)
            return value + t * jnp.where(chosen, here, 0.0)

        edit = ji.edit(site, change, (t, indices), layer=layer)
        logits = ji.run(MODEL.forward, edit)(PARAMS, BASE)[0][np.arange(3), POSITION]
        return logits[np.arange(3), CORRECT] - logits[np.arange(3), WRONG]

    return metric


def test_scores_are_directional_derivatives(several):
    """Forward mode at every cell; and central differences, extrapolated to step 0, at the strongest."""
    got = several["attn.k"].score_by_prompt
    metric = moved("attn.k", (2, 1))
    slope = jax.jit(lambda layer, indices: jax.jvp(lambda t: metric(t, layer, indices), (0.0,), (1.0,))[1])
    cells = list(itertools.product(range(3), range(got.sizes["head"]), range(6)))
    want = np.array([slope(jnp.int32(layer), (jnp.int32(h), jnp.int32(p))) for layer, h, p in cells])
    check_close(got.values, want.reshape(got.shape))
    best = int(np.argmax(np.abs(want).sum(-1)))
    layer, *indices = map(jnp.int32, cells[best])
    difference = lambda h: (
        np.asarray(metric(h, layer, tuple(indices)) - metric(-h, layer, tuple(indices)), np.float64) / (2 * h)
    )
    check_close((4 * difference(0.01) - difference(0.02)) / 3, want[best], 2e-3)


def test_axes_and_labels_are_those_of_a_sweep(several):
    dims = {site: several[site].score.dims for site in SITES}
    by_head = ("layer", "head", "position")
    assert dims == {
        "resid_pre": ("layer", "position"), "attn.z": by_head, "attn.k": by_head, "attn.pattern": by_head,
        "mlp.post": ("layer", "position"), "embed": ("position",),
    }  # fmt: skip
    over = {"layer": [2], "head": [1]}
    how = dict(base=BASE, source=SOURCE, metric=METRIC, progress=False)
    swept = ji.patching.sweep(MODEL, PARAMS, site="attn.k", over=over, **how)
    chosen = here(sites=SITES, over={"layer": [2], "head": [1, 0], "position": None})
    assert chosen["attn.z"]["head"].values.tolist() == [1, 0]
    check_close(chosen["attn.z"].score.values, several["attn.z"].score.sel(layer=[2], head=[1, 0]).values)
    part = several["attn.k"].sel(over)
    assert part.score.sum("position").dims == swept.effect.dims
    check_close([part.base, part.source], [swept.base, swept.source])
    check_close(part.normalized.values, part.score.values / float(swept.source - swept.base), 1e-4)


def test_what_is_left_out_is_summed_over(several):
    roles = {"name": np.array([1, 2, 0]), "end": POSITION}
    got = here(sites=("attn.z", "mlp.post"), over="role,feature", roles=roles)
    for site in ("attn.z", "mlp.post"):
        by_prompt = several[site].score_by_prompt
        want = by_prompt.sum([axis for axis in by_prompt.dims if axis not in ("position", "prompt")]).values
        check_close(got[site].score.sum("feature").values, [want[p, np.arange(3)].mean() for p in roles.values()])
    assert got["attn.z"]["role"].values.tolist() == ["name", "end"]
    check_close(several["embed"].score.values, several["resid_pre"].score.values[0])


def test_blocks_of_places_are_the_sum_of_their_places(several):
    got = here(sites="attn.z", over={"layer": [0, (1, 2), 2]}, keep=("prompts",))["attn.z"].score_by_prompt
    by_layer = several["attn.z"].score_by_prompt.sum(("head", "position")).values
    check_close(got.values, [by_layer[0], by_layer[1] + by_layer[2], by_layer[2]])


@pytest.mark.usefixtures("bfloat16_products")
def test_bfloat16_activations_of_float32_parameters():
    model = ji.Model(config=dataclasses.replace(MODEL.config, compute_dtype="bfloat16"))
    of = lambda dtype: jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype(dtype), PARAMS)
    how = dict(base=BASE, source=SOURCE, metric=METRIC, sites=("resid_pre", "attn.z"), keep=("prompts",))
    got, want = attribute(model, of("float32"), **how), attribute(MODEL, of("bfloat16"), **how)
    for site in how["sites"]:
        check_close(got[site].score_by_prompt.values, want[site].score_by_prompt.values)


def test_a_linear_model_is_attributed_exactly():
    weights = jax.random.normal(jax.random.key(0), (2, 5, 5))

    def linear(weights, tokens, *, tap):
        x = jax.nn.one_hot(tokens, 5)
        for i in range(2):
            x = tap.at(layer=i, n_layers=2)("hidden", jnp.cumsum(x, 1) @ weights[i])
        return x

    base, source = jnp.array([[0, 1, 2], [1, 1, 4]]), jnp.array([[3, 1, 4], [0, 2, 2]])
    metric = ji.patching.logit_difference([0, 1], [1, 3], [2, 1])
    how = dict(base=base, source=source, metric=metric)
    got = attribute(linear, weights, sites="hidden", over="layer,position", **how)
    want = ji.patching.sweep(linear, weights, site="hidden", over="layer,position", progress=False, **how)
    check_close(got["hidden"].score.values, want.effect.values)
    check_close(got["hidden"].normalized.values, want.normalized.values)
    assert got.saturation is None


def test_padding_changes_no_score_and_one_compile_serves(several, count_compiles):
    def padded(left, short=6, position=POSITION):
        pad = lambda t: np.pad(t, ((0, 0), (left, 2 - left)))
        mask = pad(np.arange(6) < np.array([[6], [short], [6]]))
        metric = ji.patching.logit_difference(CORRECT, WRONG, position)
        return here(
            base=pad(BASE),
            source=pad(SOURCE),
            mask=mask,
            metric=metric,
            sites=("attn.z", "resid_pre"),
            keep=("prompts",),
        )

    with count_compiles() as first:
        runs = [padded(0)]
    assert first.count("products") > 0
    with count_compiles() as again:
        runs.append(padded(2))
        short = padded(0, 4, np.array([5, 3, 4]))["resid_pre"]
    assert again.count("products") == again.count("_largest") == 0
    for got, site in itertools.product(runs, ("attn.z", "resid_pre")):
        check_close(got[site].score.values[..., :6], several[site].score.values)
        assert np.isnan(got[site].score.values[..., 6:]).all()
    assert np.isnan(short.score_by_prompt.values[:, 4:, 1]).all()
    check_close(short.score.values[:, 4], short.score_by_prompt.values[:, 4, [0, 2]].mean(-1))


class Tokens:
    bos_id = 0

    def str_tokens(self, ids):
        return [f"t{i}" for i in ids]


def test_the_result_is_labelled_printed_and_written(tmp_path):
    import xarray as xr

    got = here(sites=SITES, tokenizer=Tokens(), provenance={"model": "tiny", "gated": False})
    assert got["attn.z"].token.values.tolist() == [f"t{i}" for i in BASE[0].tolist()]
    assert got["attn.z"].attrs["model"] == "tiny" and got["attn.z"].attrs["prepend_bos"] in (0, 1)
    assert "attn.z: 3 layers x 4 heads x 6 positions" in str(got) and "saturated" in str(got)
    got["attn.z"].to_netcdf(tmp_path / "scores.nc", engine="h5netcdf")
    back = xr.load_dataset(tmp_path / "scores.nc", engine="h5netcdf")
    np.testing.assert_array_equal(back.score.values, got["attn.z"].score.values)
    assert back.attrs["gated"] == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sites": "attn.zz"}, ji.UnvisitedSiteError, "Did you mean 'attn.z'"),
        ({"sites": ()}, ji.InputError, "at least one"),
        ({"sites": ("attn.z", "attn.z")}, ji.InputError, "each site once"),
        ({"over": "layer,heads"}, ji.InputError, "Legal: layer, head"),
        ({"over": "position,role"}, ji.InputError, "both position and role"),
        ({"sites": "mlp.out", "over": "layer,head"}, ji.InputError, "no site of mlp.out has the axis head"),
        ({"sites": ("attn.z", "embed"), "over": "layer,head"}, ji.InputError, "embed has none of the axes"),
        ({"over": {"layer": [3]}}, ji.SiteIndexError, "legal are 0 to 2"),
        ({"metric": {"a": METRIC}}, ji.InputError, "give one metric"),
        ({"base": jnp.zeros((3, 5), jnp.int32)}, ji.InputError, "base has shape"),
        ({"base": [[0.5] * 6] * 3}, ji.InputError, "token ids"),
        ({"base": jnp.full((3, 6), 11)}, ji.TokenError, "outside the vocabulary"),
        ({"metric": ji.patching.logit_difference(CORRECT, WRONG, [6, 5, 5])}, ji.InputError, "outside prompts \\[0\\]"),
        ({"keep": ("logits",)}, ji.InputError, "legal is 'prompts'"),
        ({"audit": -1}, ji.InputError, "audit=-1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        here(**change)
