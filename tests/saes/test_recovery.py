"""Recovery against SciPy's assignment, and on dictionaries whose recovery is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import jaxinterp as ji
from jaxinterp.saes import SAE, SAEConfig, TopK, amplitude_ratio, recovery
from jaxinterp.tasks import planted
from tests.tiny import check_close, check_same


def unit(shape, seed):
    rows = np.random.default_rng(seed).normal(size=shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("m", "alive"), [(20, 20), (9, 9), (20, 8)])
def test_cosines_and_matching_are_those_of_a_loop(m, alive):
    truth, found = unit((12, 5), 0), 3.0 * unit((m, 5), 1)
    is_alive = np.arange(m) % m < alive
    got = recovery(jnp.asarray(found, jnp.float32), jnp.asarray(truth, jnp.float32), alive=is_alive)
    cosines = truth @ (found[is_alive] / 3).T
    rows, columns = linear_sum_assignment(-cosines)
    matched, latents = np.zeros(12), np.full(12, -1)
    matched[rows], latents[rows] = cosines[rows, columns], np.flatnonzero(is_alive)[columns]
    check_close(got.best, cosines.max(1))
    check_close(np.asarray(got.nearest)[is_alive], cosines.max(0))
    assert np.isnan(np.asarray(got.nearest)[~is_alive]).all()
    check_close(got.matched, matched)
    check_same(got.latents, latents)
    summary = got.summary()
    assert summary["mmcs"] == pytest.approx(cosines.max(1).mean(), rel=1e-5)
    assert summary["hungarian"] == pytest.approx(matched.mean(), rel=1e-5)
    assert np.isfinite(got.random.nearest).sum() == alive


def test_cosines_are_signed():
    truth = jnp.asarray(unit((6, 64), 0), jnp.float32)
    assert recovery(-truth, truth).summary()["recall"] == 0.0


def test_chance_is_what_the_controls_say():
    """The figures of a random dictionary at d = 64, G = M = 256: 0.35."""
    truth = planted(jax.random.key(0), n_directions=256, width=64)
    rows = truth.sample(jax.random.key(1), 1024)["x"]
    summary = recovery(truth.directions, truth.directions, rows=rows).summary()
    assert summary["hungarian_recall"] == summary["precise"] == 1.0
    assert 0.33 < summary["random_mmcs"] < 0.37
    assert summary["data_mmcs"] > summary["random_mmcs"] + 0.1


def test_amplitude_ratio_is_that_of_a_shrunk_dictionary():
    directions = jnp.eye(8)
    config = SAEConfig(architecture=TopK(k=4), d_in=8, n_latents=8)
    params = dict(W_enc=0.4 * directions, b_enc=jnp.zeros(8), W_dec=2.0 * directions, b_dec=jnp.zeros(8))
    sae = SAE(params=params, scales=dict(input=jnp.float32(1), target=jnp.float32(1)), config=config)
    amounts = jax.random.uniform(jax.random.key(0), (64, 8)) * (jnp.arange(8) < 3).astype(jnp.float32)[None]
    found = recovery(sae, directions)
    assert amplitude_ratio(sae, found, amounts, amounts) == pytest.approx(0.8, rel=1e-5)
    assert np.isnan(amplitude_ratio(sae, recovery(sae, -directions), amounts, amounts))
    scaled = TopK(k=4, norm_scaled=True, unit_norm=False)
    for normalize, scale, architecture in (
        ("sqrt_d", 4.0, TopK(k=4)),
        ("none", 1.0, scaled),
        ("row_sqrt_d", 1.0, TopK(k=4)),
    ):
        config = SAEConfig(architecture=architecture, d_in=8, n_latents=8, normalize=normalize)
        params = {**params, "W_enc": (1.0 if architecture is scaled else 2.0) * 0.2 * directions}
        scales = dict(input=jnp.float32(scale), target=jnp.float32(scale))
        one = SAE(params=params, scales=scales, config=config)
        check_close(one(amounts), 0.8 * amounts if architecture is not scaled else 0.4 * amounts)
        want = 0.4 if architecture is scaled else 0.8
        assert amplitude_ratio(one, found, amounts, amounts) == pytest.approx(want, rel=1e-5), normalize


def test_what_cannot_be_compared_is_told():
    with pytest.raises(ji.InputError, match="of one width"):
        recovery(jnp.eye(3), jnp.eye(4))
    with pytest.raises(ji.InputError, match="no latent is alive"):
        recovery(jnp.eye(3), jnp.eye(3), alive=np.zeros(3, bool))
