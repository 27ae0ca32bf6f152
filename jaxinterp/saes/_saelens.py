"""SAELens: cfg.json and sae_weights.safetensors, of versions 1 to 6.

Facts of the form: sae_lens 6.54, `saes/*.py` and `loading/pretrained_sae_loaders.py`. Encoders stand transposed there. Version 6
keeps what a dictionary reads in `metadata`; before, the whole config of the run stood flat in cfg.json.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from jaxinterp._errors import WeightsError
from jaxinterp.saes._active import AuxK
from jaxinterp.saes._batch_topk import BatchTopK
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._fold import as_jump_relu, fold_lengths, fold_scales
from jaxinterp.saes._form import REQUIRED, Content, Field, Form, Tensor, Written, made_config, read_fields, refuse
from jaxinterp.saes._gated import Gated
from jaxinterp.saes._jump_relu import JumpReLU
from jaxinterp.saes._matryoshka import Matryoshka
from jaxinterp.saes._relu import ReLU
from jaxinterp.saes._topk import TopK
from jaxinterp.tap import hook_of_site, site_of_hook

NORMALIZE: dict[str, Any] = {
    "none": "none", "expected_average_only_in": "sqrt_d", "layer_norm": "layer_norm", "constant_norm_rescale": "row_sqrt_d",
}  # fmt: skip
COMMON = {
    "architecture": Field(str), "d_in": Field(int), "d_sae": Field(int), "apply_b_dec_to_input": Field(bool, True),
    "normalize_activations": Field(tuple(NORMALIZE), "none"), "reshape_activations": Field(("none", "hook_z"), "none"),
    "metadata": Field(dict, {}), "finetuning_scaling_factor": Field((False,), False), "decoder_init_norm": Field(float, None),
}  # fmt: skip
L1 = {"l1_coefficient": Field(float, 1.0)}
TOPK = {"k": Field(int), "rescale_acts_by_decoder_norm": Field(bool, False), "aux_loss_coefficient": Field(float, 1.0)}
BATCH = {**TOPK, "k": Field(float), "topk_threshold_lr": Field(float, 0.01)}
OUT = {"d_out": Field(int), "apply_b_dec_to_input": Field((False,)), "normalize_activations": Field(("none",), "none")}
ARCHITECTURES = {
    "standard": {**L1, "lp_norm": Field((1, 1.0), 1.0)},
    "gated": L1,
    "topk": TOPK,
    "jumprelu": {
        "jumprelu_init_threshold": Field(float, 0.01), "jumprelu_bandwidth": Field(float, 0.05),
        "jumprelu_sparsity_loss_mode": Field(("step", "tanh"), "step"), "l0_coefficient": Field(float, 1.0),
        "pre_act_loss_coefficient": Field(float, None), "jumprelu_tanh_scale": Field(float, 4.0),
        "jumprelu_ste_to_input": Field(bool, False),
    },
    "batchtopk": BATCH,
    "matryoshka_batchtopk": {
        **BATCH, "matryoshka_widths": Field(list), "use_matryoshka_aux_loss": Field((False,), False),
    },
    "transcoder": OUT, "skip_transcoder": OUT, "jumprelu_transcoder": OUT, "jumprelu_skip_transcoder": OUT,
}  # fmt: skip
"""The architectures, each with its own fields. What is absent has the default of their training config."""

SITE = frozenset("hook_name hook_head_index hook_name_out hook_head_index_out".split())
HARMLESS = frozenset(
    """
    dtype device sae_lens_version sae_lens_training_version l1_warm_up_steps l0_warm_up_steps use_sparse_activations target_l0

    model_name model_class_name model_kwargs model_from_pretrained_kwargs prepend_bos exclude_special_tokens neuronpedia_id
    context_size seqpos_slice dataset_path hf_hook_name hf_hook_name_out sequence_separator_token disable_concat_sequences

    hook_layer hook_layer_out hook_eval hook_point_layer hook_point_eval dataset_trust_remote_code streaming is_dataset_tokenized
    use_chat_formatting use_cached_activations cached_activations_path from_pretrained_path n_batches_in_buffer training_tokens
    total_training_tokens store_batch_size_prompts store_batch_size activations_mixing_fraction llm_device act_store_device
    prefetch_llm_batches seed autocast autocast_lm compile_llm llm_compilation_mode compile_sae sae_compilation_mode
    train_batch_size_tokens train_batch_size adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps
    n_restart_cycles dead_feature_window feature_sampling_window dead_feature_threshold n_eval_batches eval_batch_size_prompts
    logger n_checkpoints checkpoint_path save_final_checkpoint output_path resume_from_checkpoint resume verbose
    n_batches_for_norm_estimate log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb log_weights_to_wandb
    wandb_project wandb_id run_name wandb_entity wandb_log_frequency eval_every_n_wandb_logs wandb_group unique_id

    expansion_factor b_dec_init_method use_ghost_grads feature_sampling_method resample_batches feature_reinit_scale
    dead_feature_estimation_method tokens_per_buffer normalize_sae_decoder noise_scale mse_loss_normalization
    scale_sparsity_penalty_by_decoder_norm decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm
    init_encoder_as_decoder_transpose activation_fn_kwargs finetuning_tokens finetuning_method
    """.split()
)
"""Fields that do not change what a trained dictionary computes. In order: what the file is; the model and its text; how a run
of version 1 to 5 went; how its dictionary was first filled and trained (there l1_coefficient and the like are notes too)."""
OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
VERSION = "6.0.0"
SCALER = "activation_scaler.json"


def read(raw: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> SAEConfig:
    """Our config."""
    raw, faults = (raw, []) if _is_version_6(raw) else _modern(raw)
    name = raw.get("architecture")
    if name is not None and str(name) not in ARCHITECTURES:
        faults.append(f"architecture {name!r} is not supported; supported are {', '.join(ARCHITECTURES)}")
    fields = {**COMMON, **ARCHITECTURES.get(str(name), {})}
    v, more = read_fields(raw, fields, HARMLESS | SITE)
    faults += more
    widths = v.get("matryoshka_widths", [])
    if name in ("batchtopk", "matryoshka_batchtopk") and isinstance(v["k"], float) and not v["k"].is_integer():
        faults.append(f"k = {v['k']}: a mean number of active latents that is not whole is not implemented")
    if isinstance(widths, list) and any(not isinstance(width, int) for width in widths):
        faults.append(f"matryoshka_widths = {widths!r} are not whole numbers")
    notes = {**raw, **(v["metadata"] if isinstance(v["metadata"], dict) else {})}

    def make() -> SAEConfig:
        out: Any = {}
        if "d_out" in fields:
            out = dict(d_out=v["d_out"], target=_site(notes, "_out") or "y", skip="skip" in str(name))
        return SAEConfig(
            architecture=_architecture(str(name), v, shapes), d_in=v["d_in"], n_latents=v["d_sae"], site=_site(notes) or "x",
            subtract_decoder_bias=v["apply_b_dec_to_input"], normalize=NORMALIZE[v["normalize_activations"]], **out,
        )  # fmt: skip

    return made_config(faults, make, "SAELens")


def _is_version_6(raw: dict[str, Any]) -> bool:
    metadata = raw.get("metadata")
    version = raw.get("sae_lens_version") or (metadata.get("sae_lens_version") if isinstance(metadata, dict) else None)
    major = str(version).split(".")[0]
    return major.isdigit() and int(major) >= 6


def _modern(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config of version 1 to 5 as version 6 would say it, and what is wrong with it."""
    new = {OLD_NAMES.get(name, name): value for name, value in raw.items()}
    new.setdefault("architecture", "standard")
    faults = []
    activation = new.pop("activation_fn", "relu")
    if activation == "topk":
        kwargs = dict(new["activation_fn_kwargs"]) if isinstance(new.get("activation_fn_kwargs"), dict) else {}
        new["architecture"], new["k"] = "topk", kwargs.pop("k", new.get("k", REQUIRED))
        faults += [f"activation_fn_kwargs: {name} = {value!r}" for name, value in kwargs.items() if value]
    elif activation != "relu":
        faults.append(f"activation_fn = {activation!r} is not implemented; 'relu' or 'topk' is")
    normalize = new.get("normalize_activations")
    if normalize is None or isinstance(normalize, bool):
        new["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    if new.get("k") is REQUIRED:
        del new["k"]
    for note in (
        "l1_coefficient",
        "lp_norm",
        "jumprelu_init_threshold",
        "jumprelu_bandwidth",
    ):  # of any kind, and another loss
        new.pop(note, None)
    return new, faults


def _site(notes: dict[str, Any], end: str = "") -> str | None:
    """Our name of a site, where it is one; else theirs."""
    hook = notes.get(f"hook_name{end}")
    if not isinstance(hook, str):
        return None
    return hook if notes.get(f"hook_head_index{end}") is not None else site_of_hook(hook) or hook


def _architecture(name: str, v: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    free: Any = dict(unit_norm=False, bias="zeros")
    norm: Any = dict(decoder_norm=v["decoder_init_norm"])
    if name.startswith("jumprelu_"):
        return JumpReLU(parameter="threshold", **free)
    if name.endswith("transcoder"):
        return ReLU(**free)
    if name == "standard":
        return ReLU(l1_coefficient=float(v["l1_coefficient"]), **free, **norm)
    if name == "gated":
        return Gated(l1_coefficient=float(v["l1_coefficient"]), frozen_decoder=False, **free, **norm)
    if name == "jumprelu":
        return JumpReLU(
            l0_coefficient=float(v["l0_coefficient"]), penalty="l0" if v["jumprelu_sparsity_loss_mode"] == "step" else "tanh",
            bandwidth=float(v["jumprelu_bandwidth"]), through_input=v["jumprelu_ste_to_input"],
            tanh_scale=float(v["jumprelu_tanh_scale"]), preactivation_coefficient=float(v["pre_act_loss_coefficient"] or 0.0),
            preactivation_of="dead", threshold=float(v["jumprelu_init_threshold"]),
            parameter="log_threshold" if "log_threshold" in shapes else "threshold", **free, **norm,
        )  # fmt: skip
    dead = max(1, min(v["d_in"] // 2, v["d_sae"]))
    auxiliary = AuxK(k=dead, coefficient=float(v["aux_loss_coefficient"]), error_scale="sum", rectified=False)
    common: Any = dict(
        k=int(v["k"]),
        auxiliary=auxiliary,
        error_scale="sum",
        norm_scaled=v["rescale_acts_by_decoder_norm"],
        **free,
        **norm,
    )
    if name == "topk":
        return TopK(**common)
    if name == "batchtopk":
        return BatchTopK(threshold_rate=float(v["topk_threshold_lr"]), **common)
    widths = [width for width in v["matryoshka_widths"] if width != v["d_sae"]]
    return Matryoshka(widths=tuple(widths), combine="sum", threshold_rate=float(v["topk_threshold_lr"]), **common)


def tensors(config: SAEConfig, names: Collection[str]) -> dict[str, Tensor]:
    """The name of each parameter."""
    architecture: Any = config.architecture
    ours = {"W_enc": Tensor("W_enc", True), "W_dec": Tensor("W_dec"), "b_dec": Tensor("b_dec")}
    ours |= {"W_skip": Tensor("W_skip", True)} if config.skip else {}
    if architecture.name == "gated":
        return ours | {name: Tensor(name) for name in ("b_gate", "b_mag", "r_mag")}
    ours["b_enc"] = Tensor("b_enc")
    if architecture.name == "jump_relu":
        ours[architecture.parameter] = Tensor(architecture.parameter)
    return ours | ({"threshold": Tensor("topk_threshold")} if architecture.name in ("batch_topk", "matryoshka") else {})


def idle(config: SAEConfig) -> dict[str, Any]:
    """The factors of a fine-tuning that some old files have, which must be 1."""
    return {
        "scaling_factor": lambda value: (
            "" if (value == 1).all() else "latents would be multiplied by factors that are not 1"
        )
    }


def scale(files: Mapping[str, bytes]) -> float | None:
    """The constant of expected_average_only_in, which checkpoints of a run have beside them."""
    text = files.get(SCALER)
    try:
        return None if text is None else json.loads(text)["scaling_factor"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{SCALER} holds no scaling_factor ({error!r}). Download or copy the file again.") from error


def scale_file(constant: float) -> dict[str, bytes]:
    """The file that `scale` reads."""
    return {SCALER: json.dumps({"scaling_factor": constant}).encode()}


def write(content: Content, old: dict[str, Any]) -> Written:
    """As a dictionary for use: BatchTopK and Matryoshka become JumpReLU, constants of a normalization move into the weights."""
    content = as_jump_relu(fold_scales(content))
    content = content if content.config.architecture.name == "topk" else fold_lengths(content)
    config = content.config
    architecture: Any = config.architecture
    end = {(False, False): "", (True, False): "transcoder", (True, True): "skip_transcoder"}[
        config.target is not None, config.skip
    ]
    kind = {"relu": "standard", "jump_relu": "jumprelu", "topk": "topk", "gated": "gated"}[architecture.name]
    reasons = []
    if end and kind not in ("standard", "jumprelu"):
        reasons.append(f"a transcoder of the kind {architecture.name!r}: there are ReLU and JumpReLU alone")
    if end and config.centers:
        reasons.append("a transcoder whose encoder subtracts the decoder's bias")
    refuse("SAELens", reasons)
    normalize = {ours: theirs for theirs, ours in NORMALIZE.items()}[config.normalize]
    kept = dict(
        old.get("metadata") or {key: value for key, value in old.items() if key in HARMLESS - {"dtype", "device"}}
    )
    notes = {OLD_NAMES.get(name, name): value for name, value in {**old, **kept}.items()}
    head = notes.get("hook_head_index") if _site(notes) == config.site else None
    metadata = {**kept, "sae_lens_version": VERSION, "hook_name": _hook(config.site), "hook_head_index": head}
    metadata |= {"hook_name_out": _hook(config.target_site)} if end else {}
    fields = {
        "architecture": kind if not end else end if kind == "standard" else f"jumprelu_{end}", "d_in": config.d_in,
        "d_sae": config.n_latents, "dtype": content.params["W_enc"].dtype.name, "device": "cpu",
        "apply_b_dec_to_input": config.centers, "normalize_activations": normalize,
        "reshape_activations": "hook_z" if config.site.startswith("attn.z.") else "none", "metadata": metadata,
    }  # fmt: skip
    fields |= {"d_out": config.width_out} if end else {}
    fields |= {"k": architecture.k, "rescale_acts_by_decoder_norm": architecture.norm_scaled} if kind == "topk" else {}
    return Written(content, fields)


def _hook(site: str) -> str:
    return hook_of_site(site) or site


FORM = Form(
    weights="sae_weights.safetensors", config_file="cfg.json", other_files=(SCALER,), read=read,
    tensors=tensors, idle=idle, scale=scale, scale_file=scale_file, write=write,
)  # fmt: skip
