import dataclasses
import math

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import InputError, tasks
from jaxinterp.audit import Interval, Share, attention_to_difference, study_heads
from jaxinterp.audit._study import both_directions


@pytest.fixture(scope="module")
def study(lm):
    search = tasks.pronouns(jax.random.key(0), 8, lm.tokenizer, templates="train")
    held_out = tasks.pronouns(jax.random.key(1), 8, lm.tokenizer, templates="held_out")
    return study_heads(lm.model, lm.params, search=search, held_out=held_out, n_random=12, progress=False)


def test_the_head_that_carries_the_pronoun_is_found_and_stands_the_test(study):
    assert study.heads[0] == (4, 2)
    assert study.found and study.verdict.startswith("Found.")
    assert study.flipped.fraction > study.control.max() and len(study.control) == 12
    assert study.flipped.count == study.turned.sum() == sum(s.count for s in study.flipped_by_direction)
    assert study.says.count == study.flipped.total
    assert study.search[len(study.heads) - 1].count >= 0.9 * max(s.count for s in study.search)
    assert float(study.effects["effect"].sel(layer=4, head=2)) == float(study.effects["effect"].max())


def test_a_head_that_looks_and_does_nothing_is_told_from_one_that_does(study):
    one = study.idle
    assert one is not None and (one.layer, one.head) not in study.heads
    assert study.attention[one.layer, one.head] >= 0.3
    assert one.effect.low <= one.effect.estimate <= one.effect.high and abs(one.effect.estimate) <= 0.05
    normalized = study.effects["normalized"].sel(layer=one.layer, head=one.head)
    assert one.effect.estimate == pytest.approx(float(normalized), abs=1e-4)


def test_attention_to_the_difference_is_read_off_the_pattern(lm, pairs):
    got = np.asarray(attention_to_difference(lm.model, lm.params, pairs))
    for b, length in enumerate(pairs.lengths):
        acts = ji.run(lm.model.forward, ji.capture("attn.pattern"))(lm.params, pairs.clean[b : b + 1, :length])[1]
        there = np.flatnonzero(pairs.differs()[b])
        expected = np.asarray(acts["attn.pattern"])[:, 0, :, -1, there].sum(axis=0)
        np.testing.assert_allclose(got[:, :, b], expected, atol=1e-5)


def test_both_directions_doubles_and_exchanges(pairs):
    both = both_directions(pairs)
    assert len(both) == 8
    np.testing.assert_array_equal(both.clean[4:], pairs.corrupt)
    np.testing.assert_array_equal(both.correct[4:], pairs.wrong)
    assert both.clean_text[4:] == pairs.corrupt_text


def test_random_weights_give_nothing(lm):
    search = tasks.pronouns(jax.random.key(0), 8, lm.tokenizer, templates="train")
    held_out = tasks.pronouns(jax.random.key(1), 8, lm.tokenizer, templates="held_out")
    params = lm.model.init(jax.random.key(0))
    result = study_heads(lm.model, params, search=search, held_out=held_out, n_random=4, progress=False)
    assert not result.found and not result.solves
    assert "the model does not do this task" in result.verdict


def test_the_same_prompt_on_both_sides_is_refused(lm, pairs):
    with pytest.raises(InputError, match="the test would not be one"):
        study_heads(lm.model, lm.params, search=pairs, held_out=pairs.take([0]), progress=False)


@pytest.mark.parametrize(
    ("change", "found", "words"),
    [
        ({}, True, "Found."),
        ({"right": Share(count=5, total=10)}, False, "does not do this task"),
        ({"control": np.array([0.1, 0.95])}, False, "do not flip more"),
        ({"advantage": Interval(estimate=0.1, low=-0.01, high=0.2)}, False, "do not flip more"),
        ({"control": np.array([])}, False, "too few heads"),
        ({"flipped": Share(count=0, total=0), "control": np.array([math.nan])}, False, "do not flip more"),
    ],
)
def test_the_verdict_follows_the_stated_rule(study, change, found, words):
    sure = {
        "right": Share(count=10, total=10), "flipped": Share(count=9, total=10), "control": np.array([0.1, 0.2]),
        "advantage": Interval(estimate=0.8, low=0.5, high=0.9),
    }  # fmt: skip
    made = dataclasses.replace(study, **(sure | change))
    assert made.found == found and words in made.verdict
