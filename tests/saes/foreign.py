"""Files of other people's forms, written by hand, and what they compute there: formulas on their tensors, in float64."""

import json
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

D, N, D_OUT = 6, 20, 5


class Case(NamedTuple):
    """A folder of a form.

    Attributes:
        form: the form.
        files: JSON files by name.
        tensors: what the weights file holds.
        compute: (tensors in float64, rows) to (latents, output), by the form's own code.
        site: what the dictionary reads, in our words; `target` what it gives.
        place: the folder.
        scale: an argument of `load`.
    """

    form: str
    files: dict[str, Any]
    tensors: dict[str, np.ndarray]
    compute: Any
    site: str = "resid_post.3"
    target: str | None = None
    place: str = "folder"
    scale: float | None = None


WEIGHTS = {
    "saelens": "sae_weights.safetensors", "gemma_scope": "params.npz", "dictionary_learning": "ae.safetensors",
    "sparsify": "sae.safetensors",
}  # fmt: skip


def write(case, root):
    folder = root / case.place
    folder.mkdir(parents=True)
    for name, table in case.files.items():
        (folder / name).write_text(json.dumps(table))
    path = folder / WEIGHTS[case.form]
    if path.suffix == ".npz":
        np.savez(path, **case.tensors)
    else:
        save_file(case.tensors, path)
    return folder


def draw(seed=0, **shapes):
    rng = np.random.default_rng(seed)
    values = {name.replace("__", "."): rng.normal(size=shape) * 0.6 for name, shape in shapes.items()}
    return {name: (abs(v) if name == "threshold" else v).astype(np.float32) for name, v in values.items()}


def relu(x):
    return np.maximum(x, 0)


def topk(z, k):
    least = np.sort(z, axis=1)[:, [-k]]
    return np.where(z >= least, relu(z), 0)


LENS = {**draw(W_enc=(D, N), W_dec=(N, D), b_enc=N, b_dec=D)}
META = {"metadata": {"sae_lens_version": "6.54.0", "hook_name": "blocks.3.hook_resid_post", "own": {"note": [1, None]}}}
BASE = {"d_in": D, "d_sae": N, "dtype": "float32", "device": "cuda", "reshape_activations": "none", **META}
OLD = {
    "model_name": "gpt2-small", "hook_point": "blocks.0.hook_resid_pre", "hook_point_layer": 0, "hook_point_head_index": None,
    "dataset_path": "a/b", "context_size": 128, "d_in": D, "n_batches_in_buffer": 128, "seed": 42, "dtype": "torch.float32",
    "b_dec_init_method": "geometric_median", "expansion_factor": 32, "from_pretrained_path": None, "l1_coefficient": 8e-05,
    "lr": 0.0004, "use_ghost_grads": False, "dead_feature_threshold": 1e-08, "d_sae": N, "tokens_per_buffer": 67108864,
    "run_name": "run", "normalize_activations": None,
}  # fmt: skip


def lens(activation=relu, center=True, normalize=None, skip=False, rescaled=False):
    def compute(t, x):
        shift, factor = (0.0, 1.0) if normalize is None else normalize(x)
        rows = (x - shift) / factor
        lengths = np.linalg.norm(t["W_dec"], axis=1) if rescaled else 1.0
        z = (rows - (t["b_dec"] if center else 0)) @ t["W_enc"] + t.get("b_enc", 0)
        latents = activation(z * lengths) if activation.__code__.co_argcount == 1 else activation(z, t)
        out = (latents / lengths) @ t["W_dec"] + t["b_dec"]
        return latents, out * factor + shift + (x @ t["W_skip"].T if skip else 0)

    return compute


def jump(z, t):
    return relu(z) * (z > t["threshold"])


def gates(z, t):
    return (z + t["b_gate"] > 0) * relu(z * np.exp(t["r_mag"]) + t["b_mag"])


def by_layer_norm(x):
    mean, deviation = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
    return mean, deviation + 1e-5


def saelens(architecture, tensors=LENS, compute=None, site="resid_post.3", target=None, more=None, **cfg):
    files = {"cfg.json": {"architecture": architecture, **BASE, **cfg}, **(more or {})}
    return Case("saelens", files, tensors, compute or lens(), site, target)


GATED = draw(1, W_enc=(D, N), W_dec=(N, D), b_dec=D, b_gate=N, b_mag=N, r_mag=N)
JUMP = {**LENS, **draw(2, threshold=N)}
TRANS = draw(3, W_enc=(D, N), W_dec=(N, D_OUT), b_enc=N, b_dec=D_OUT, threshold=N, W_skip=(D_OUT, D))
OUT = {"apply_b_dec_to_input": False, "d_out": D_OUT}
MLP = {
    "metadata": {
        **META["metadata"],
        "hook_name": "blocks.3.ln2.hook_normalized",
        "hook_name_out": "blocks.3.hook_mlp_out",
    }
}
SITES = dict(site="blocks.3.ln2.hook_normalized", target="mlp.out.3")
one = lambda value: np.asarray(value)
without = lambda tensors, *names: {key: value for key, value in tensors.items() if key not in names}
FOUR = one(np.int32(4))
LINEAR = draw(4, encoder__weight=(N, D), encoder__bias=N, decoder__weight=(D, N), b_dec=D)
PLAIN = draw(5, W_enc=(D, N), W_dec=(N, D), b_enc=N, b_dec=D)


