"""The figures on the cards come out again, on a small sample."""

import json
from pathlib import Path

import numpy as np
import pytest

import jaxinterp as ji

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture(scope="module")
def stories():
    return ji.zoo.load("stories"), json.loads((EXPERIMENTS / "zoo_stories" / "results.json").read_text())


@pytest.fixture(scope="module")
def induction():
    return json.loads((EXPERIMENTS / "zoo_induction" / "results.json").read_text())


def test_stories_meets_its_targets(stories):
    _, results = stories
    assert results["held_out_nats_per_byte"] <= 0.88 and results["below_best_ngram"] >= 0.20
    right = results["pronouns"]["common_names"]
    assert right["all"] >= 0.90 and right["she"] >= 0.85 and right["he"] >= 0.85


def test_stories_pronouns_come_out_again(stories):
    from experiments.zoo_stories import data, pronouns

    lm, results = stories
    names = results["pronouns"]["common_names"]["names"]
    she, he = ([name for name in group if name in names] for group in (data.SHE_NAMES, data.HE_NAMES))
    assert len(she) + len(he) == len(names) >= 20
    assert all(results["pronouns"]["occurrences"][name] >= 150 for name in names)
    again = pronouns.accuracy(lm, she, he)
    for part in ("she", "he", "all"):
        assert abs(again[part] - results["pronouns"]["common_names"][part]) < 0.01
        assert f"{100 * results['pronouns']['common_names'][part]:.1f} %" in ji.zoo.card("stories")


def test_stories_loss_comes_out_again(stories, shared):
    from experiments.zoo_stories import data
    from experiments.zoo_stories.training import nats_per_byte

    lm, results = stories
    sample = data.split(data.read_stories(shared / "tinystories.txt"))[1][:10]
    ids = data.encode(lm.tokenizer.backend, sample)
    again = nats_per_byte(lm.model, lm.params, ids, data.count_bytes(sample))
    assert abs(again - results["first_ten_held_out_nats_per_byte"]) < 1e-3
    assert f"{results['held_out_nats_per_byte']:.3f}" in ji.zoo.card("stories")


def test_no_single_head_carries_the_pronoun(stories):
    circuit = stories[1]["circuit"]
    assert circuit["heads"][0]["to_she"] < 0.6 and circuit["all_of_layer_0"]["fraction"] < 0.3


@pytest.mark.parametrize("name", ["induction", "induction-1l"])
def test_induction_figures_come_out_again(induction, name):
    from experiments.zoo_induction import measure

    lm = ji.zoo.load(name)
    batch = measure.fixed_batch(lm.config, 64)
    again = measure.copying(lm.model, lm.params, batch=batch)
    scores = measure.head_scores(lm.model, lm.params, batch.tokens)
    assert abs(again["repeat_loss"] - induction[name]["repeat_loss"]) < 0.1 * max(induction[name]["repeat_loss"], 0.1)
    np.testing.assert_allclose(scores["prefix_matching"], induction[name]["prefix_matching"], atol=0.03)
    np.testing.assert_allclose(scores["previous_token"], induction[name]["previous_token"], atol=0.03)
    assert f"{induction[name]['best_prefix_matching']:.2f}" in ji.zoo.card(name)


def test_two_layers_learn_induction_and_one_does_not(induction):
    two, one = induction["induction"], induction["induction-1l"]
    assert two["best_prefix_matching"] > 0.9 and two["repeat_loss"] < 0.1 and one["repeat_loss"] > 2
    assert two["largest_fall"] > 0.6 and abs(two["loss_change"] - two["prefix_change"]) <= 250
    assert two["repeat_loss_without_induction_heads"] - two["repeat_loss"] > 1
    assert max(two["repeat_loss_without_head"].values()) - two["repeat_loss"] > 1  # the previous-token head


def test_the_kept_steps_show_the_change(induction):
    from experiments.zoo_induction import measure

    def best(step):
        lm = ji.zoo.load("induction", step=step)
        batch = measure.fixed_batch(lm.config, 16)
        return measure.head_scores(lm.model, lm.params, batch.tokens)["prefix_matching"].max()

    change = induction["induction"]["prefix_change"]
    before = [step for step in ji.zoo.steps("induction") if step < change]
    after = [step for step in ji.zoo.steps("induction") if step >= change + 250]
    assert len(before) >= 2 and len(after) >= 1
    assert best(before[0]) < 0.1 and best(after[-1]) > 0.7
