import math

import numpy as np
import pytest

from jaxinterp import InputError
from jaxinterp.viz import ranked
from jaxinterp.viz._labels import aligned, number, visible, words
from jaxinterp.viz._views import view


def test_layers_go_down_and_what_is_swept_within_them_across(make_effects):
    effects = make_effects(("position", "layer"), (4, 3), tokens=["<s>", " Lily", " ran", "."])
    panel = view(effects).panels[0]
    assert (panel.row_axis, panel.column_axis) == ("layer", "position")
    assert panel.columns == ("<s> 0", "·Lily 1", "·ran 2", ". 3")
    np.testing.assert_allclose(panel.values, effects["normalized"].values.T)
    assert panel.cells[2][1] == "L2 ·Lily@1"
    assert {row.cell for row in ranked(effects, k=12)} == {name for line in panel.cells for name in line}


def test_three_axes_give_one_panel_for_each_layer(make_effects):
    effects = make_effects(("layer", "head", "position"), (2, 3, 4))
    panels = view(effects, value="effect").panels
    assert [panel.title for panel in panels] == ["layer 0", "layer 1"]
    np.testing.assert_array_equal(panels[1].values, effects["effect"].values[1])
    assert panels[1].cells[2][3] == "L1.H2 @3"


def test_coordinates_and_not_counts_name_a_subset(make_effects):
    effects = make_effects(("layer", "head"), (2, 2)).assign_coords(layer=[7, 9], head=[1, 4])
    panel = view(effects).panels[0]
    assert panel.rows == ("7", "9") and panel.columns == ("1", "4")
    assert panel.cells == (("L7.H1", "L7.H4"), ("L9.H1", "L9.H4"))


def test_the_metric_is_chosen_by_name_and_a_misspelt_one_is_an_error(make_effects):
    effects = make_effects(("layer", "head"), (2, 2), metrics=["logit difference", "KL divergence"])
    assert view(effects).metric == "logit difference"
    chosen = view(effects, metric="KL divergence", value="effect")
    assert chosen.unit == "nats"
    np.testing.assert_array_equal(chosen.panels[0].values, effects["effect"].values[1])
    with pytest.raises(InputError, match="Did you mean 'KL divergence'"):
        view(effects, metric="KL divergance")


def test_where_normalization_is_undefined_the_raw_effect_is_shown(make_effects):
    effects = make_effects(("layer", "head"), (2, 2), base=1.0, source=1.0)
    assert view(effects).value == "effect"
    assert view(effects).unit == "logits"


def test_four_axes_and_other_datasets_are_errors_that_say_what_to_do(make_effects):
    effects = make_effects(("layer", "head", "position"), (2, 2, 2)).expand_dims(role=["name"])
    with pytest.raises(InputError, match=r"effects\.sel\(layer=0\)"):
        view(effects)
    with pytest.raises(InputError, match="not the result of a sweep"):
        view(effects.drop_vars("effect"))


def test_the_ranking_is_by_absolute_effect_and_counts_signs(make_effects):
    effects = make_effects(("layer", "head"), (3, 4), by_prompt=6)
    effects["effect"].values[1, 2] = -9.0
    effects["effect_by_prompt"].values[1, 2] = [-9, -9, -9, -9, -9, 1]
    rows = ranked(effects, k=3)
    assert rows[0].cell == "L1.H2" and rows[0].where == {"layer": 1, "head": 2} and rows[0].effect == -9.0
    assert (rows[0].agreement, rows[0].n_prompts) == (5, 6)
    sizes = [abs(row.effect) for row in rows]
    assert sizes == sorted(sizes, reverse=True) and len(rows) == 3


def test_undefined_effects_come_last(make_effects):
    effects = make_effects(("layer",), (3,))
    effects["effect"].values[:] = [math.nan, 0.5, -1.0]
    assert [row.cell for row in ranked(effects)] == ["L2", "L1", "L0"]


def test_numbers_and_tokens_as_a_person_reads_them():
    assert [number(v) for v in (0.0, -2.913, 0.0123, math.nan, 12345.0)] == [
        "0",
        "−2.91",
        "0.0123",
        "undefined",
        "1.23e+04",
    ]
    assert [aligned(v) for v in (-0.0001, -1.5)] == ["0.000", "−1.500"]
    assert visible(" a\n") == "·a⏎"
    assert words("logit_difference") == "Logit difference"


def test_of_very_many_cells_the_largest_are_shown(make_effects):
    effects = make_effects(("layer", "position"), (120, 120), by_prompt=2)
    shown = view(effects)
    (panel,) = shown.panels
    assert panel.is_bars and panel.values.shape == (1, 40) and "the 40 largest of 14,400 cells" in shown.subtitle
    assert panel.columns == tuple(row.cell for row in ranked(effects, k=40))
    np.testing.assert_allclose(panel.by_prompt[0, 0], effects["effect_by_prompt"].values.reshape(-1, 2)[
        np.abs(effects["effect"].values).argmax()], rtol=1e-6)  # fmt: skip


def test_tokens_of_one_of_several_prompts_are_said_to_be_that(make_effects):
    effects = make_effects(("layer", "position"), (2, 2), tokens=["a", " b"])
    assert "tokens of the longest prompt" in view(effects).subtitle
    effects.attrs["n_prompts"] = 1
    assert "first prompt" not in view(effects).subtitle


def test_a_position_that_only_some_prompts_have_keeps_its_own_scale(make_effects):
    effects = make_effects(("position",), (3,), by_prompt=4)
    effects["normalized"].values[2] = 2 * effects["effect"].values[2]  # not the gap of the means, 1/5
    panel = view(effects).panels[0]
    np.testing.assert_allclose(panel.per_unit[0], [0.2, 0.2, 2.0], rtol=1e-5)


