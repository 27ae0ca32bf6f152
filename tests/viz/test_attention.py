import numpy as np
import pytest

from jaxinterp import InputError
from jaxinterp.viz import attention

TOKENS = ["Once", " upon", " a", " time"]


def causal(heads):
    weights = np.tril(np.random.default_rng(0).uniform(0.1, 1, size=(heads, 4, 4)))
    return weights / weights.sum(-1, keepdims=True)


def test_each_head_is_a_square_of_its_probabilities_with_tokens_on_both_sides():
    pattern = causal(2)
    figure = attention(pattern, TOKENS, titles=["L0.H1", "L2.H3"])
    first, second, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["L0.H1", "L2.H3"]
    np.testing.assert_allclose(np.asarray(second.collections[0].get_array()).reshape(4, 4), pattern[1])
    assert second.collections[0].get_clim() == (0, 1)
    for ticks in (first.get_xticklabels(), first.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["Once", "·upon", "·a", "·time"]
    assert bar.get_ylabel() == "attention probability"


def test_a_single_pattern_and_a_mapping():
    pattern = causal(1)[0]
    assert attention(pattern, TOKENS).axes[0].get_title(loc="left") == "head 0"
    assert attention({"L1.H0": pattern}, TOKENS).axes[0].get_title(loc="left") == "L1.H0"


@pytest.mark.parametrize(
    ("pattern", "tokens", "titles", "message"),
    [
        (causal(2), TOKENS[:3], None, "there are 3 tokens"),
        (causal(2)[None], TOKENS, None, "choose a layer and an example first"),
        (causal(17), TOKENS, None, "1 to 16"),
        (causal(2), TOKENS, ["a"], "1 titles for 2 heads"),
        (causal(1) * 7, TOKENS, None, "not 'attn.scores'"),
        ({"a": causal(1)[0]}, TOKENS, ["a"], "given twice"),
    ],
)
def test_what_does_not_fit_is_said(pattern, tokens, titles, message):
    with pytest.raises(InputError, match=message):
        attention(pattern, tokens, titles=titles)
