"""The steering experiment: interventions against arithmetic by hand, and the kept numbers against what the README claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from experiments.markdown import filled
from experiments.steering import measure, others, subject, summary
from experiments.steering.summary import SITES, cells, changes, mean
from jaxinterp import saes
from tests.tiny import check_close


@pytest.fixture(scope="module")
def parts():
    params = subject.MODEL.init(jax.random.key(0))
    config = saes.SAEConfig(architecture=saes.TopK(k=3, auxiliary=None), d_in=64, n_latents=24, site="resid_post.0")
    documents = subject.GRAMMAR.sample(jax.random.key(1), 4, n_ctx=subject.N_CTX)
    rows = subject.residuals(params, saes.init(config, jax.random.key(2)), documents.tokens)
    return params, saes.init(config, jax.random.key(2), rows.reshape(-1, 64)), documents, np.asarray(rows, np.float64)


def test_interventions_against_arithmetic_by_hand(parts):
    params, sae, documents, x = parts
    latents, decoder = np.asarray(sae.encode(jnp.asarray(x, jnp.float32))), np.asarray(sae.params["W_dec"], np.float64)
    j = int((latents > 0).mean((0, 1)).argmax())
    unit = decoder[j] / np.linalg.norm(decoder[j])
    expected = {
        "clamp": x + (7.0 - latents[..., j : j + 1]) * decoder[j],
        "push": x + 7.0 * unit,
        "remove": x - (x @ unit)[..., None] * unit,
        "hold": x + (7.0 - x @ unit)[..., None] * unit,
    }
    f = unit.astype(np.float32)
    handlers = {
        "clamp": measure.clamp(sae, j, 7.0), "push": measure.push(sae, 7.0 * f), "remove": measure.remove(sae, f),
        "hold": measure.hold(sae, f, 7.0),
    }  # fmt: skip
    assert (latents[..., j] > 0).any() and (latents[..., j] == 0).any()
    for name, steps in handlers.items():
        stop = lambda params, tokens, *, tap: subject.MODEL.residual(params, tokens, stop=1, tap=tap)
        got = np.asarray(ji.run(stop, *steps)(params, documents.tokens)[0])
        check_close(got[:, 1:], expected[name][:, 1:])
        check_close(got[:, 0], x[:, 0])  # BOS stays


def test_auroc_against_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 4, (30, 2)).astype(float), rng.random((30, 3)) < 0.4
    for i in range(2):
        for j in range(3):
            high, low = scores[labels[:, j], i], scores[~labels[:, j], i]
            pairs = (high[:, None] > low) + 0.5 * (high[:, None] == low)
            assert subject.auroc(scores, labels)[i, j] == pytest.approx(pairs.mean())


def test_outcomes(parts):
    _, _, documents, _ = parts
    grammar = subject.GRAMMAR
    even = np.full((4, subject.N_CTX, grammar.d_vocab), -np.log(grammar.d_vocab), np.float32)
    got = measure.outcome(even, even, documents, 2)
    share = grammar.words_per_topic / grammar.d_vocab
    assert float(got["anywhere"]) == pytest.approx(share, rel=1e-4) and float(got["side_kl"]) == pytest.approx(
        0.0, abs=1e-5
    )
    text = measure.text_outcome(documents.tokens, int(documents.topic[0]))
    assert text["legal"] == 1.0 and text["of_content"] > text["of_all"]


@pytest.fixture(scope="module")
def kept():
    return summary.kept()[0]


@pytest.mark.parametrize("site", SITES)
def test_the_kept_numbers_reach_the_targets(kept, site):
    assert len(kept) == 5
    for seed in kept.values():
        assert sum(area > 0.95 for area in seed[site]["topics"]["auroc"]) >= 7
        assert max(seed[site]["topics"]["auroc_shuffled"]) < 0.6
    untrained = {
        (number, topic): area
        for number, seed in kept.items()
        for topic, area in enumerate(seed[site]["topics"]["auroc_untrained"])
    }
    above = {place for place, area in untrained.items() if area >= 0.7}
    assert above == {"resid_post.0": set(), "resid_post.1": {("3", 3), ("3", 4)}}[site]  # as the page says
    at = lambda method, scale, part="steering": cells(kept, site, part, method=method, scale=scale)
    assert mean(at("nothing", 0.0), "none") < 0.2 and mean(at("latent", 5.0), "none") > 0.8
    assert mean(at("latent", 0.0), "own") < 0.05
    assert max(row["own"] for row in at("difference held", 0.0)) < 0.05
    assert changes(kept, site, "random latent", 5.0, "none").mean() < 0.05
    refused = [row["triggered"] for row in at("latent", 0.0, "refusal")]
    assert sum(p < 0.05 for p in refused) == {"resid_post.0": 5, "resid_post.1": 3}[site]  # as the page says
    assert mean(at("random latent", 0.0, "refusal"), "triggered") > 0.95


@pytest.mark.parametrize("site", SITES)
def test_what_the_page_says_of_the_peer_and_of_the_seed_that_fails(kept, site):
    for number, seed in kept.items():
        means = {
            name: mean(cells({number: seed}, site, "steering", method=name, scale=5.0), "none")
            for name in ("latent", "difference")
        }
        assert means["difference"] > 0.9
        assert (means["latent"] > 0.8) == ((number, site) != ("4", "resid_post.1"))


def test_the_page_has_the_kept_numbers():
    page, tables = (summary.HERE / "README.md").read_text(), summary.tables(*summary.kept())
    assert filled(page, tables) == page and page.count("<!-- end -->") == len(tables)
    assert list(summary.kept()[1]) == list(others.OTHERS)
