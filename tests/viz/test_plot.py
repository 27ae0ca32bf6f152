import io
import subprocess
import sys

import numpy as np
import pytest

from jaxinterp.viz import plot

TOKENS = ["<s>", "One", " day", ",", " Lily", " $5", "\n", "猫"]


def mesh(axes):
    (found,) = [c for c in axes.collections if type(c).__name__ == "QuadMesh"]
    return found


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def all_text(figure):
    import matplotlib.text

    return [t.get_text() for t in figure.findobj(matplotlib.text.Text)]


def test_heads_show_their_values_on_a_scale_that_is_centered_on_zero(make_effects):
    effects = make_effects(("layer", "head"), (5, 8))
    figure = plot(effects)
    axes, bar = figure.axes
    drawn = mesh(axes)
    np.testing.assert_allclose(np.asarray(drawn.get_array()).reshape(5, 8), effects["normalized"].values)
    low, high = drawn.get_clim()
    assert low == -high and high == pytest.approx(np.abs(effects["normalized"].values).max())
    assert bar.get_ylabel() == "fraction of the gap to the source"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head", "layer")
    assert labels(axes.get_xticklabels()) == [str(i) for i in range(8)]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # layer 0 is on top


def test_zero_is_the_paper_color_and_the_signs_are_apart(make_effects):
    effects = make_effects(("layer", "head"), (1, 3))
    effects["normalized"].values[:] = [[-1.0, 0.0, 1.0]]
    drawn = mesh(plot(effects).axes[0])
    blue, paper, red = drawn.to_rgba(np.array([-1.0, 0.0, 1.0]))[:, :3]
    assert tuple(drawn.get_clim()) == (-1.0, 1.0)
    assert paper.min() > 0.93
    assert blue[2] > blue[0] + 0.2 and red[0] > red[2] + 0.2


def test_the_title_names_metric_site_prompts_and_baselines(make_effects):
    text = all_text(plot(make_effects(("layer", "head"), (2, 2))))
    assert "Logit difference after patching attn.z\n " in text
    assert "8 prompts   base −2.00 logits  →  source 3.00 logits" in text


def test_positions_carry_tokens_whatever_they_are(make_effects):
    figure = plot(make_effects(("layer", "position"), (3, 8), tokens=TOKENS))
    axes = figure.axes[0]
    assert labels(axes.get_xticklabels()) == [
        "<s> 0", "One 1", "·day 2", ", 3", "·Lily 4", r"·\$5 5", "⏎ 6", r"\u732b 7",
    ]  # fmt: skip
    figure.savefig(io.BytesIO(), format="png")  # a missing glyph or a stray $ would warn, and a warning is an error


def test_roles_and_raw_effects(make_effects):
    effects = make_effects(("layer", "role"), (3, 2), roles=["name", "end"])
    figure = plot(effects, value="effect")
    assert labels(figure.axes[0].get_xticklabels()) == ["name", "end"]
    assert figure.axes[1].get_ylabel() == "logits"
    np.testing.assert_allclose(np.asarray(mesh(figure.axes[0]).get_array()).ravel(), effects["effect"].values.ravel())


def test_one_axis_is_drawn_as_bars_with_the_single_prompts(make_effects):
    effects = make_effects(("layer",), (6,), by_prompt=5)
    axes = plot(effects).axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], effects["normalized"].values, rtol=1e-6)
    (dots,) = axes.collections
    np.testing.assert_allclose(
        np.asarray(dots.get_offsets())[:, 1].reshape(6, 5), effects["effect_by_prompt"].values / 5.0, rtol=1e-6
    )
    assert axes.get_ylabel() == "fraction of the gap to the source"


def test_three_axes_share_one_scale(make_effects):
    effects = make_effects(("layer", "head", "position"), (5, 2, 3))
    shown = [axes for axes in plot(effects).axes if axes.get_visible() and axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in shown] == [f"layer {i}" for i in range(5)]
    assert len({mesh(axes).get_clim() for axes in shown}) == 1


def test_undefined_cells_are_masked_and_a_flat_result_still_draws(make_effects):
    effects = make_effects(("layer", "head"), (2, 2))
    effects["normalized"].values[0, 0] = np.nan
    assert np.ma.getmaskarray(mesh(plot(effects).axes[0]).get_array()).sum() == 1
    effects["normalized"].values[:] = 0.0
    assert mesh(plot(effects).axes[0]).get_clim() == (-1.0, 1.0)


