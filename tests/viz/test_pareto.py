"""The plot of error against sparsity: what is drawn, and what cannot be."""

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.viz import plot_pareto

ROWS = [{"l0": 8.0, "fvu": 0.1}, {"l0": 2.0, "fvu": 0.4}]


def test_lines_hold_the_points_in_the_order_of_l0():
    axes = plot_pareto({"TopK": ROWS, "L1 $5$": ROWS[:1]}, control={"random": ROWS}, size="M = 256").axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert list(lines) == ["random", "TopK", r"L1 \$5\$"]
    np.testing.assert_allclose(lines["TopK"], [[2.0, 0.4], [8.0, 0.1]])
    assert axes.get_title("left") == "M = 256" and axes.get_ylim()[0] == 0


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(ji.InputError, match="0 families"):
        plot_pareto({})
    with pytest.raises(ji.InputError, match="'L1' has the points"):
        plot_pareto({"L1": [{"l0": 3.0, "fvu": float("nan")}]})