def linear(activation, bias="b_dec", center=True):
    def compute(t, x):
        z = (x - t[bias] if center else x) @ t["encoder.weight"].T + t["encoder.bias"]
        latents = activation(z, t)
        return latents, latents @ t["decoder.weight"].T + t[bias]

    return compute


def by_gates(t, x):
    z = (x - t["decoder_bias"]) @ t["encoder.weight"].T
    latents = gates(z, {**t, "b_gate": t["gate_bias"], "b_mag": t["mag_bias"]})
    return latents, latents @ t["decoder.weight"].T + t["decoder_bias"]


def longer(t, x):
    """Their loader's AutoEncoder: decoder rows of length 1, latents times what those were long."""
    latents, out = linear(lambda z, t: relu(z), "bias")(t, x)
    return latents * np.linalg.norm(t["decoder.weight"], axis=0), out


def learned(dict_class, tensors, compute, site="resid_post.3", **trainer):
    said = {
        "trainer_class": "Trainer", "dict_class": dict_class, "lr": 1e-3, "steps": 10, "activation_dim": D, "dict_size": N,
        "layer": 3, "lm_name": "m", "wandb_name": "w", "submodule_name": "resid_post_layer_3", **trainer,
    }  # fmt: skip
    files = {"config.json": {"trainer": said, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128}}}
    return Case("dictionary_learning", files, tensors, compute, site)


SPARSE = draw(6, encoder__weight=(N, D), encoder__bias=N, W_dec=(N, D), b_dec=D)
SPARSE_SKIP = {**SPARSE, **draw(7, W_skip=(D, D))}


def sparse(center=True, skip=False):
    def compute(t, x):
        z = (x - t["b_dec"] if center else x) @ t["encoder.weight"].T + t["encoder.bias"]
        latents = topk(z, 4)
        return latents, latents @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if skip else 0)

    return compute


