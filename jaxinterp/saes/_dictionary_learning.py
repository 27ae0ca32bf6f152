"""dictionary_learning (Marks, Karvonen, Mueller): config.json and ae.pt, which is read as ae.safetensors.

Facts of the form: dictionary-learning 0.1.0, `dictionary.py`, `trainers/*.py`, `utils.py`. Its loader makes the decoder rows of
an AutoEncoder 1 long and its latents longer in their place; those of other classes it leaves alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxinterp.saes._batch_topk import BatchTopK
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._fold import as_jump_relu, fold_center, fold_lengths, fold_scales
from jaxinterp.saes._form import Content, Field, Form, Tensor, Written, made_config, read_fields, refuse
from jaxinterp.saes._gated import Gated
from jaxinterp.saes._jump_relu import JumpReLU
from jaxinterp.saes._matryoshka import Matryoshka
from jaxinterp.saes._relu import ReLU
from jaxinterp.saes._topk import TopK

LINEAR = {"W_enc": Tensor("encoder.weight"), "b_enc": Tensor("encoder.bias"), "W_dec": Tensor("decoder.weight", True)}
PLAIN = {"W_enc": Tensor("W_enc", True), "b_enc": Tensor("b_enc"), "W_dec": Tensor("W_dec"), "b_dec": Tensor("b_dec")}
CLASSES: dict[str, dict[str, Tensor]] = {
    "AutoEncoder": {**LINEAR, "b_dec": Tensor("bias")},
    "AutoEncoderNew": {**LINEAR, "b_dec": Tensor("decoder.bias")},
    "GatedAutoEncoder": {
        "W_enc": LINEAR["W_enc"], "W_dec": LINEAR["W_dec"], "b_dec": Tensor("decoder_bias"), "r_mag": Tensor("r_mag"),
        "b_gate": Tensor("gate_bias"), "b_mag": Tensor("mag_bias"),
    },
    "JumpReluAutoEncoder": {**PLAIN, "threshold": Tensor("threshold")},
    "AutoEncoderTopK": {**LINEAR, "b_dec": Tensor("b_dec")},
    "BatchTopKSAE": {**LINEAR, "b_dec": Tensor("b_dec"), "threshold": Tensor("threshold")},
    "MatryoshkaBatchTopKSAE": {**PLAIN, "threshold": Tensor("threshold")},
}  # fmt: skip
"""The classes, each with the tensor of each of our parameters."""
CENTERED = frozenset(CLASSES) - {"AutoEncoderNew", "JumpReluAutoEncoder"}
TRAINER_HARMLESS = frozenset(
    """
    trainer_class lm_name wandb_name device seed steps lr warmup_steps decay_start resample_steps auxk_alpha top_k_aux
    threshold_beta threshold_start_step k_anneal_steps group_fractions group_weights l1_penalty sparsity_warmup_steps
    sparsity_penalty initial_sparsity_penalty sparsity_function sparsity_queue_length sparsity_loss_type n_sparsity_updates
    anneal_start anneal_end p_start p_end target_l0 bandwidth layer
    """.split()
)
"""How the run went, and the layer, which names the site."""


def read(raw: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> SAEConfig:
    """Our config."""
    top, faults = read_fields(raw, {"trainer": Field(dict), "buffer": Field(dict, None)})
    trainer = top["trainer"] if isinstance(top["trainer"], dict) else {}
    fields = {
        "dict_class": Field(tuple(CLASSES)), "activation_dim": Field(int), "dict_size": Field(int),
        "submodule_name": Field(str, None), "k": Field(int, None), "group_sizes": Field(list, None),
    }  # fmt: skip
    v, more = read_fields(trainer, fields, TRAINER_HARMLESS, "trainer.")
    faults += more
    name = v.get("dict_class")
    for field in ("k",) if "TopK" in str(name) else ():
        faults += [f"trainer.{field} is missing: it must be a whole number from 1 up"] if v[field] is None else []
    sizes = v["group_sizes"] or []
    if name == "MatryoshkaBatchTopKSAE" and not (sizes and all(isinstance(size, int) for size in sizes)):
        faults.append(f"trainer.group_sizes = {v['group_sizes']!r}: it must be a list of whole numbers")

    def make() -> SAEConfig:
        return SAEConfig(
            architecture=_architecture(str(name), v), d_in=v["activation_dim"], n_latents=v["dict_size"],
            subtract_decoder_bias=name in CENTERED, site=_site(trainer.get("layer"), v["submodule_name"], top["buffer"]),
        )  # fmt: skip

    return made_config(faults, make, "dictionary_learning")


def _site(layer: Any, module: str | None, buffer: dict[str, Any] | None) -> str:
    """The residual stream behind a layer, which is what their scripts name so; else their name."""
    end = _end(buffer)
    if layer is None:
        return f"{module or 'x'}{end}"
    return (
        f"resid_post.{layer}"
        if module in (None, f"resid_post_layer_{layer}") and not end
        else f"{module or layer}{end}"
    )


def _end(buffer: dict[str, Any] | None) -> str:
    """What a site's name has behind it, where a module's input is read and not its output."""
    side = (buffer or {}).get("io", "out")
    return "" if side == "out" else f" ({side})"


def _architecture(name: str, v: dict[str, Any]) -> Any:
    if name.startswith("AutoEncoder") and name != "AutoEncoderTopK":
        return ReLU(norm_scaled=name == "AutoEncoder")
    if name == "GatedAutoEncoder":
        return Gated(unit_norm=False)
    if name == "JumpReluAutoEncoder":
        return JumpReLU(parameter="threshold")
    if name == "MatryoshkaBatchTopKSAE":
        return Matryoshka(k=v["k"], widths=tuple(itertools.accumulate(v["group_sizes"]))[:-1])
    return (TopK if name == "AutoEncoderTopK" else BatchTopK)(k=v["k"])


def _class_of(config: SAEConfig) -> str:
    architecture: Any = config.architecture
    kind = architecture.name
    if kind == "relu":
        return "AutoEncoder" if architecture.norm_scaled else "AutoEncoderNew"
    return {
        "gated": "GatedAutoEncoder", "jump_relu": "JumpReluAutoEncoder", "topk": "AutoEncoderTopK",
        "batch_topk": "BatchTopKSAE", "matryoshka": "MatryoshkaBatchTopKSAE",
    }[kind]  # fmt: skip


def tensors(config: SAEConfig, names: Collection[str]) -> dict[str, Tensor]:
    """The name of each parameter."""
    return CLASSES[_class_of(config)]


def idle(config: SAEConfig) -> dict[str, Any]:
    """Buffers: k and the sizes of groups, which the config has too; of TopK a threshold, which its encoder does not use."""
    kind: Any = config.architecture
    equal = lambda want: (
        lambda value: "" if np.array_equal(value, want) else f"it is {value.tolist()}, and the config has {want}"
    )
    found = {"k": equal(kind.k)} if hasattr(kind, "k") else {}
    found |= {"threshold": lambda value: ""} if kind.name == "topk" else {}
    return found | ({"group_sizes": equal(_sizes(config))} if kind.name == "matryoshka" else {})


def _sizes(config: SAEConfig) -> list[int]:
    kind: Any = config.architecture
    return np.diff([0, *kind.widths, config.n_latents]).tolist()


def write(content: Content, old: dict[str, Any]) -> Written:
    """As the class that computes the same, with the buffers that their loader wants."""
    content = fold_scales(content)
    kind: Any = content.config.architecture
    if kind.name == "jump_relu":
        content = fold_center(as_jump_relu(content))
    elif kind.name == "relu" and not (kind.norm_scaled and content.config.centers):
        content = fold_center(fold_lengths(content))  # AutoEncoderNew, whose latents are as its weights give them
    elif kind.name != "relu":
        content = fold_lengths(content)
    config = content.config
    kind, name = config.architecture, _class_of(config)
    faults = {
        f"normalize={config.normalize!r}": config.normalize != "none",
        "it is a transcoder": config.target is not None,
        f"{name} there {'subtracts' if name in CENTERED else 'does not subtract'} the decoder's bias": config.centers
        != (name in CENTERED),
    }
    refuse("dictionary_learning's form", [what for what, holds in faults.items() if holds])
    kept = {key: value for key, value in old.get("trainer", {}).items() if key in TRAINER_HARMLESS}
    layer, end = config.site.rpartition(".")[2], _end(old.get("buffer"))
    buffer = (old.get("buffer") or {}) if config.site.endswith(end) else {}
    place: dict[str, Any] = {"submodule_name": config.site.removesuffix(end)}
    if config.site == f"resid_post.{layer}" and layer.isdigit():
        place = {"layer": int(layer), "submodule_name": f"resid_post_layer_{layer}"}
    trainer = {**kept, "dict_class": name, "activation_dim": config.d_in, "dict_size": config.n_latents, **place}
    extra: dict[str, np.ndarray] = {}
    if hasattr(kind, "k"):
        trainer["k"], extra["k"] = kind.k, np.asarray(kind.k, np.int32)
    if kind.name == "topk":
        extra["threshold"] = np.asarray(-1.0, np.float32)
    if kind.name == "matryoshka":
        trainer["group_sizes"], extra["group_sizes"] = _sizes(config), np.asarray(_sizes(config), np.int64)
    return Written(content, {"trainer": trainer, "buffer": buffer}, extra)


FORM = Form(
    weights="ae.safetensors", config_file="config.json", read=read, tensors=tensors, idle=idle, write=write, pickle="ae.pt"
)  # fmt: skip
