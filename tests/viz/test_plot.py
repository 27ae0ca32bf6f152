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


def test_nothing_is_clipped(make_effects):
    for dims, shape, more in (
        (("layer", "head"), (2, 2), {}),
        (("layer", "head"), (48, 40), {}),
        (("layer", "position"), (3, 8), {"tokens": TOKENS}),
        (("layer", "position"), (6, 8), {"tokens": ["<|endoftext|>", *TOKENS[1:]]}),
        (("position",), (8,), {"tokens": TOKENS}),
        (("layer", "head", "position"), (5, 4, 8), {"tokens": TOKENS}),
        (("layer", "role"), (12, 1), {"roles": ["name"]}),
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