SPARSIFY = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": N, "k": 4, "d_in": D}
CASES = {
    "saelens standard": saelens("standard", apply_b_dec_to_input=True, normalize_activations="none"),
    "saelens raw input": saelens("standard", compute=lens(center=False), apply_b_dec_to_input=False),
    "saelens training": saelens("standard", l1_coefficient=3, lp_norm=1.0, l1_warm_up_steps=0, decoder_init_norm=0.1),
    "saelens 1": Case("saelens", {"cfg.json": OLD}, {**LENS, "scaling_factor": np.ones(N, np.float32)}, lens(), "resid_pre.0"),
    "saelens 5 topk": Case(
        "saelens",
        {"cfg.json": {**BASE, "metadata": {}, "hook_name": "blocks.3.attn.hook_z", "activation_fn_str": "topk",
                      "activation_fn_kwargs": {"k": 4}, "hook_layer": 3,
                      "jumprelu_bandwidth": 0.001, "lp_norm": 0.5, "finetuning_method": None, "normalize_activations": "none"}},
        LENS, lens(lambda z: topk(z, 4)), "attn.z.3",
    ),
    "saelens one head": saelens(
        "standard", site="blocks.3.attn.hook_q",
        metadata={**META["metadata"], "hook_name": "blocks.3.attn.hook_q", "hook_head_index": 2},
    ),
    "saelens topk": saelens("topk", compute=lens(lambda z: topk(z, 4)), k=4),
    "saelens topk rescaled": saelens(
        "topk", compute=lens(lambda z: topk(z, 4), rescaled=True), k=4, rescale_acts_by_decoder_norm=True
    ),
    "saelens jumprelu": saelens("jumprelu", JUMP, lens(jump)),
    "saelens log_threshold": saelens(
        "jumprelu", {**LENS, "log_threshold": np.log(JUMP["threshold"])},
        lens(lambda z, t: relu(z) * (z > np.exp(t["log_threshold"]))), jumprelu_sparsity_loss_mode="tanh",
    ),
    "saelens gated": saelens("gated", GATED, lens(gates)),
    "saelens batchtopk": saelens(
        "batchtopk", {**LENS, "topk_threshold": one(np.float64(0.4))}, lens(lambda z: z * (z > 0.4)), k=4.0,
        aux_loss_coefficient=1.0, topk_threshold_lr=0.01, rescale_acts_by_decoder_norm=False, use_sparse_activations=False,
    ),
    "saelens layer_norm": saelens("standard", compute=lens(normalize=by_layer_norm), normalize_activations="layer_norm"),
    "saelens constant_norm_rescale": saelens(
        "standard", compute=lens(normalize=lambda x: (0.0, np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(D))),
        normalize_activations="constant_norm_rescale",
    ),
    "saelens average norm": saelens(
        "standard", compute=lens(normalize=lambda x: (0.0, 1 / 0.3)), normalize_activations="expected_average_only_in",
        more={"activation_scaler.json": {"scaling_factor": 0.3}},
    ),
    "saelens average norm told": saelens(
        "standard", compute=lens(normalize=lambda x: (0.0, 1 / 0.3)), normalize_activations="expected_average_only_in"
    )._replace(scale=0.3),
    "saelens transcoder": saelens(
        "transcoder", without(TRANS, "threshold", "W_skip"), lens(center=False), **SITES, **OUT, **MLP
    ),
    "saelens skip_transcoder": saelens(
        "skip_transcoder", without(TRANS, "threshold"), lens(center=False, skip=True), **SITES, **OUT, **MLP
    ),
    "saelens jumprelu_transcoder": saelens(
        "jumprelu_transcoder", without(TRANS, "W_skip"), lens(jump, center=False), **SITES, **OUT, **MLP
    ),
    "gemma_scope": Case(
        "gemma_scope", {}, JUMP, lens(jump, center=False), "resid_post.20", place="gemma-scope-2b-pt-res/layer_20/width_16k/l0_71"
    ),
    "gemma_scope att": Case(
        "gemma_scope", {}, JUMP, lens(jump, center=False), "attn.z.4", place="models--google--gemma-scope-2b-pt-att/layer_4/x"
    ),
    "gemma_scope transcoder": Case(
        "gemma_scope", {}, JUMP, lens(jump, center=False), "mlp.in.7 (normed)", "mlp.out.7",
        place="gemma-scope-2b-pt-transcoders/layer_7/width_16k/l0_9",
    ),
    "gemma_scope small letters": Case(
        "gemma_scope", {}, {k.replace("W_", "w_"): v for k, v in JUMP.items()},
        lambda t, x: lens(jump, center=False)({k.replace("w_", "W_"): v for k, v in t.items()}, x), "x",
    ),
    "dictionary_learning relu": learned(
        "AutoEncoder", {"bias": LINEAR["b_dec"], **without(LINEAR, "b_dec")}, longer
    ),
    "dictionary_learning new": learned(
        "AutoEncoderNew", {"decoder.bias": LINEAR["b_dec"], **without(LINEAR, "b_dec")},
        linear(lambda z, t: relu(z), "decoder.bias", center=False), layer=0, submodule_name=None, site="resid_post.0",
    ),
    "dictionary_learning gated": learned(
        "GatedAutoEncoder",
        draw(8, encoder__weight=(N, D), decoder__weight=(D, N), decoder_bias=D, r_mag=N, gate_bias=N, mag_bias=N), by_gates,
    ),
    "dictionary_learning jump": learned(
        "JumpReluAutoEncoder", {**PLAIN, **draw(9, threshold=N)}, lens(jump, center=False), bandwidth=0.1
    ),
    "dictionary_learning topk": learned(
        "AutoEncoderTopK", {**LINEAR, "k": FOUR, "threshold": one(np.float32(0.7))}, linear(lambda z, t: topk(z, 4)), k=4,
        submodule_name="mlp_out_layer_3", site="mlp_out_layer_3",
    ),
    "dictionary_learning batch": learned(
        "BatchTopKSAE", {**LINEAR, "k": FOUR, "threshold": one(np.float32(0.7))}, linear(lambda z, t: z * (z > 0.7)), k=4
    ),
    "dictionary_learning untrained batch": learned(
        "BatchTopKSAE", {**LINEAR, "k": FOUR, "threshold": one(np.float32(-1))}, linear(lambda z, t: relu(z)), k=4
    ),
    "dictionary_learning matryoshka": learned(
        "MatryoshkaBatchTopKSAE",
        {**PLAIN, "k": FOUR, "threshold": one(np.float32(0.7)), "group_sizes": np.array([5, 5, 10])},
        lens(lambda z: z * (z > 0.7)), k=4, group_sizes=[5, 5, 10], group_fractions=[0.25, 0.25, 0.5],
    ),
    "sparsify": Case("sparsify", {"cfg.json": {**SPARSIFY, "signed": False}}, SPARSE, sparse(), "resid_post.3", place="layers.3"),
    "sparsify of a module": Case(
        "sparsify", {"cfg.json": {**SPARSIFY, "activation": "topk", "transcode": False, "multi_topk": True}}, SPARSE, sparse(),
        "layers.3.mlp", place="layers.3.mlp",
    ),
    "sparsify transcoder": Case(
        "sparsify", {"cfg.json": {**SPARSIFY, "transcode": True, "skip_connection": True}}, SPARSE_SKIP, sparse(False, True),
        "h.3.mlp (input)", "h.3.mlp (output)", place="h.3.mlp",
    ),
    "sparsify old transcoder": Case(
        "sparsify", {"cfg.json": {**SPARSIFY, "skip_connection": True}}, SPARSE_SKIP, sparse(True, True),
        "layers.3.mlp (input)", "layers.3.mlp (output)", place="layers.3.mlp",
    ),
}  # fmt: skip
