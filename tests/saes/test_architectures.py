"""Every architecture against the formulas of its paper written densely, and on meshes against itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxinterp import InputError
from jaxinterp.mesh import make_mesh
from jaxinterp.saes import SAE, Axes, SparseLatents, TopK
from jaxinterp.saes._step import is_cut
from tests.saes import naive
from tests.saes.problems import ARCHITECTURES, KINDS, N, make_config, make_params, make_rows, make_training
from tests.tiny import check_close


def loss_and_gradient(config, params, x, target, at):
    loss = lambda params: config.architecture.loss(params, x, target, at)
    return jax.value_and_grad(loss, has_aux=True)(params)


CASES = [(name, "sae") for name in ARCHITECTURES] + [
    (name, kind) for kind in KINDS if kind != "sae" for name in ("relu_2024", "topk", "matryoshka", "gated")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_loss_and_gradients_are_those_of_the_formula(name, kind):
    config = make_config(ARCHITECTURES[name], kind)
    params, x = make_params(config), make_rows()
    target = x if config.target is None else make_rows(config.width_out, seed=2)
    at = make_training(config, dead=name != "topk_multi")
    (value, outcome), gradient = jax.jit(loss_and_gradient, static_argnums=0)(config, params, x, target, at)
    (want, latents), want_gradient = jax.value_and_grad(naive.loss, has_aux=True)(params, x, target, at)
    check_close(value, want)
    check_close(sum(outcome.terms.values()), want)
    assert set(gradient) == set(params)
    for leaf, expected in want_gradient.items():
        assert (leaf == "threshold" and config.architecture.name != "jump_relu") or np.abs(expected).max() > 0, leaf
        check_close(gradient[leaf], expected)
    assert float(outcome.l0) == pytest.approx(float((latents > 0).sum(1).mean()))
    np.testing.assert_array_equal(outcome.fired, (latents > 0).any(0))


MESHES = [(name, dict(data=2, dict=4)) for name in ARCHITECTURES] + [
    ("topk", dict(data=8)),
    ("batch_topk", dict(dict=8)),
]


@pytest.mark.parametrize(("name", "shape"), MESHES, ids=str)
def test_on_a_mesh_loss_and_gradients_are_the_same(name, shape):
    config = make_config(ARCHITECTURES[name])
    params, x, at = make_params(config), make_rows(), make_training(config)
    mesh, axes = make_mesh(**shape), Axes(**{axis: axis for axis in shape})
    cut = {leaf: P(axes.dict) if is_cut(leaf, value.ndim) else P() for leaf, value in params.items()}
    want = jax.jit(loss_and_gradient, static_argnums=0)(config, params, x, x, at)
    outs = jax.tree.map(lambda _: P(), want[0][1])
    outs = dataclasses.replace(outs, fired=P(axes.dict))

    def part(params, x, dead):
        value, gradient = loss_and_gradient(
            config, axes.local(params), x, x, dataclasses.replace(at, dead=dead, axes=axes)
        )
        return value, axes.rows(gradient)

    specs = dict(in_specs=(cut, P(axes.data), P(axes.dict)), out_specs=((P(), outs), cut))
    got = jax.jit(jax.shard_map(part, mesh=mesh, **specs))(params, x, at.dead)
    jax.tree.map(check_close, got, want)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_first_parameters(name):
    config = make_config(ARCHITECTURES[name])
    sample = make_rows(n=64)
    params = config.architecture.init(jax.random.key(0), config, sample)
    lengths = np.linalg.norm(params["W_dec"], axis=1)
    np.testing.assert_allclose(lengths, 1.0 if config.architecture.unit_norm else 0.1, rtol=1e-5)
    cosines = np.sum(params["W_enc"] * params["W_dec"], 1) / np.linalg.norm(params["W_enc"], axis=1) / lengths
    np.testing.assert_allclose(cosines, 1.0, rtol=1e-5)
    if config.architecture.bias == "geometric_median":
        distance = lambda point: np.linalg.norm(np.asarray(sample) - point, axis=1).sum()
        best = distance(np.asarray(params["b_dec"]))
        nudges = np.random.default_rng(0).normal(size=(20, config.d_in)) * 0.05
        assert all(best <= distance(np.asarray(params["b_dec"]) + nudge) + 1e-4 for nudge in nudges)
    if config.architecture.name == "topk":  # reconstructions are as long as rows
        latents = TopK.encode(config.architecture, params, sample, config)
        guess = latents.dense() @ np.asarray(params["W_dec"]) / (lengths[0] if config.architecture.norm_scaled else 1)
        ratio = np.linalg.norm(guess, axis=1).mean() / np.linalg.norm(sample - params["b_dec"][None], axis=1).mean()
        assert ratio == pytest.approx(1.0, rel=1e-4)


def test_activations_of_another_width_are_refused():
    config = make_config(TopK(k=2), site="mlp.out.3")
    sae = SAE(params=make_params(config), scales={"input": jnp.ones(()), "target": jnp.ones(())}, config=config)
    with pytest.raises(
        InputError, match=r"float32\[2, 9\]; this dictionary reads 'mlp.out.3' .*, 10 wide.*capture\('mlp.out'\)"
    ):
        sae.encode(jnp.ones((2, 9)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_projection_and_constraint_keep_the_rows_at_length_one(name):
    config = make_config(ARCHITECTURES[name])
    a = config.architecture
    params = a.constrain(
        make_params(config),
        loss_and_gradient(config, make_params(config), make_rows(), make_rows(), make_training(config))[0][1],
    )
    lengths = np.linalg.norm(params["W_dec"], axis=1)
    assert (np.abs(lengths - 1) < 1e-6).all() == a.unit_norm
    gradient = {leaf: jnp.ones_like(value) for leaf, value in params.items()}
    along = np.sum(a.project(gradient, params)["W_dec"] * params["W_dec"], axis=1)
    assert (np.abs(along) < 1e-5).all() == a.unit_norm


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_latents_in_use(name):
    config = make_config(ARCHITECTURES[name], normalize="sqrt_d")
    a, params, x = config.architecture, make_params(config), make_rows().reshape(4, 4, -1)
    scales = {"input": jnp.float32(0.5), "target": jnp.float32(0.5)}
    sae = SAE(params=params, scales=scales, config=config)
    rows = np.asarray(x, np.float64).reshape(16, -1) * 0.5
    p = {leaf: np.asarray(value, np.float64) for leaf, value in params.items()}
    z = (rows - (p["b_dec"] if config.centers else 0)) @ p["W_enc"].T
    if a.name == "gated":
        want = (z + p["b_gate"] > 0) * np.maximum(z * np.exp(p["r_mag"]) + p["b_mag"], 0)
    else:
        z += p["b_enc"]
        z *= np.linalg.norm(p["W_dec"], axis=1) if getattr(a, "norm_scaled", False) else 1
        if a.name == "topk":
            z = np.where(np.asarray(naive.keep_largest(z, a.k)), z, 0)
        threshold = np.exp(p["log_threshold"]) if "log_threshold" in p else p.get("threshold", 0.0)
        want = np.where(z > threshold, np.maximum(z, 0), 0)
    latents = sae.encode(x)
    check_close(latents, want.reshape(4, 4, N))
    decoder = p["W_dec"] / (
        np.linalg.norm(p["W_dec"], axis=1, keepdims=True) if getattr(a, "norm_scaled", False) else 1
    )
    reconstruction = ((want @ decoder + p["b_dec"]) / 0.5).reshape(x.shape)
    check_close(sae.decode(latents), reconstruction)
    check_close(sae(x), reconstruction)
    check_close(jax.jit(lambda sae, x: sae(x))(sae, x), reconstruction)
    active = sae.encode_active(x)
    if isinstance(active, SparseLatents):
        check_close(sae.decode(active, x), reconstruction)
