"""Scores of heads on patterns that are known, and the script at its smallest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from experiments.zoo_induction import measure

ROOT = Path(__file__).resolve().parents[2]


def test_matches_are_the_keys_after_an_earlier_occurrence():
    match, uniform = measure.match_masks(jnp.array([[5, 6, 7, 5, 6]], jnp.int32))
    assert [tuple(int(i) for i in place) for place in np.argwhere(np.asarray(match[0]))] == [(3, 1), (4, 2)]
    np.testing.assert_allclose(uniform[0, 3], [0.25, 0.25, 0.25, 0.25, 0.0])


def test_a_perfect_head_scores_one_less_uniform():
    tokens = jnp.array([[5, 6, 7, 5, 6]], jnp.int32)
    perfect = np.zeros((1, 1, 1, 5, 5), np.float32)
    perfect[..., 0, 0] = perfect[..., 1, 0] = perfect[..., 2, 1] = 1
    perfect[..., 3, 1] = perfect[..., 4, 2] = 1

    class Fake:
        def forward(self, params, tokens, *, tap):
            def layer(carry, pattern, *, tap):
                return carry, tap("attn.pattern", pattern, "BHTS")

            return tap.scan(layer, jnp.zeros(()), jnp.asarray(perfect))[1]

    scores = measure.head_scores(Fake(), {}, tokens)
    np.testing.assert_allclose(scores["prefix_matching"], [[1 - (1 / 4 + 1 / 5) / 2]], rtol=1e-6)
    np.testing.assert_allclose(scores["previous_token"], [[2 / 4]], rtol=1e-6)


@pytest.mark.skipif(
    os.environ.get("JAXINTERP_XLA") != "user", reason="what was wrong was in XLA's fusion emitters (make properties)"
)
def test_scores_equal_a_plain_loop():
    """At a batch of this size, sums of sums were once wrong by 4 % under jit on a CPU, so the size is part of the test."""
    lm = ji.zoo.load("induction")
    tokens = np.asarray(measure.fixed_batch(lm.config, 1024).tokens)
    pattern = ji.run(lm.model.forward, ji.capture("attn.pattern"))(lm.params, jnp.asarray(tokens))[1]["attn.pattern"]
    batch, length = tokens.shape
    match = np.zeros((batch, length, length), bool)
    for query in range(length):
        for key in range(1, query + 1):
            match[:, query, key] = tokens[:, key - 1] == tokens[:, query]
    has = match.any(-1)
    uniform = (match.sum(-1) / np.arange(1, length + 1))[has].mean()
    scores = measure.head_scores(lm.model, lm.params, jnp.asarray(tokens))["prefix_matching"]
    for layer, head in np.ndindex(scores.shape):
        attention = np.asarray(pattern[layer, :, head], np.float64)
        assert abs((attention * match).sum(-1)[has].mean() - uniform - scores[layer, head]) < 1e-4


def test_a_phase_change_is_found_where_it_is():
    history = [
        {"step": s, "repeat_loss": 4.0 if s < 1000 else 0.1, "prefix_matching": 0.0 if s < 1100 else 0.9}
        for s in range(50, 2050, 50)
    ]
    found = measure.phase_change(history)
    assert found["loss_change"] == 1000 and found["prefix_change"] == 1100
    assert abs(found["largest_fall"] - 0.975) < 1e-6 and 500 <= found["fall_from"] < 1000


@pytest.mark.slow
def test_the_script_runs(tmp_path):
    command = [sys.executable, "-m", "experiments.zoo_induction.run", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    for name, n_layers in (("induction", 2), ("induction-1l", 1)):
        assert np.shape(results[name]["prefix_matching"]) == (n_layers, 4)
        assert ji.load(tmp_path / name).config.n_layers == n_layers
    assert (tmp_path / "induction" / "steps" / "0000" / "config.json").is_file()
