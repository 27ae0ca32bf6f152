"""Dictionaries against SAELens's own classes: encode, decode, loss and gradients, and files in both directions."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp import saes
from jaxinterp.saes import Training
from tests.saes.problems import ARCHITECTURES, make_config, make_params
from tests.tiny import check_close

pytestmark = pytest.mark.parity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other libraries' own
    torch = pytest.importorskip("torch", reason="the oracle needs torch (make parity)")
    pytest.importorskip("sae_lens", reason="the oracle is sae-lens (make parity)")
    from sae_lens import SAE, registry
    from sae_lens.saes.sae import SAEMetadata, TrainStepInput
    from safetensors.numpy import load_file

D, N, B, D_OUT = 10, 40, 16, 7

TRAINING = {
    "standard": dict(l1_coefficient=0.7),
    "standard-raw-input": dict(l1_coefficient=0.7, apply_b_dec_to_input=False),
    "topk": dict(k=3, rescale_acts_by_decoder_norm=False, aux_loss_coefficient=0.6),
    "topk-rescaled": dict(k=3, rescale_acts_by_decoder_norm=True, aux_loss_coefficient=0.6),
    "batchtopk": dict(k=3, rescale_acts_by_decoder_norm=False, aux_loss_coefficient=0.6),
    "batchtopk-rescaled": dict(k=3, rescale_acts_by_decoder_norm=True, aux_loss_coefficient=0.6),
    "matryoshka_batchtopk": dict(k=3, rescale_acts_by_decoder_norm=False, matryoshka_widths=[8, 20, N]),
    "matryoshka_batchtopk-rescaled": dict(k=3, rescale_acts_by_decoder_norm=True, matryoshka_widths=[8, 20, N]),
    "jumprelu-step": dict(l0_coefficient=0.3, jumprelu_bandwidth=0.9),
    "jumprelu-step-to-input": dict(l0_coefficient=0.3, jumprelu_bandwidth=0.9, jumprelu_ste_to_input=True),
    "jumprelu-tanh": dict(
        l0_coefficient=0.3, jumprelu_bandwidth=0.9, jumprelu_sparsity_loss_mode="tanh", pre_act_loss_coefficient=0.2
    ),
    "jumprelu-tanh-to-input": dict(
        l0_coefficient=0.3, jumprelu_bandwidth=0.9, jumprelu_sparsity_loss_mode="tanh", pre_act_loss_coefficient=0.2,
        jumprelu_ste_to_input=True, jumprelu_tanh_scale=2.0,
    ),
    "gated": dict(l1_coefficient=0.7),
}  # fmt: skip
"""Settings of their training classes, by architecture."""
USE = {
    "standard": {}, "standard-raw-input": dict(apply_b_dec_to_input=False),
    "standard-layer-norm": dict(normalize_activations="layer_norm"),
    "standard-row-norm": dict(normalize_activations="constant_norm_rescale"), "gated": {}, "jumprelu": {},
    "topk": dict(k=3), "topk-rescaled": dict(k=3, rescale_acts_by_decoder_norm=True),
    **{name: dict(d_out=D_OUT, apply_b_dec_to_input=False) for name in (
        "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"
    )},
}  # fmt: skip
"""Settings of their classes for use."""


def theirs(name, settings, training, dtype="float32"):
    """One of their dictionaries, with random parameters that are far from their first values."""
    get = registry.get_sae_training_class if training else registry.get_sae_class
    kind, config = get(name.split("-")[0])
    metadata = SAEMetadata(hook_name="blocks.3.hook_resid_post", hook_name_out="blocks.3.hook_mlp_out", note=["kept"])
    sae = kind(config(d_in=D, d_sae=N, dtype=dtype, metadata=metadata, **settings))
    rng = np.random.default_rng(len(name))
    with torch.no_grad():
        for key, value in sae.named_parameters():
            new = rng.normal(size=tuple(value.shape)) * (0.3 if value.ndim == 1 else 0.5)
            new = abs(new) if key == "threshold" else new
            value.copy_(torch.tensor(new).to(value.dtype))
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold = torch.tensor(0.75, dtype=torch.double)
    return sae


def rows(seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(B, D)) * np.exp(0.5 * rng.normal(size=(B, 1)))).astype(np.float32)


def grad(value, name):
    value = value.detach().numpy()
    return value.T if name == "W_enc" else value


@pytest.mark.parametrize("name", TRAINING)
def test_loss_and_gradients_are_those_of_saelens(name, tmp_path):
    sae = theirs(name, TRAINING[name], training=True)
    sae.save_model(tmp_path)
    ours = saes.load(tmp_path)
    assert ours.config.site == "resid_post.3"
    dead = np.arange(N) % 3 == 0
    x = rows()
    coefficients = {key: value.value for key, value in sae.get_coefficients().items()}
    step = TrainStepInput(
        sae_in=torch.tensor(x), coefficients=coefficients, dead_neuron_mask=torch.tensor(dead), n_training_steps=0,
        is_logging_step=False,
    )  # fmt: skip
    out = sae.training_forward_pass(step)
    out.loss.backward()
    at = Training(sparsity=jnp.float32(ours.config.architecture.sparsity), dead=jnp.asarray(dead), config=ours.config)
    loss = lambda params: ours.config.architecture.loss(params, jnp.asarray(x), jnp.asarray(x), at)
    (value, outcome), gradient = jax.value_and_grad(loss, has_aux=True)(ours.params)
    assert all(term.item() > 0 for term in out.losses.values())  # each counts
    check_close(value, out.loss.item())
    for key, parameter in sae.named_parameters():
        check_close(gradient[key], grad(parameter.grad, key))
    assert float(outcome.l0) == pytest.approx(float((out.feature_acts > 0).sum(1).float().mean()))
    if "topk" not in name or name.startswith("topk"):  # BatchTopK is used with a threshold
        check_close(ours.encode(jnp.asarray(x)), sae.encode(torch.tensor(x)).detach().numpy())
    check_close(
        ours.decode(jnp.asarray(out.feature_acts.detach().numpy())), sae.decode(out.feature_acts).detach().numpy()
    )


def check_same_use(sae, ours):
    x = rows(1)
    with torch.no_grad():
        latents, out = sae.encode(torch.tensor(x)), sae(torch.tensor(x))
    assert (latents > 0).float().mean() > 0.02
    check_close(ours.encode(jnp.asarray(x)), latents.numpy())
    check_close(ours(jnp.asarray(x)), out.numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", USE)
def test_files_of_saelens_compute_the_same_and_go_back_as_they_were(name, dtype, tmp_path):
    theirs(name, USE[name], training=False, dtype=dtype).save_model(tmp_path / "theirs")
    sae = SAE.load_from_disk(tmp_path / "theirs", dtype="float32")
    ours = saes.load(tmp_path / "theirs")
    check_same_use(sae, ours)
    assert ours.config.target == ("mlp.out.3" if "transcoder" in name else None)
    saes.save(ours, tmp_path / "back", form="saelens")
    assert (tmp_path / "theirs/cfg.json").read_bytes() == (tmp_path / "back/cfg.json").read_bytes()
    if dtype == "float32":
        first, last = (load_file(tmp_path / folder / "sae_weights.safetensors") for folder in ("theirs", "back"))
        assert first.keys() == last.keys() and all(first[key].tobytes() == last[key].tobytes() for key in first)
    check_same_use(SAE.load_from_disk(tmp_path / "back", dtype="float32"), ours)


@pytest.mark.parametrize("name", [name for name in TRAINING if "batchtopk" in name or name.startswith("topk")])
def test_dictionaries_that_saelens_saves_for_use(name, tmp_path):
    sae = theirs(name, TRAINING[name], training=True)
    sae.save_model(tmp_path / "training")
    sae.save_inference_model(tmp_path / "use")
    used = SAE.load_from_disk(tmp_path / "use")
    check_same_use(used, saes.load(tmp_path / "use"))
    check_same_use(used, saes.load(tmp_path / "training"))  # the same thresholds and lengths, in another form
    saes.save(saes.load(tmp_path / "training"), tmp_path / "own")
    back = saes.save(saes.load(tmp_path / "own"), tmp_path / "back", form="saelens")
    assert (back / "cfg.json").read_bytes() == (tmp_path / "training/cfg.json").read_bytes()


OURS = [(name, "sae") for name in ARCHITECTURES] + [
    (name, kind) for name in ("relu_2024", "jump_relu", "batch_topk_scaled") for kind in ("transcoder", "skip")
]


@pytest.mark.parametrize("normalize", ["none", "sqrt_d"])
@pytest.mark.parametrize(("name", "kind"), OURS)
def test_our_dictionaries_compute_the_same_in_saelens(name, kind, normalize, tmp_path):
    config = make_config(ARCHITECTURES[name], kind, normalize=normalize, site="resid_post.3")
    params = make_params(config)
    if name.startswith(("batch", "matryoshka")):
        params["threshold"] = jnp.float32(0.8)
    scales = {"input": jnp.float32(1.7), "target": jnp.float32(1.7 if kind == "sae" else 0.6)}
    ones = dict.fromkeys(scales, jnp.float32(1))
    ours = saes.SAE(params=params, scales=ones if normalize == "none" else scales, config=config)
    sae = SAE.load_from_disk(saes.save(ours, tmp_path / "ours", form="saelens"))
    assert sae.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    check_same_use(sae, ours)
