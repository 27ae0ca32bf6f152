"""Gemma Scope: params.npz alone. What it reads stands in the names of its folders: gemma-scope-2b-pt-res/layer_20/width_16k/...

Source: Lieberum et al. 2024 (arXiv 2408.05147), and the tutorial that came with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._fold import as_jump_relu, fold_center, fold_scales
from jaxinterp.saes._form import Content, Form, Tensor, Written, made_config, refuse
from jaxinterp.saes._jump_relu import JumpReLU

SITES = {"res": "resid_post", "mlp": "mlp.out", "att": "attn.z"}
"""The ends of the names of its repositories, and what is read (behind any norm that follows; the heads of a token laid flat)."""
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def read(raw: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> SAEConfig:
    """Our config: from the shapes, and from where it lies. A transcoder is not told from a dictionary but by its place."""
    name = _spelled("W_enc", shapes)
    fits = len(shapes.get(name, ())) == 2
    faults = [] if fits else [f"{name} is {list(shapes[name])}, not a matrix" if name in shapes else "W_enc is missing"]
    found = re.search(r".*gemma-scope-[^/]*-(res|mlp|att|transcoders)/(?:[^/]*/)*?layer_(\d+)(?=/|$)", place)
    site: dict[str, Any] = {}
    if found:
        what, layer = SITES.get(found[1]), found[2]
        site = (
            dict(site=f"{what}.{layer}") if what else dict(site=f"mlp.in.{layer} (normed)", target=f"mlp.out.{layer}")
        )

    def make() -> SAEConfig:
        d_in, n = shapes[name]
        kind = JumpReLU(parameter="threshold")
        return SAEConfig(architecture=kind, d_in=d_in, n_latents=n, subtract_decoder_bias=False, **site)

    return made_config(faults, make, "Gemma Scope")


def _spelled(name: str, names: Collection[str]) -> str:
    """Some files write matrices with a small w."""
    return name.replace("W_", "w_") if name not in names and name.replace("W_", "w_") in names else name


def tensors(config: SAEConfig, names: Collection[str]) -> dict[str, Tensor]:
    """The name of each parameter."""
    return {name: Tensor(_spelled(name, names), name == "W_enc") for name in NAMES}


def write(content: Content, old: dict[str, Any]) -> Written:
    """A JumpReLU dictionary without anything beside its matrices."""
    content = fold_center(as_jump_relu(fold_scales(content)))
    config = content.config
    faults = {
        f"the architecture is {config.architecture.name!r}, not JumpReLU": config.architecture.name != "jump_relu",
        f"normalize={config.normalize!r}": config.normalize != "none",
        "it has a linear skip": config.skip,
    }
    refuse("Gemma Scope's form", [what for what, holds in faults.items() if holds])
    return Written(content, {})


FORM = Form(weights="params.npz", config_file=None, read=read, tensors=tensors, write=write, by_place=True)
