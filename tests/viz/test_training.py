"""The curves of a training run: what is drawn, and what cannot be."""

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.viz import plot_training

ROWS = [
    {"step": 10 * (i + 1), "loss": [1.0 / (i + 1), 2.0], "fvu": [0.5, 0.25 / (i + 1)], "l0": [4.0, 8.0], "dead": [0.0, 0.1 * i]}
    for i in range(3)
]  # fmt: skip


def test_each_panel_has_a_line_for_each_dictionary():
    loss, fvu, l0, dead = plot_training(ROWS, labels=["k = 4", "k = $8$"], size="stories").axes
    assert [line.get_label() for line in loss.lines] == ["k = 4", r"k = \$8\$"] and loss.get_yscale() == "log"
    np.testing.assert_allclose(fvu.lines[1].get_xydata(), [[10, 0.25], [20, 0.125], [30, 0.25 / 3]])
    np.testing.assert_allclose(dead.lines[1].get_ydata(), [0.0, 0.1, 0.2])
    assert l0.get_ylim()[0] == 0 and dead.get_xlabel() == "step"


def test_one_dictionary_and_a_loss_below_zero():
    one = [{name: value if name == "step" else value[0] for name, value in row.items()} for row in ROWS]
    loss, *_ = plot_training([row | {"loss": -row["loss"]} for row in one]).axes
    assert loss.get_yscale() == "linear" and loss.get_ylim()[0] <= -1.0 and len(loss.lines) == 1


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(ji.InputError, match="no row of metrics"):
        plot_training([])
    with pytest.raises(ji.InputError, match="1 labels for 2 dictionaries"):
        plot_training(ROWS, labels=["one"])