def test_a_cell_is_inside_the_null_up_to_the_largest_of_all_draws_and_cells(make_effects):
    effects = make_effects(("layer", "head"), (2, 2), draws=3)
    effects["null"].values[:] = 0.1
    effects["null"].values[2, 1, 0] = -0.75  # one draw of one cell is the bound of all
    effects["effect"].values[:] = [[0.75, -0.76], [0.0, np.nan]]
    effects["normalized"].values[:] = effects["effect"].values / 5
    for value in ("effect", "normalized"):
        shown = view(effects, value=value)
        assert shown.inside(shown.panels[0]).tolist() == [[True, False], [True, False]]
        assert shown.null.draws == 3 and shown.null.n_cells == 4 and shown.null.limit == 0.75
        assert shown.null.shown == pytest.approx(0.75 if value == "effect" else 0.15)
    assert [row.outside_null for row in ranked(effects)] == [True, False, False, False]
    assert ranked(make_effects(("layer",), (1,)))[0].outside_null is None


def test_intervals_are_scaled_as_effects_are_whichever_way_the_metric_goes(make_effects):
    effects = make_effects(("layer",), (3,), interval=True, base=3.0, source=-2.0)
    panel = view(effects).panels[0]
    low, high = panel.interval
    np.testing.assert_allclose(low[0], effects["high"].values / -5, rtol=1e-5)
    np.testing.assert_allclose(high[0], effects["low"].values / -5, rtol=1e-5)
    row = ranked(effects)[0]
    assert (row.low, row.high) == pytest.approx((row.effect - 0.25, row.effect + 0.5))


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ({"layer": [3, 0], "head": [2, 1]}, ["L3.H2", "L0.H1"]),
        ({"layer": ["3+0", "1"], "head": ["2+1", "all"]}, ["L3.H2 + L0.H1", "L1"]),
        ({"site": ["attn.z+mlp.out", "attn.z"], "layer": ["3+0", "1"]}, ["attn.z L3 + mlp.out L0", "attn.z L1"]),
        ({"site": ["attn.z", "attn.z"], "layer": ["0-2", "1,3"], "position": [4, 5]}, ["L0-2 @4", "L1,3 @5"]),
        ({"layer": [1, 2], "role": ["a+b", "end"]}, ["L1 a+b", "L2 end"]),
        ({}, ["cell 0", "cell 1"]),
    ],
)
def test_listed_cells_are_named_by_what_they_are(make_effects, listed, names):
    effects = make_effects(("cell",), (2,), listed=listed)
    panel = view(effects).panels[0]
    assert panel.is_bars and list(panel.columns) == names and list(panel.cells[0]) == names
    assert sorted(row.cell for row in ranked(effects)) == sorted(names)
    assert ranked(effects)[0].where.keys() == {"cell", *listed}


def test_several_sites_are_panels_whatever_else_there_is(make_effects):
    sites = ["resid_pre", "mlp.out"]
    assert [p.title for p in view(make_effects(("site", "layer"), (2, 3), sites=sites)).panels] == sites
    three = view(make_effects(("site", "layer", "position"), (2, 3, 4), sites=sites))
    assert [p.title for p in three.panels] == sites and three.base == -2.0
    assert three.panels[1].cells[2][3] == "mlp.out L2 @3"
    with pytest.raises(InputError, match=r"effects\.sel\(site='resid_pre'\), or take the mean"):
        view(make_effects(("site", "layer", "head", "position"), (2, 2, 2, 2), sites=sites))
    with pytest.raises(InputError, match="axis 'layer' is empty"):
        view(make_effects(("layer", "head"), (2, 2)).isel(layer=[]))


def test_more_than_can_be_told_apart_becomes_the_largest_with_the_null_of_all(make_effects):
    effects = make_effects(("cell",), (90,), draws=2, interval=True, listed={"layer": range(90)})
    effects["effect"].values[:] /= 100
    effects["effect"].values[7] = 5.0
    effects["null"].values[0, 80] = 3.0  # of a cell that is not among the largest
    shown = view(effects)
    (panel,) = shown.panels
    assert panel.columns[0] == "L7" and panel.values.shape == (1, 40) and panel.null.shape == (1, 40, 2)
    assert shown.null.limit == 3.0 and shown.inside(panel).tolist() == [[False] + [True] * 39]
    assert view(make_effects(("layer", "position"), (2, 600))).note == "the 40 largest of 1,200 cells"


def test_a_sweep_as_it_comes_is_drawn(tmp_path):
    import jaxinterp as ji
    from tests.tiny import make_model, make_params, make_tokens

    model = make_model()
    params, base, source = make_params(model), make_tokens(4, 5), make_tokens(4, 5, seed=1)
    common = dict(
        base=base, source=source, metric=ji.patching.logit_difference([1] * 4, [2] * 4, [4] * 4), progress=False
    )
    given = common | dict(null="prompts", draws=2, keep=("prompts", "interval"))
    for over, site in (
        ([{"layer": 1, "head": 2}, [{"layer": 0}, {"layer": 2, "head": 3}]], "attn.z"),
        ({"layer": [(0, 1), (2,)], "position": None}, ["resid_pre", "mlp.out"]),
    ):  # fmt: skip
        effects = ji.patching.sweep(model, params, site=site, over=over, **given)
        shown = view(effects)
        assert shown.null.draws == 2 and all(p.by_prompt is not None and p.interval is not None for p in shown.panels)
        ji.viz.plot(effects)
        assert ji.viz.sweep_page(effects, tmp_path / "a.html").is_file()
