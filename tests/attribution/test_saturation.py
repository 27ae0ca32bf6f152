"""Saturated attention by counting, a compiled program that must be flagged, and a soft model that must not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.attribution._saturation import warn_if_saturated
from tests.models.tracr import read_program
from tests.tiny import make_model, make_params, make_tokens

attribute = functools.partial(ji.attribution.attribution_patching, progress=False, sites="attn.z")


def test_shares_by_counting_rows_and_a_soft_model_is_not_flagged():
    model = make_model(n_layers=2)
    params = make_params(model)
    attn = params["blocks"][0]["attn"]
    attn["W_Q"], attn["W_K"] = attn["W_Q"] * 3, attn["W_K"] * 3
    tokens = make_tokens(3, 6)
    mask = jnp.array([[True] * 6, [False, False, True, True, True, True], [True, True, False, False, False, False]])
    got = ji.attribution.saturation(model, params, tokens, mask=mask).values
    forward = ji.run(model.forward, ji.capture("attn.pattern"))
    pattern = np.asarray(forward(params, tokens, mask=mask)[1]["attn.pattern"])
    want = np.zeros((2, 4))
    for layer in range(2):
        for head in range(4):
            rows = []
            for b in range(3):
                for seen, row in enumerate(np.flatnonzero(np.asarray(mask[b]))):
                    if seen:  # the first real row sees itself alone
                        rows.append(pattern[layer, b, head, row].max() > ji.attribution.SATURATED)
            want[layer, head] = np.mean(rows)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert want.max() > 0 and want.min() < 0.9

    attn["W_Q"], attn["b_Q"] = (
        attn["W_Q"] * 0.01,
        attn["b_Q"] * 0.01,
    )  # a soft model is not flagged: warnings are errors here
    soft = ji.attribution.saturation(model, params, tokens, mask=mask)
    assert float(soft.max()) == 0.0
    warn_if_saturated(soft, 1)
    alone = ji.attribution.saturation(model, params, tokens, mask=jax.nn.one_hot(jnp.argmax(mask, 1), 6) > 0)
    assert np.isnan(alone.values).all()  # rows that see one key


def test_a_compiled_program_is_flagged(shared):
    program = read_program(shared / "tracr", "reverse")
    rows = [case["input_ids"] for case in program.about["cases"]]
    rows = [row for row in rows if len(row) == max(map(len, rows))]
    base, source = jnp.array(rows[:2], jnp.int32), jnp.array(rows[2:4], jnp.int32)
    metric = ji.patching.logit_difference([0, 0], [1, 1], [2, 2])
    with pytest.warns(UserWarning, match=r"saturated.*in 1 of 4 heads: 3\.0 \(100 %\)"):
        got = attribute(program.model, program.params, base=base, source=source, metric=metric)
    assert got.saturation.values[3, 0] == 1.0


def test_a_function_without_scores_is_refused():
    with pytest.raises(ji.UnvisitedSiteError, match="attn.scores"):
        ji.attribution.saturation(lambda p, t, *, tap: tap("x", t), None, jnp.array([[1]]))