def polygons(axes):
    return [c for c in axes.collections if type(c).__name__ == "PolyCollection"]


def test_cells_inside_the_null_are_small_and_the_color_bar_is_narrow_over_its_range(make_effects):
    effects = make_effects(("layer", "head"), (4, 5), draws=6)
    limit = np.abs(effects["null"].values).max()
    inside = np.abs(effects["effect"].values) <= limit
    assert 0 < inside.sum() < 20
    figure = plot(effects, value="effect")
    axes, bar = figure.axes
    cover, small = polygons(axes)
    assert len(cover.get_paths()) == len(small.get_paths()) == inside.sum()
    centers = {tuple(np.rint(path.vertices[:4].mean(0)).astype(int)) for path in small.get_paths()}
    assert centers == {(c, r) for r, c in np.argwhere(inside)}
    assert np.ptp(small.get_paths()[0].vertices[:, 0]) == pytest.approx(0.5)
    assert len(axes.texts) == (~inside).sum()  # small cells have no number
    ends = sorted(line.get_ydata()[0] for line in bar.lines if len(line.get_ydata()) == 2)
    assert ends == pytest.approx([-limit, limit])
    note = "the largest of 6 draws over all 20 cells"
    assert any(note in text for text in all_text(figure)) and "null" in all_text(figure)
    assert not polygons(plot(effects.drop_vars("null")).axes[0])


def test_bars_have_the_null_as_a_band_and_intervals_as_lines(make_effects):
    effects = make_effects(("layer",), (6,), draws=4, interval=True)
    effects["effect"].values[0] = 0.0
    effects["normalized"].values[0] = 0.0
    limit = np.abs(effects["null"].values).max()
    axes = plot(effects, value="effect").axes[0]
    bars, band = axes.patches[:6], axes.patches[6]
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((-limit, limit))
    narrow = [bar.get_width() < 0.5 for bar in bars]
    assert narrow == (np.abs(effects["effect"].values) <= limit).tolist() and narrow[0]
    vertical = axes.collections[3].get_segments()  # over the light edge
    np.testing.assert_allclose([s[0][1] for s in vertical], effects["low"].values, rtol=1e-6)
    np.testing.assert_allclose([s[1][1] for s in vertical], effects["high"].values, rtol=1e-6)
    low, high = axes.get_ylim()
    assert low < min(-limit, effects["low"].values.min()) and high > max(limit, effects["high"].values.max())


def test_sites_are_bars_one_under_the_other(make_effects):
    figure = plot(make_effects(("site", "layer"), (3, 4), sites=["resid_pre", "attn.out", "mlp.out"], draws=2))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["resid_pre", "attn.out", "mlp.out"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_nothing_is_clipped(make_effects):
    for dims, shape, more in (
        (("layer", "head"), (2, 2), {}),
        (("layer", "head"), (48, 40), {}),
        (("layer", "position"), (3, 8), {"tokens": TOKENS}),
        (("layer", "position"), (6, 8), {"tokens": ["<|endoftext|>", *TOKENS[1:]]}),
        (("position",), (8,), {"tokens": TOKENS}),
        (("layer", "head", "position"), (5, 4, 8), {"tokens": TOKENS}),
        (("layer", "role"), (12, 1), {"roles": ["name"]}),
        (("layer", "head"), (3, 3), {"draws": 2}),
        (("cell",), (9,), {"draws": 2, "interval": True, "listed": {"layer": ["3+0"] * 9, "head": ["2+1"] * 9}}),
        (("site", "layer"), (2, 9), {"draws": 2, "sites": ["resid_pre", "mlp.out"]}),
    ):
        figure = plot(make_effects(dims, shape, **more))
        figure.savefig(io.BytesIO(), format="png")  # runs the layout
        drawn, page = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn.x0 > -0.05 and drawn.y0 > -0.05, dims
        assert drawn.x1 < page[0] + 0.05 and drawn.y1 < page[1] + 0.05, dims


def test_a_figure_leaves_the_users_settings_and_pyplot_alone(make_effects):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figure = plot(make_effects(("layer", "head"), (2, 2)))
    assert dict(mpl.rcParams) == before
    assert figure._repr_png_()[:4] == b"\x89PNG"
    code = (
        "import sys, numpy as np, xarray as xr, jaxinterp.viz as viz\n"
        "viz.plot(xr.Dataset({'effect': ('layer', np.ones(2))}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
