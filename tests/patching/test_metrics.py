"""Metrics against formulas in float64."""

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import patching

LOGITS = np.random.default_rng(0).normal(size=(3, 2, 7)).astype(np.float32) * 3
P = np.exp(LOGITS.astype(np.float64))
P /= P.sum(-1, keepdims=True)
ROWS = np.array([[1, 2], [0, 4], [2, 3]])


def test_logit_difference_averages_over_answers_and_skips_padding():
    metric = patching.logit_difference([[0, 1], [2, -1], [3, 4]], [[5], [6], [0]], [2, 4, 3])
    assert np.asarray(metric.tokens).tolist() == [[0, 1, 5], [2, -1, 6], [3, 4, 0]]
    taken = np.stack([LOGITS[i][:, np.maximum(t, 0)] for i, t in enumerate(metric.tokens)])[:, 1:]
    last = LOGITS[:, 1]
    want = [
        (last[0, 0] + last[0, 1]) / 2 - last[0, 5],
        last[1, 2] - last[1, 6],
        (last[2, 3] + last[2, 4]) / 2 - last[2, 0],
    ]
    np.testing.assert_allclose(metric(taken), want, rtol=1e-5)


def test_probability_difference_sums_sets():
    metric = patching.probability_difference([[0, 1], [2, -1], [3, 4]], [[5], [6], [0]], [2, 4, 3])
    p = P[:, 1]
    want = [p[0, 0] + p[0, 1] - p[0, 5], p[1, 2] - p[1, 6], p[2, 3] + p[2, 4] - p[2, 0]]
    np.testing.assert_allclose(metric(LOGITS), want, rtol=1e-5, atol=1e-6)


def test_log_probability_and_cross_entropy():
    targets = np.array([[0, 1], [2, 3], [4, 5]])
    want = np.log(np.take_along_axis(P, targets[..., None], -1)[..., 0]).mean(1)
    np.testing.assert_allclose(patching.log_probability(targets, ROWS)(LOGITS), want, rtol=1e-5)
    np.testing.assert_allclose(patching.cross_entropy(targets, ROWS)(LOGITS), -want, rtol=1e-5)


def test_kl_divergence():
    other = np.random.default_rng(1).normal(size=LOGITS.shape).astype(np.float32)
    q = np.exp(other.astype(np.float64))
    q /= q.sum(-1, keepdims=True)
    metric = patching.kl_divergence(other, ROWS)
    np.testing.assert_allclose(metric(LOGITS), (q * np.log(q / P)).sum(-1).mean(1), rtol=1e-4)
    np.testing.assert_allclose(metric(other), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: patching.logit_difference([1.0], [2], [0]), "give integers"),
        (lambda: patching.logit_difference([1, 2], [2], [0]), "must agree"),
        (lambda: patching.logit_difference([[-1]], [2], [0]), "no correct"),
        (lambda: patching.log_probability([1, 2], [[0, 1], [1, 2]]), "must agree"),
        (lambda: patching.cross_entropy([[1, -1]], [[0, 1]]), "negative"),
        (lambda: patching.kl_divergence(LOGITS, [0, 1, 2]), "B, P, V"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ji.InputError, match=message):
        make()
