"""Evaluation against the definitions written in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.saes import SAE, evaluate
from tests.saes.problems import ARCHITECTURES, KINDS, make_config, make_params, make_rows


def make_sae(name, kind="sae", **changes):
    config = make_config(ARCHITECTURES[name], kind, **changes)
    return SAE(params=make_params(config), scales=dict(input=jnp.float32(0.5), target=jnp.float32(0.5)), config=config)


def by_definition(sae, x, target):
    latents = np.asarray(sae.encode(x), np.float64)
    guess, y = np.asarray(sae(x), np.float64), np.asarray(target, np.float64)
    left, total = y - guess, ((y - y.mean(0)) ** 2).sum()
    norm = lambda a: np.linalg.norm(a, axis=1)
    on = latents > 0
    return {
        "rows": len(y), "mse": (left**2).sum(1).mean(), "fvu": (left**2).sum() / total,
        "explained_variance": 1 - ((left - left.mean(0)) ** 2).sum() / total, "l0": on.sum(1).mean(), "dead": (~on.any(0)).mean(),
        "cosine": ((y * guess).sum(1) / norm(y) / norm(guess)).mean(), "norm_ratio": norm(guess).mean() / norm(y).mean(),
        "firing_rate": on.mean(0), "max_activation": latents.max(0),
        "mean_activation": latents.sum(0) / np.maximum(on.sum(0), 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "offset"), [("relu_2024", "sae", 0.0), ("topk", "skip", 0.0), ("topk", "sae", 100.0)]
)
def test_numbers_are_those_of_the_definitions(name, kind, offset):
    """Also in batches of unequal size, and with a mean that dwarfs the variance."""
    sae = make_sae(name, kind, normalize="sqrt_d")
    x = make_rows(n=300) + offset
    target = x if kind == "sae" else make_rows(KINDS[kind]["d_out"], n=300, seed=4)
    batches = [{"x": x[i:j], "y": target[i:j]} for i, j in ((0, 200), (200, 300))]
    got = evaluate(sae, batches)
    for field, want in by_definition(sae, x, target).items():
        np.testing.assert_allclose(getattr(got, field), want, rtol=2e-4, atol=1e-6, err_msg=field)


def test_arrays_streams_and_limits():
    sae, x = make_sae("topk"), make_rows(n=96)
    whole = evaluate(sae, x)
    endless = iter(lambda: x[:32], None)
    assert evaluate(sae, endless, rows=64).rows == 64
    counts, edges = whole.density()
    assert counts.sum() == sae.config.n_latents and len(edges) == len(counts) + 1
    assert counts[0] == np.sum(whole.firing_rate == 0)
    table = whole.dataset()
    assert table.attrs["fvu"] == whole.fvu and table.firing_rate.dims == ("latent",)


def test_a_latent_that_always_fires_is_in_the_last_bin():
    sae = make_sae("relu_2024")
    sae = SAE(params={**sae.params, "b_enc": jnp.full(40, 1e4)}, scales=sae.scales, config=sae.config)
    counts, _ = evaluate(sae, make_rows()).density()
    assert counts[-1] == 40 and counts.sum() == 40


def test_what_cannot_be_measured_is_told():
    sae = make_sae("topk")
    with pytest.raises(ji.InputError, match="saw no row"):
        evaluate(sae, [])
    with pytest.raises(ji.InputError, match="not 'x'"):
        evaluate(sae, [{"resid_post.1": make_rows()}])
    with pytest.raises(ji.InputError, match=r"\[16, 7\]"):
        evaluate(sae, make_rows(7))
    with pytest.raises(ji.InputError, match="not finite"):
        evaluate(sae, make_rows().at[3, 1].set(jnp.nan))
    with pytest.raises(ji.InputError, match="two sites by name"):
        evaluate(make_sae("topk", "transcoder"), make_rows())
