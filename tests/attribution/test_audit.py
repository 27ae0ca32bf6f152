"""The audit's numbers by hand, the sample's strata, and the toy induction model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

import jaxinterp as ji
from jaxinterp.attribution._audit import TOP, agreement, choose
from tests.tiny import check_same, make_model, make_params, make_tokens

attribute = functools.partial(ji.attribution.attribution_patching, progress=False)


def test_spearman_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    for n in (3, 10, 50):
        a, b = rng.integers(0, 6, (2, n)).astype(float)
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert abs(ji.attribution.spearman(a, b) - spearmanr(a, b).statistic) < 1e-12
    assert ji.attribution.spearman(np.arange(4.0), np.arange(4.0) ** 3) == pytest.approx(1)
    assert np.isnan(ji.attribution.spearman(np.zeros(5), np.arange(5.0)))
    assert np.isnan(ji.attribution.spearman(np.arange(2.0), np.arange(2.0)))
    with pytest.raises(ji.InputError, match="same length"):
        ji.attribution.spearman(np.zeros(5), np.zeros(4))


def test_the_sample_takes_the_strongest_and_as_many_from_each_stratum_and_layer():
    score = np.random.default_rng(0).normal(size=400) ** 3
    score[7] = np.nan
    layer = np.repeat(np.arange(4), 100)
    ids, stratum = choose(score, layer, 32, np.random.default_rng(1))
    assert len(set(ids.tolist())) == len(ids) == 32 + TOP
    assert 7 not in ids
    size = np.abs(score[ids])
    assert set(np.argsort(-np.nan_to_num(np.abs(score)))[:TOP]) == set(ids[stratum == -1])
    assert np.bincount(stratum[stratum >= 0]).tolist() == [4] * 8
    for i in range(8):
        assert sorted(layer[ids[stratum == i]]) == [0, 1, 2, 3]
        assert i == 7 or size[stratum == i].max() <= size[stratum == i + 1].min()
    again, _ = choose(score, layer, 32, np.random.default_rng(1))
    check_same(again, ids)
    everything, _ = choose(score, layer, 1000, np.random.default_rng(1))
    assert sorted(everything.tolist()) == [i for i in range(400) if i != 7]
    uneven, strata = choose(score, layer, 35, np.random.default_rng(1))
    assert len(uneven) == 35 + TOP and np.bincount(strata[strata >= 0]).tolist() == [4, 4, 4, 4, 4, 5, 5, 5]


def test_agreement_by_hand():
    effect = np.array([5.0, -4.0, 3.0, 0.0, 1e-9, 2.0])
    score = np.array([4.0, -5.0, -0.5, 9.0, 3.0, 1.0])
    got = agreement(score, effect, metric=2.0)
    assert got["n_nonzero"] == 4  # not 0, and not rounding
    assert got["sign_agreement"] == 0.75
    assert got["recall"] == 0.5  # the four largest effects are 0, 1, 2, 5; the four largest scores 3, 1, 0, 4
    assert got["spearman"] == pytest.approx(spearmanr(score[[0, 1, 2, 5]], effect[[0, 1, 2, 5]]).statistic)
    nothing = agreement(score, np.zeros(6), metric=2.0)
    assert nothing["n_nonzero"] == 0 and np.isnan([nothing["spearman"], nothing["recall"]]).all()


def exact_effect(lm, pairs, cell):
    """The mean metric of a plain run with one head's output exchanged at a row of each prompt, by indexing."""
    layer, head, p = jnp.int32(int(cell["layer"])), jnp.int32(int(cell["head"])), pairs.roles[str(cell["role"].values)]
    at, rows = np.asarray(pairs.answer_position), np.arange(len(pairs))
    logits = np.asarray(_exchanged(lm.model, lm.params, pairs.corrupt, pairs.clean, pairs.mask, layer, head, p))
    return (logits[rows, at, pairs.correct[:, 0]] - logits[rows, at, pairs.wrong[:, 0]]).mean()


@functools.partial(jax.jit, static_argnums=0)
def _exchanged(model, params, base, source, mask, layer, head, p):
    new = ji.run(model.forward, ji.capture("attn.z"))(params, source, mask=mask)[1]["attn.z"][layer]
    change = lambda z, new: z.at[jnp.arange(16), p, head].set(new[jnp.arange(16), p, head])
    return ji.run(model.forward, ji.edit("attn.z", change, new, layer=layer))(params, base, mask=mask)[0]


def test_the_audit_of_the_induction_model(capsys):
    """Exact effects by plain runs, the numbers by hand; and the scores are good here."""
    lm = ji.zoo.load("induction")
    pairs = ji.tasks.induction(jax.random.key(0), 16, d_vocab=lm.config.d_vocab, period=(6, 10))
    metric = ji.patching.logit_difference(pairs.correct, pairs.wrong, pairs.answer_position)
    got = attribute(
        lm.model, lm.params, base=pairs.corrupt, source=pairs.clean, mask=pairs.mask, metric=metric, sites="attn.z",
        over="layer,head,role", roles=pairs.roles, audit=64,
    )  # fmt: skip
    audit = got.audits["attn.z"]
    cells, score, effect = audit.cells, audit.cells.score.values, audit.cells.effect.values
    assert cells.sizes["cell"] == 24 and "24 cells audited" in str(got)
    check_same(score, got["attn.z"].score.sel({a: cells[a] for a in ("layer", "head", "role")}).values)

    real = np.abs(effect) > 1e-5 * max(
        float(abs(got["attn.z"].base)), float(abs(got["attn.z"].source)), np.abs(effect).max()
    )
    assert audit.n_nonzero == cells.attrs["n_nonzero"] == real.sum() > 8
    assert audit.spearman == pytest.approx(spearmanr(effect[real], score[real]).statistic)
    assert audit.sign_agreement == np.mean(np.sign(effect[real]) == np.sign(score[real]))
    strongest = lambda x: set(np.argsort(-np.abs(x), kind="stable")[:10])
    assert audit.recall == len(strongest(np.where(real, effect, 0)) & strongest(score)) / 10

    for i in (0, 5, 20):
        assert abs(exact_effect(lm, pairs, cells.isel(cell=i)) - effect[i] - float(got["attn.z"].base)) < 1e-4

    with capsys.disabled():
        print(f"\ninduction model, {audit}")
    assert audit.spearman > 0.8 and audit.recall > 0.8 and audit.sign_agreement > 0.9


def test_blocks_cannot_be_audited():
    model = make_model(n_layers=2)
    how = dict(
        base=make_tokens(1, 4), source=make_tokens(1, 4, seed=1), metric=ji.patching.logit_difference([1], [2], [3])
    )
    with pytest.raises(ji.InputError, match="a single layer"):
        attribute(model, make_params(model), sites="attn.z", over={"layer": [(0, 1)]}, audit=4, **how)
